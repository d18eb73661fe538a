"""Energy that a machine counts itself: processor packages (RAPL), a Jetson's rails (INA3221), an NVIDIA GPU (NVML).

A counter of energy is read before and after; a sensor of power is read at most 50 times a second and summed up. What
the battery of a laptop says is left out: it is slow, and tells of the screen too. Python 3.8, standard library only.
"""

from __future__ import annotations

import glob
import os
import re
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from edgekd.bench import nvml

SAMPLE_S = 0.02
# The rail that feeds the whole module, by board; where none is named so, all rails together are the whole.
_WHOLE = ("VDD_IN", "POM_5V_IN", "5V_IN")

if TYPE_CHECKING:
    Run = Callable[[], None]


@dataclass
class Rapl:
    """Microjoules of all processor packages; each counter wraps at its own range."""

    zones: Sequence[tuple[str, int]]
    source: str = "rapl"

    def begin(self) -> None:
        self._joules, self._last = 0.0, self._read()

    def sample(self) -> None:
        now = self._read()
        for before, after, (_, around) in zip(self._last, now, self.zones):  # noqa: B905  3.8 has no strict=
            self._joules += ((after - before) if after >= before else after - before + around) / 1e6
        self._last = now

    def joules(self) -> float:
        self.sample()
        return self._joules

    def _read(self) -> list[int]:
        return [_number(path) or 0 for path, _ in self.zones]


@dataclass
class Power:
    """Watts of a sensor, summed up over time by the trapezoidal rule."""

    read_w: Callable[[], float]
    source: str
    clock: Callable[[], float] = time.perf_counter

    def begin(self) -> None:
        self._joules, self._at, self._w = 0.0, self.clock(), self.read_w()

    def sample(self) -> None:
        now, watts = self.clock(), self.read_w()
        self._joules += (watts + self._w) / 2 * (now - self._at)
        self._at, self._w = now, watts

    def joules(self) -> float:
        self.sample()
        return self._joules


@dataclass
class GpuEnergy:
    """Millijoules that an NVIDIA GPU counts since its driver was loaded."""

    gpu: nvml.Gpu
    source: str = "nvml"

    def begin(self) -> None:
        self._first = self.gpu.energy_mj() or 0

    def sample(self) -> None:
        """A counter needs none."""

    def joules(self) -> float:
        return ((self.gpu.energy_mj() or 0) - self._first) / 1e3


def find_meter(*, on_gpu: bool, root: str = "") -> Rapl | Power | GpuEnergy | None:
    """What counts the energy of this machine, or of its NVIDIA GPU for a build that runs there; None: nothing does.

    Other accelerators (integrated graphics, an NPU) are in the processor's package.
    """
    rails = _jetson(root)
    if rails is not None:  # the rail of the whole module, GPU included
        return rails
    gpu = nvml.first_gpu() if on_gpu else None
    if gpu is not None:
        if gpu.energy_mj() is not None:
            return GpuEnergy(gpu)
        return Power(lambda: gpu.power_w() or 0.0, "nvml") if gpu.power_w() is not None else None
    zones = []
    for folder in sorted(glob.glob(root + "/sys/class/powercap/*:[0-9]*")):
        name, around = _text(folder + "/name"), _number(folder + "/max_energy_range_uj")
        # Readable by root alone since Linux 5.10.
        if name and name.startswith("package") and around and _number(folder + "/energy_uj") is not None:
            zones.append((folder + "/energy_uj", around))
    return Rapl(tuple(zones)) if zones else None


def per_inference(run: Run, meter: Any, *, idle_s: float, seconds: float) -> dict[str, Any]:
    """Energy of one call in millijoules, all that the meter counts included, and the power of the idle machine before.

    Returns:
        `energy_mj_per_inference`; `energy_above_idle_mj`: the same less idle power times its time; `idle_power_w`;
        `energy_source`; `energy_calls`.
    """
    clock = time.perf_counter
    meter.begin()
    begin = clock()
    while clock() - begin < idle_s:
        time.sleep(SAMPLE_S)
        meter.sample()
    idle_w = meter.joules() / (clock() - begin)
    meter.begin()
    begin = sampled = clock()
    calls, now = 0, begin
    while not calls or now - begin < seconds:
        run()
        calls += 1
        now = clock()
        if now - sampled >= SAMPLE_S:
            meter.sample()
            sampled = now
    joules, took_s = meter.joules(), clock() - begin
    return {
        "energy_mj_per_inference": joules / calls * 1e3,
        "energy_above_idle_mj": (joules - idle_w * took_s) / calls * 1e3,
        "idle_power_w": idle_w,
        "energy_source": meter.source,
        "energy_calls": calls,
    }


def _jetson(root: str) -> Power | None:
    """The INA3221 of a Jetson, by hwmon (volts and amperes) or, before JetPack 5, by iio (milliwatts)."""
    drivers = root + "/sys/bus/i2c/drivers/ina3221*/*-*/"
    rails: dict[str, Callable[[], float]] = {}
    for label in sorted(glob.glob(drivers + "hwmon/hwmon*/in*_label")):
        number = re.sub(r"\D", "", os.path.basename(label))
        volts = os.path.join(os.path.dirname(label), f"in{number}_input")
        amperes = os.path.join(os.path.dirname(label), f"curr{number}_input")
        if _number(volts) is not None and _number(amperes) is not None:
            rails[_text(label) or number] = lambda v=volts, a=amperes: (_number(v) or 0) * (_number(a) or 0) / 1e6  # type: ignore[misc]
    for label in sorted(glob.glob(drivers + "iio:device*/rail_name_*")):
        power = os.path.join(os.path.dirname(label), f"in_power{label.rsplit('_', 1)[1]}_input")
        if _number(power) is not None:
            rails[_text(label) or power] = lambda p=power: (_number(p) or 0) / 1e3  # type: ignore[misc]
    whole = next((name for name in _WHOLE if name in rails), None)
    chosen = [rails[whole]] if whole else list(rails.values())
    return Power(lambda: sum(read() for read in chosen), f"ina3221 {whole or 'sum of rails'}") if chosen else None


def _text(path: str) -> str | None:
    try:
        with open(path, encoding="ascii", errors="replace") as stream:
            return stream.read(256).strip() or None
    except OSError:
        return None


def _number(path: str) -> int | None:
    text = _text(path)
    return int(text) if text and text.lstrip("-").isdigit() else None
