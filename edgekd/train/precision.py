"""Which arithmetic training uses: written rules, never a stopwatch (results must not depend on the weather)."""

from __future__ import annotations

import contextlib
import importlib.util
import shutil
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from edgekd.train.distributed import local_device
from edgekd.train.settings import TrainSettings

# CUDA graphs pay where launching kernels takes longer than running them, and compiling takes a minute or two.
_SMALL_NETWORK = 20_000_000
_LONG_PHASE = 10_000
HALF = (torch.float16, torch.bfloat16)


def full(x: Tensor) -> Tensor:
    """The tensor in float32 where it came in half precision: squares and norms of large values overflow there."""
    return x.float() if x.dtype in HALF else x


def choose_device(settings: TrainSettings) -> torch.device:
    """cuda when asked for or (auto) found, a GPU of its own for each process of a machine; else the CPU."""
    if settings.device == "cuda" or (settings.device == "auto" and torch.cuda.is_available()):
        return torch.device("cuda", local_device())
    return torch.device("cpu")


def choose_precision(settings: TrainSettings, device: torch.device) -> str:
    """bf16 where the device has bf16 instructions, when the setting is auto; else what is set."""
    if settings.precision != "auto":
        return settings.precision
    if device.type == "cuda":
        return "bf16" if torch.cuda.is_bf16_supported() else "f32"
    return "bf16" if _cpu_has_bf16() else "f32"


def choose_compile(setting: str, device: torch.device, *, alone: bool, parameters: int, steps: int) -> str:
    """off, default or graphs for a phase.

    Args:
        alone: one process, no accumulation, no taps: graphs keep gradients and maps in memory of their own.
        parameters: those of the largest network that runs.
        steps: steps of the phase.
    """
    if setting == "graphs" and not (alone and device.type == "cuda"):
        return "default"
    if setting != "auto":
        return setting
    tools = importlib.util.find_spec("triton") is not None and shutil.which("cc") is not None
    pays = device.type == "cuda" and parameters <= _SMALL_NETWORK and steps >= _LONG_PHASE
    return "graphs" if pays and alone and tools else "off"


@contextlib.contextmanager
def compiled(networks: Iterable[nn.Module], mode: str) -> Iterator[None]:
    """Inside, these networks run compiled; outside, and where `torch.compiler.set_stance` says so, as they were."""
    networks = list(networks) if mode != "off" else []
    for network in networks:
        # Static: kernels that adapt to sizes they have seen would differ after a resume. A function of our own around
        # the call, because torch's compiler passes over modules of torch itself, such as a Sequential.
        compile_ = torch.compile(mode="reduce-overhead" if mode == "graphs" else None, dynamic=False)
        network._compiled_call_impl = compile_(_calling(network))
    try:
        yield
    finally:
        for network in networks:
            network._compiled_call_impl = None  # torch has no call that takes it back


def _calling(network: nn.Module) -> Callable[..., Any]:
    def call(*inputs: Any) -> Any:
        return network._call_impl(*inputs)  # type: ignore[no-untyped-call]

    return call


def autocast(precision: str, device: torch.device) -> contextlib.AbstractContextManager[Any]:
    """The context in which forward passes run."""
    if precision == "f32":
        return contextlib.nullcontext()
    return torch.autocast(device.type, dtype=torch.bfloat16 if precision == "bf16" else torch.float16)


def _cpu_has_bf16() -> bool:
    """AVX512-BF16 or AMX-BF16: without them bf16 is emulated and slower than float32."""
    capabilities = torch.cpu.get_capabilities()
    return any(bool(capabilities.get(name)) for name in ("avx512_bf16", "amx_bf16", "bf16"))
