"""Which arithmetic training uses: written rules, never a stopwatch (results must not depend on the weather)."""

from __future__ import annotations

import contextlib
from typing import Any

import torch

from edgekd.train.settings import TrainSettings


def choose_device(settings: TrainSettings) -> torch.device:
    """cuda when asked for or (auto) found, else the CPU."""
    if settings.device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return torch.device(settings.device)


def choose_precision(settings: TrainSettings, device: torch.device) -> str:
    """bf16 where the device has bf16 instructions, when the setting is auto; else what is set."""
    if settings.precision != "auto":
        return settings.precision
    if device.type == "cuda":
        return "bf16" if torch.cuda.is_bf16_supported() else "f32"
    return "bf16" if _cpu_has_bf16() else "f32"


def autocast(precision: str, device: torch.device) -> contextlib.AbstractContextManager[Any]:
    """The context in which forward passes run."""
    if precision == "bf16":
        return torch.autocast(device.type, dtype=torch.bfloat16)
    return contextlib.nullcontext()


def _cpu_has_bf16() -> bool:
    """AVX512-BF16 or AMX-BF16: without them bf16 is emulated and slower than float32."""
    capabilities = torch.cpu.get_capabilities()
    return any(bool(capabilities.get(name)) for name in ("avx512_bf16", "amx_bf16", "bf16"))
