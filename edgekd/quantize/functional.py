"""Captured graphs in functional form: what is changed in place in the author's code is computed anew in the graph.

An in-place operation (`hardswish_`, `dropout_`) gives the values of its plain form, which is the one that tables of
operations know, and which the ONNX exporter need not take apart. Pooling to one value is a mean: of maps whose channels
lie last in memory the exporter would make a gather over computed indices (`as_strided`).
"""

from __future__ import annotations

import torch
from torch.fx import GraphModule, Node

_aten = torch.ops.aten


def make_functional(graph: GraphModule) -> None:
    """Replace operations in place, and pools to one value, where nobody can tell the difference."""
    for node in list(graph.graph.nodes):
        if node.op != "call_function" or not isinstance(node.target, torch._ops.OpOverload):
            continue
        plain = _plain_form(node.target)
        if plain is not None and _alone(node):
            node.target = plain
        elif node.target is _aten.adaptive_avg_pool2d.default and _is_mean(node):
            node.target, node.args = _aten.mean.dim, (node.args[0], [-1, -2], True)
    graph.recompile()


def _plain_form(operation: torch._ops.OpOverload) -> torch._ops.OpOverload | None:
    """`relu` for `relu_`; None for what changes nothing, or more than its first argument."""
    schema = operation._schema
    name = schema.name.removeprefix("aten::")
    changed = [index for index, a in enumerate(schema.arguments) if a.alias_info is not None and a.alias_info.is_write]
    if changed != [0] or not name.endswith("_"):
        return None
    found = getattr(getattr(_aten, name[:-1], None), operation._overloadname, None)
    return found if isinstance(found, torch._ops.OpOverload) else None


def _alone(node: Node) -> bool:
    """Whether nothing else reads what a node changes, nor anything that may share memory with it."""
    source: object = node.args[0]
    reader = node
    while isinstance(source, Node) and list(source.users) == [reader]:
        if not _may_share(source):
            return source.op == "call_function"
        reader = source
        source = source.args[0]
    return False


def _may_share(node: Node) -> bool:
    """Whether an operation may hand on the memory of its first argument: a view, or dropout out of training."""
    if not isinstance(node.target, torch._ops.OpOverload):
        return False
    returns = node.target._schema.returns
    return any(r.alias_info is not None for r in returns) or node.target in (_aten.dropout.default, _aten.to.dtype)


def _is_mean(pool: Node) -> bool:
    """Whether an adaptive pool gives one value for each channel, of maps whose rows do not lie densely in memory."""
    maps = pool.all_input_nodes[0].meta.get("val")
    return pool.args[1] == [1, 1] and isinstance(maps, torch.Tensor) and maps.stride(-1) != 1
