"""State of the first NVIDIA GPU by the library behind nvidia-smi, which costs microseconds and starts no process.

A Jetson has no such library. Python 3.8, standard library only.
"""

from __future__ import annotations

import ctypes
import functools
from typing import Any

_GRAPHICS_CLOCK, _TEMPERATURE_GPU = 0, 0
# nvmlClocksEventReason: software and hardware thermal slowdown, power brake, hardware slowdown, software power cap.
_SLOWED = 0x4 | 0x8 | 0x20 | 0x40 | 0x80


class Gpu:
    """One GPU; a value that it does not tell is None."""

    def __init__(self, library: Any, handle: Any) -> None:
        self._library, self._handle = library, handle

    def clock_mhz(self) -> int | None:
        """Clock of its cores."""
        return self._ask("nvmlDeviceGetClockInfo", ctypes.c_uint(), _GRAPHICS_CLOCK)

    def temperature_c(self) -> int | None:
        """Temperature of the chip."""
        return self._ask("nvmlDeviceGetTemperature", ctypes.c_uint(), _TEMPERATURE_GPU)

    def power_w(self) -> float | None:
        """Power of the board."""
        milliwatts = self._ask("nvmlDeviceGetPowerUsage", ctypes.c_uint())
        return None if milliwatts is None else milliwatts / 1e3

    def energy_mj(self) -> int | None:
        """Energy of the board since its driver was loaded; from Volta on."""
        return self._ask("nvmlDeviceGetTotalEnergyConsumption", ctypes.c_ulonglong())

    def slowed(self) -> bool | None:
        """Whether heat or a limit of power holds the clock down now."""
        reasons = self._ask("nvmlDeviceGetCurrentClocksThrottleReasons", ctypes.c_ulonglong())
        return None if reasons is None else bool(reasons & _SLOWED)

    def _ask(self, name: str, value: Any, *arguments: int) -> int | None:
        function = getattr(self._library, name, None)
        if function is None or function(self._handle, *arguments, ctypes.byref(value)):
            return None
        return int(value.value)


@functools.lru_cache(maxsize=1)
def first_gpu() -> Gpu | None:
    """The first GPU, or None where there is no driver that tells of one."""
    try:
        return opened(ctypes.CDLL("libnvidia-ml.so.1"))
    except OSError:
        return None


def opened(library: Any) -> Gpu | None:
    """The first GPU of a loaded library."""
    handle = ctypes.c_void_p()
    if library.nvmlInit_v2() or library.nvmlDeviceGetHandleByIndex_v2(0, ctypes.byref(handle)):
        return None
    return Gpu(library, handle)
