"""Captured graphs in functional form: what is changed in place in the author's code is computed anew in the graph.

An in-place operation (`hardswish_`, `dropout_`) gives the values of its plain form, which is the one that tables of
operations know, and which the ONNX exporter need not take apart.
"""

from __future__ import annotations

import torch
from torch.fx import GraphModule, Node

_aten = torch.ops.aten


def make_functional(graph: GraphModule) -> None:
    """Replace operations in place and `as_strided` that moves nothing, where nobody can tell the difference."""
    for node in list(graph.graph.nodes):
        if node.op != "call_function" or not isinstance(node.target, torch._ops.OpOverload):
            continue
        plain = _plain_form(node.target)
        if plain is not None and _alone(node):
            node.target = plain
        elif node.target is _aten.as_strided.default and _moves_nothing(node):
            node.replace_all_uses_with(node.all_input_nodes[0])
            graph.graph.erase_node(node)
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
    source, reader = node.args[0], node
    while isinstance(source, Node) and list(source.users) == [reader]:
        if not _may_share(source):
            return source.op == "call_function"
        source, reader = source.args[0], source
    return False


def _may_share(node: Node) -> bool:
    """Whether an operation may hand on the memory of its first argument: a view, or dropout out of training."""
    if not isinstance(node.target, torch._ops.OpOverload):
        return False
    returns = node.target._schema.returns
    return any(r.alias_info is not None for r in returns) or node.target in (_aten.dropout.default, _aten.to.dtype)


def _moves_nothing(node: Node) -> bool:
    """Whether `as_strided` hands on its input: adaptive pooling says so of maps whose channels lie last."""
    if node.args[3:] not in ((), (None,), (0,)) or node.kwargs:
        return False
    before, after = node.all_input_nodes[0].meta.get("val"), node.meta.get("val")
    if not isinstance(before, torch.Tensor) or not isinstance(after, torch.Tensor) or before.dim() != after.dim():
        return False
    return all(
        size == now and (size == 1 or step == step_now)
        for size, now, step, step_now in zip(before.shape, after.shape, before.stride(), after.stride(), strict=True)
    )
