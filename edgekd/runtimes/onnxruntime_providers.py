"""ONNX Runtime's execution providers: the names people write, the names they have, and what brings them.

Python 3.8, the standard library and no engine, as all of runtimes/.
"""

from __future__ import annotations

from collections.abc import Sequence

from edgekd.errors import UnavailableError

_ENDING = "ExecutionProvider"
# What people write -> what stands before "ExecutionProvider". Any other name is taken as it is, in any case.
_SHORT = {"directml": "Dml", "tensorrt_rtx": "NvTensorRTRTX"}
# Which package of ONNX Runtime has a provider inside; all of them are imported as `onnxruntime`.
_PACKAGES = {
    "CPU": "onnxruntime",
    "CoreML": "onnxruntime",
    "XNNPACK": "onnxruntime",
    "CUDA": "onnxruntime-gpu",
    "Tensorrt": "onnxruntime-gpu",
    "NvTensorRTRTX": "onnxruntime-trt-rtx",
    "OpenVINO": "onnxruntime-openvino",
    "Dml": "onnxruntime-directml",
    "QNN": "onnxruntime-qnn",
    "ROCM": "onnxruntime-rocm",
    "MIGraphX": "onnxruntime-migraphx",
    "CANN": "onnxruntime-cann",
    "VitisAI": "onnxruntime-vitisai",
}
PACKAGES = tuple(dict.fromkeys(_PACKAGES.values()))
CPU = f"CPU{_ENDING}"


def provider_named(device: str, found: Sequence[str]) -> str:
    """The provider that a device means: `CUDA`, `DirectML`, `openvino`, or a provider's full name.

    Args:
        device: as it stands in `device:`.
        found: the providers that this ONNX Runtime has.

    Raises:
        UnavailableError: it is not among `found`; the message names those, the hint the package that brings it.
    """
    wanted = _plain(device)
    for name in found:
        if name.lower() == wanted + _ENDING.lower():
            return name
    package = {name.lower(): package for name, package in _PACKAGES.items()}.get(wanted)
    raise UnavailableError(
        f"ONNX Runtime has no provider for {device} here (it has {', '.join(map(short, found))})",
        hint=f"use device: CPU, or replace the installed package: pip install {package}"
        if package
        else "use device: CPU, or install the build of ONNX Runtime that has it",
    )


def full_name(device: str) -> str:
    """The full name of a provider of ours, whatever people call it; a name that is not known stays as it is."""
    known = {name.lower(): name for name in _PACKAGES}
    name = known.get(_plain(device))
    return device if name is None else f"{name}{_ENDING}"


def _plain(device: str) -> str:
    """A device as people write it, in lower case and without the ending of a provider."""
    wanted = device.lower()
    wanted = wanted[: -len(_ENDING)] if wanted.endswith(_ENDING.lower()) else wanted
    return _SHORT.get(wanted, wanted).lower()


def short(provider: str) -> str:
    """A provider without its ending: CPUExecutionProvider -> CPU."""
    return provider[: -len(_ENDING)] if provider.endswith(_ENDING) else provider
