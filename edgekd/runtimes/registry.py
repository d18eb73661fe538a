"""Which engines there are, by the name that a pipeline file gives them."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, cast

from edgekd.errors import ConfigError
from edgekd.runtimes.onnxruntime_providers import PACKAGES

if TYPE_CHECKING:  # a pipeline file is checked without numpy
    from edgekd.runtimes.protocol import Runtime

RUNTIMES = {
    "openvino": "edgekd.runtimes.openvino:OpenVino",
    "onnxruntime": "edgekd.runtimes.onnxruntime:OnnxRuntime",
    "tensorrt": "edgekd.runtimes.tensorrt:TensorRt",
    "tensorrt_rtx": "edgekd.runtimes.tensorrt:TensorRtRtx",
}

_TYPED = {"f32": "f32", "f16": "f16", "bf16": "bf16", "int8": "int8_f16"}
# The precisions of each engine, and the ONNX flavour that serves each. OpenVINO's plugins round to half precision
# inside: that is a hint to them, not another graph.
FLAVOURS = {
    "openvino": {"f32": "f32", "f16": "f32", "bf16": "f32", "int8": "uint8"},
    "onnxruntime": {"f32": "f32", "f16": "f16", "int8": "uint8"},
    "tensorrt": _TYPED,
    "tensorrt_rtx": _TYPED,
}
# The packages that an engine may come in: its version is that of the first that is there.
ENGINE_PACKAGES = {
    "openvino": ("openvino",),
    "onnxruntime": PACKAGES,
    "tensorrt": ("tensorrt",),
    "tensorrt_rtx": ("tensorrt-rtx",),
}
# The oldest major version of an engine that its adapter works with: TensorRT has strongly typed networks since 10.
OLDEST = {"tensorrt": 10}


def runtime(name: str) -> Runtime:
    """The adapter of an engine by name (a key of RUNTIMES); nothing of the engine itself is loaded yet.

    Raises:
        ConfigError: there is none of that name.
    """
    if name not in RUNTIMES:
        raise ConfigError(f"unknown runtime {name!r}", hint=f"known are: {', '.join(sorted(RUNTIMES))}")
    module, _, attribute = RUNTIMES[name].partition(":")
    return cast("Runtime", getattr(importlib.import_module(module), attribute)())
