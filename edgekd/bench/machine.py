"""What a machine says about itself: identity for the key of a measurement, and its state while measuring.

Linux tells most of it in /proc and /sys; what a machine lacks is None, never 0. Python 3.8, standard library only.
"""

from __future__ import annotations

import contextlib
import functools
import glob
import os
import platform
import re
import socket
import sys
import time
from collections.abc import Iterable
from typing import Any

from edgekd.bench import nvml
from edgekd.bench.energy import find_meter

ROOT = ""  # of a copy of /proc and /sys, in tests
_CORE = "/sys/devices/system/cpu/cpu{}/cpufreq/"
_CPU_SENSORS = ("coretemp", "k10temp", "zenpower", "cpu_thermal")


def fingerprint() -> dict[str, Any]:
    """What must be equal for two latencies to be comparable; neither host name nor anything that a reboot changes."""
    return {
        "cpu": cpu_model(),
        "cores": usable_cores(),
        "memory_gib": None if memory_bytes() is None else round((memory_bytes() or 0) / 2**30),
        "gpu": gpu_model(),
        "gpu_driver": gpu_driver(),
        "governor": governor(),
        "power_mode": power_mode(),
        "boost": _boost(),
        "system": platform.system(),
        "arch": platform.machine(),
        "python": platform.python_version(),
    }


def environment(packages: Iterable[str] = ()) -> dict[str, Any]:
    """The `environment` of report.json: host, hardware, system, and the named packages' versions (None: absent)."""
    return {
        "host": socket.gethostname(),
        "cpu": cpu_model(),
        "cores": usable_cores(),
        "memory_bytes": memory_bytes(),
        "gpu": gpu_model(),
        "os": " ".join((platform.system(), platform.release(), platform.machine())),
        "python": platform.python_version(),
        "packages": {name: package_version(name) for name in packages},
    }


def cpu_model() -> str | None:
    """Marketing name of the processor, or of the board where the processor has none."""
    # Only the head: on a machine with many cores the whole file takes milliseconds.
    found = re.search(r"^model name\s*:\s*(.+)$", _read("/proc/cpuinfo", 4096) or "", re.MULTILINE)
    if found:
        return found.group(1).strip()
    return _tree_model() or platform.machine() or None


def board() -> str | None:
    """Name of the board, as its firmware gives it: a Raspberry Pi's, a Jetson's, or that of a PC's mainboard."""
    return _tree_model() or _line("/sys/class/dmi/id/product_name")


def _tree_model() -> str | None:
    tree = _read("/proc/device-tree/model")
    return (tree.strip("\0 \n") or None) if tree else None


def usable_cores() -> int | None:
    """Cores that this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count()


def memory_bytes() -> int | None:
    """Physical memory."""
    found = re.search(r"^MemTotal:\s*(\d+) kB", _read("/proc/meminfo", 4096) or "", re.MULTILINE)
    return int(found.group(1)) * 1024 if found else None


def memory_free_bytes() -> int | None:
    """Memory that can be had now without swapping."""
    found = re.search(r"^MemAvailable:\s*(\d+) kB", _read("/proc/meminfo", 4096) or "", re.MULTILINE)
    return int(found.group(1)) * 1024 if found else None


def distribution() -> str | None:
    """Name and version of the Linux distribution."""
    found = re.search(r'^PRETTY_NAME="?([^"\n]*)', _read("/etc/os-release") or "", re.MULTILINE)
    return found.group(1) if found else None


def gpu_model() -> str | None:
    """Names of the NVIDIA GPUs, comma-separated."""
    texts = [_read(path) or "" for path in _glob("/proc/driver/nvidia/gpus/*/information")]
    names = [re.search(r"^Model:\s*(.+)$", text, re.MULTILINE) for text in texts]
    return ", ".join(found.group(1).strip() for found in names if found) or None


def gpu_driver() -> str | None:
    """Version of the NVIDIA kernel driver."""
    found = re.search(r"Kernel Module.*?\s(\d+\.\d[\d.]*)", _read("/proc/driver/nvidia/version") or "")
    return found.group(1) if found else None


def governor() -> str | None:
    """Frequency governor of the first core."""
    return _line(_CORE.format(0) + "scaling_governor")


def power_mode() -> str | None:
    """A Jetson's nvpmodel, else a laptop's platform profile, else the frequency governor."""
    return _line("/var/lib/nvpmodel/status") or _line("/sys/firmware/acpi/platform_profile") or governor()


def frequency_mhz() -> float | None:
    """Present frequency of the first core that this process may run on."""
    cores = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else {0}
    text = _line(_CORE.format(min(cores)) + "scaling_cur_freq")
    return float(text) / 1000 if text and text.isdigit() else None


def temperature_c() -> float | None:
    """Temperature of the hottest thermal zone or sensor of the processor."""
    # A Jetson's power chip always says 100 degrees.
    zones = _glob("/sys/class/thermal/thermal_zone*/type")
    paths = [f"{zone[:-4]}temp" for zone in zones if "PMIC" not in (_line(zone) or "")]
    chips = [path[:-4] for path in _glob("/sys/class/hwmon/hwmon*/name") if _line(path) in _CPU_SENSORS]
    lines = [_line(path) for path in paths + [one for chip in chips for one in _glob(f"{chip}temp*_input")]]
    values = [int(line) / 1000 for line in lines if line and line.lstrip("-").isdigit()]
    return max(values) if values else None


def throttle_events() -> int | None:
    """Times that any core or package was slowed down for heat since the machine started."""
    lines = [_line(path) for path in _glob("/sys/devices/system/cpu/cpu*/thermal_throttle/*_throttle_count")]
    counts = [int(line) for line in lines if line and line.isdigit()]
    return sum(counts) if counts else None


def throttled_now() -> bool | None:
    """Whether a Raspberry Pi's firmware holds the clock down at this moment (bits 1 to 3 of get_throttled)."""
    text = _line("/sys/devices/platform/soc/soc:firmware/get_throttled")
    with contextlib.suppress(ValueError):
        return bool(int(text, 16) & 0b1110) if text else None
    return None


def pressure() -> float | None:
    """Percentage of the last ten seconds in which some task waited for a core (PSI `some avg10`)."""
    found = re.search(r"^some avg10=([\d.]+)", _read("/proc/pressure/cpu") or "", re.MULTILINE)
    return float(found.group(1)) if found else None


def peak_rss_bytes() -> int | None:
    """Highest resident memory of this process so far (VmHWM)."""
    found = re.search(r"^VmHWM:\s*(\d+) kB", _read("/proc/self/status", 8192) or "", re.MULTILINE)
    if found:
        return int(found.group(1)) * 1024
    if sys.platform == "win32":
        return None
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def rss_bytes() -> int | None:
    """Resident memory of this process now (VmRSS)."""
    found = re.search(r"^VmRSS:\s*(\d+) kB", _read("/proc/self/status", 8192) or "", re.MULTILINE)
    return int(found.group(1)) * 1024 if found else None


class Monitor:
    """Notes the state of the machine at most once a second, when asked between two blocks of a measurement."""

    def __init__(self) -> None:
        self.notes: list[dict[str, Any]] = []
        self._start = time.monotonic()
        self._steal = _cpu_ticks()
        self._meter, self._gpu = find_meter(on_gpu=False, root=ROOT), nvml.first_gpu()
        self._metered: float | None = None
        self.note()

    def note_if_due(self) -> None:
        """Note the state if a second has passed since the last note."""
        if time.monotonic() - self._start - self.notes[-1]["t_s"] >= 1.0:
            self.note()

    def note(self) -> None:
        """Note time, frequency, temperature, throttling, power, stolen time and pressure now."""
        before, self._steal = self._steal, _cpu_ticks()
        gpu = self._gpu
        self.notes.append(
            {
                "t_s": round(time.monotonic() - self._start, 3),
                "frequency_mhz": frequency_mhz(),
                "temperature_c": temperature_c(),
                "throttle_events": throttle_events(),
                "throttled_now": throttled_now(),
                "steal_share": _steal_share(before, self._steal),
                "pressure_percent": pressure(),
                "power_w": self._power_w(),
                "gpu_frequency_mhz": gpu and gpu.clock_mhz(),
                "gpu_temperature_c": gpu and gpu.temperature_c(),
                "gpu_slowed_now": gpu and gpu.slowed(),
                "gpu_power_w": gpu and gpu.power_w(),
            }
        )

    def throttled(self) -> bool | None:
        """Whether a throttle counter moved or the firmware held a clock down; None where there is no counter."""
        events = [note["throttle_events"] for note in (self.notes[0], self.notes[-1])]
        now = [note[key] for note in self.notes for key in ("throttled_now", "gpu_slowed_now")]
        if None in events and set(now) <= {None}:
            return None
        return events[0] != events[1] or any(now)

    def mean(self, key: str) -> float | None:
        """Mean of what the notes say under a key; None where they say nothing."""
        values = [note[key] for note in self.notes if note[key] is not None]
        return sum(values) / len(values) if values else None

    def _power_w(self) -> float | None:
        """Mean power since the last note."""
        if self._meter is None:
            return None
        now, before = time.monotonic(), self._metered
        watts = self._meter.joules() / (now - before) if before is not None and now > before else None
        self._meter.begin()
        self._metered = now
        return None if watts is None else round(watts, 3)


def _cpu_ticks() -> tuple[int, int] | None:
    """Ticks stolen by the hypervisor and ticks in all since the start, over all cores."""
    fields = (_line("/proc/stat") or "").split()[1:9]
    ticks = [int(field) for field in fields]
    return (ticks[7], sum(ticks)) if len(ticks) == 8 else None


def _steal_share(before: tuple[int, int] | None, after: tuple[int, int] | None) -> float | None:
    if before is None or after is None or after[1] <= before[1]:
        return None
    return round((after[0] - before[0]) / (after[1] - before[1]), 4)


def _boost() -> str | None:
    no_turbo = _line("/sys/devices/system/cpu/intel_pstate/no_turbo")
    if no_turbo is not None:
        return "off" if no_turbo == "1" else "on"
    boost = _line("/sys/devices/system/cpu/cpufreq/boost")
    return None if boost is None else ("on" if boost == "1" else "off")


@functools.lru_cache(maxsize=None)  # noqa: UP033  3.8 has no functools.cache
def package_version(name: str) -> str | None:
    """Version of an installed package, or None; nothing is imported."""
    from importlib import metadata

    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _line(path: str) -> str | None:
    text = _read(path, 4096)
    return text.split("\n", 1)[0].strip() or None if text else None


def _glob(pattern: str) -> list[str]:
    return [path[len(ROOT) :] for path in sorted(glob.glob(ROOT + pattern))]


def _read(path: str, limit: int = 65536) -> str | None:
    try:
        with open(ROOT + path, "rb") as stream:
            return stream.read(limit).decode("utf-8", "replace")
    except OSError:
        return None
