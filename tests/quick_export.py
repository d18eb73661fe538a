"""PyTorch's ONNX exporter, told to keep its table of operators: it makes the same one anew for every export.

That is .5 s of each of the hundreds of exports in the tests, and nothing of it is ours.
"""

from __future__ import annotations

import functools
import sys

_MODULE = "torch.onnx._internal.exporter._registration"


def remember_operators() -> None:
    """From now on in this process, if the exporter is there already; otherwise it is left alone."""
    if exporter := sys.modules.get(_MODULE):
        make = exporter.ONNXRegistry.__dict__["from_torchlib"]
        if not hasattr(make.__func__, "cache_info"):
            exporter.ONNXRegistry.from_torchlib = classmethod(functools.cache(make.__func__))
