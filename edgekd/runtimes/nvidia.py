"""What an NVIDIA GPU says about itself, through the driver alone: no CUDA toolkit, no torch. Python 3.8."""

from __future__ import annotations

import ctypes
import functools
from dataclasses import dataclass
from pathlib import Path

_MAJOR, _MINOR = 75, 76  # CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR and _MINOR


@dataclass(frozen=True)
class Gpu:
    """The first GPU: its name, and its compute capability, e.g. "8.6"; None where the driver does not say."""

    name: str | None
    compute_capability: str | None


def has_gpu() -> bool:
    """Whether an NVIDIA GPU and its driver are here, without loading any CUDA library."""
    return any(Path(place).exists() for place in ("/dev/nvidia0", "/dev/nvhost-gpu", "/dev/nvgpu"))


def gpu() -> Gpu | None:
    """The GPU of this machine, or None where there is none."""
    if not has_gpu():
        return None
    return _of_the_driver() or Gpu(_listed_name(), None)


@functools.lru_cache(maxsize=1)
def _of_the_driver() -> Gpu | None:
    try:
        cuda = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return None
    device, value = ctypes.c_int(), ctypes.c_int()
    if cuda.cuInit(0) or cuda.cuDeviceGet(ctypes.byref(device), 0):
        return None
    text = ctypes.create_string_buffer(256)
    name = None if cuda.cuDeviceGetName(text, len(text), device) else text.value.decode("utf-8", "replace")
    digits = []
    for attribute in (_MAJOR, _MINOR):
        if cuda.cuDeviceGetAttribute(ctypes.byref(value), attribute, device):
            return Gpu(name, None)
        digits.append(str(value.value))
    return Gpu(name, ".".join(digits))


def _listed_name() -> str | None:
    for path in sorted(Path("/proc/driver/nvidia/gpus").glob("*/information")):
        for line in path.read_text().splitlines():
            if line.startswith("Model:"):
                return line.split(":", 1)[1].strip()
    return None


def dotted(name: str) -> str:
    """A compute capability as a pipeline file writes it: SM86, sm_86, 86 and "8.6" are "8.6", SM120 is "12.0"."""
    digits = "".join(character for character in str(name) if character.isdigit())
    return f"{digits[:-1]}.{digits[-1:]}"
