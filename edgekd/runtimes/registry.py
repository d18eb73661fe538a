"""Which engines there are, by the name that a pipeline file gives them."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, cast

if TYPE_CHECKING:  # a pipeline file is checked without numpy
    from edgekd.runtimes.protocol import Runtime

RUNTIMES = {
    "openvino": "edgekd.runtimes.openvino:OpenVino",
    "onnxruntime": "edgekd.runtimes.onnxruntime:OnnxRuntime",
    "tensorrt": "edgekd.runtimes.tensorrt:TensorRt",
    "tensorrt_rtx": "edgekd.runtimes.tensorrt:TensorRtRtx",
}


def runtime(name: str) -> Runtime:
    """The adapter of an engine by name (a key of RUNTIMES); nothing of the engine itself is loaded yet."""
    module, _, attribute = RUNTIMES[name].partition(":")
    return cast("Runtime", getattr(importlib.import_module(module), attribute)())
