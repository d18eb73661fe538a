"""PyTorch's ONNX exporter, told to keep what it makes anew for every export though it is the same each time.

Its tables of operators and of decompositions and the list of composite operators are .4 s of each of the hundreds of
exports in the tests, and nothing of that is ours. The files that it writes are the same byte for byte.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable
from typing import Any

_EXPORTER = "torch.onnx._internal.exporter._registration"


def remember_operators() -> None:
    """From now on in this process, if the exporter is there already; otherwise it is left alone."""
    if exporter := sys.modules.get(_EXPORTER):
        make = exporter.ONNXRegistry.__dict__["from_torchlib"]
        if not hasattr(make.__func__, "cache_info"):
            exporter.ONNXRegistry.from_torchlib = classmethod(functools.cache(make.__func__))
            _remember_decompositions()


def _remember_decompositions() -> None:
    import torch
    from torch._export import utils
    from torch.export import decomp_utils, exported_program
    from torch.onnx._internal.exporter import _decomp

    def known() -> tuple[int, int]:
        """A library that is imported later may bring operators of its own."""
        return len(torch._C._dispatch_get_all_op_names()), len(torch._decomp.decomposition_table)

    composites = _remembered(utils._collect_all_valid_cia_ops, known)
    for module in (utils, decomp_utils, exported_program):
        module._collect_all_valid_cia_ops = composites
    _decomp.create_onnx_friendly_decomposition_table = _remembered(
        _decomp.create_onnx_friendly_decomposition_table, known
    )


def _remembered(make: Callable[..., Any], known: Callable[[], Any]) -> Callable[..., Any]:
    """`make` with one value kept by what is known and by its argument, if any; each caller has a copy of its own."""
    values: dict[Any, Any] = {}

    @functools.wraps(make)
    def found(*arguments: Any) -> Any:
        key = (known(), *map(frozenset, arguments))
        if key not in values:
            values.clear()
            values[key] = make(*arguments)
        return values[key].copy()

    return found
