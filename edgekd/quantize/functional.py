"""Captured graphs in functional form: what is changed in place in the author's code is computed anew in the graph.

An in-place operation (`hardswish_`, `dropout_`) gives the values of its plain form, which is the one that tables of
operations know, and which the ONNX exporter need not take apart. Others (`y[:, :4] *= 2`) write into a part of what
somebody else reads: no rewriting of graphs sees that, it would go lost, so torch itself takes such a graph apart.
Pooling to one value is a mean: of maps whose channels lie last in memory the exporter would make a gather over computed
indices (`as_strided`).
"""

from __future__ import annotations

from typing import Any

import torch
from torch.export import ExportedProgram, default_decompositions
from torch.fx import GraphModule, Node

_aten = torch.ops.aten
BATCH_NORM = _aten.batch_norm.default
_IN_PLACE = (
    "relu_", "relu6_", "hardtanh_", "leaky_relu_", "elu_", "celu_", "hardswish_", "hardsigmoid_", "silu_", "mish_",
    "gelu_", "sigmoid_", "tanh_", "clamp_", "clamp_min_", "clamp_max_", "dropout_", "add_", "sub_", "mul_", "div_",
)  # fmt: skip
"""Operations that give in place what their plain form gives, where all tensors are of one type."""
_FRESH = (
    "conv1d", "conv2d", "conv3d", "convolution", "linear", "matmul", "mm", "bmm", "addmm",
    "batch_norm", "layer_norm", "group_norm", "instance_norm", "add", "sub", "mul", "div", "cat", "mean", "softmax",
    "max_pool2d", "avg_pool2d", "adaptive_avg_pool2d", *(name[:-1] for name in _IN_PLACE if name != "dropout_"),
)  # fmt: skip
"""Operations whose result lies in memory of its own. Of no others is it known: `getitem` of a chunk and some results of
`einsum` are views that no schema marks."""


def own_batch_norm(*args: Any) -> Any:
    """BatchNorm that torchao does not know, for it would fold one into a layer that others read as well.

    And for one that cannot be folded it traces a hundred patterns of its own way to train with BatchNorm, which takes
    up to half a minute and finds nothing.
    """
    return BATCH_NORM(*args)


def functional_module(program: ExportedProgram) -> GraphModule:
    """The graph of a captured network, in which no operation writes into what another one made."""
    graph = program.module()
    assert isinstance(graph, GraphModule)
    _rewrite(graph)
    if any(_is_in_place(node) for node in graph.graph.nodes):
        # An einsum of one operand gives a view of it, which its schema does not say.
        table = {op: plain for op, plain in default_decompositions().items() if op is _aten.einsum.default}
        graph = program.run_decompositions(table).module()
        assert isinstance(graph, GraphModule)
        _restore_norms(graph)
        _rewrite(graph)
    return graph


def _is_in_place(node: Node) -> bool:
    known = node.op == "call_function" and isinstance(node.target, torch._ops.OpOverload)
    return known and node.target._schema.is_mutable  # type: ignore[union-attr]


def _restore_norms(graph: GraphModule) -> None:
    """BatchNorm as it was written: torch's functional form gives three values, of which the first is meant."""
    for node in list(graph.graph.nodes):
        if node.target is not _aten._native_batch_norm_legit_no_training.default:
            continue
        node.target, (*tensors, momentum, eps) = BATCH_NORM, node.args
        node.args = (*tensors, False, momentum, eps, True)
        node.meta["val"] = node.meta["val"][0]
        for first in list(node.users):
            first.replace_all_uses_with(node)
            graph.graph.erase_node(first)
    graph.recompile()


def _rewrite(graph: GraphModule) -> None:
    """Replace operations in place, pools to one value and other forms of ReLU6 where nobody can tell the difference."""
    for node in list(graph.graph.nodes):
        if node.op != "call_function" or not isinstance(node.target, torch._ops.OpOverload):
            continue
        plain = _plain_form(node)
        if plain is not None and _alone(node):
            node.target = plain
        if node.target is _aten.relu6.default:
            node.target, node.args = _aten.hardtanh.default, (node.args[0], 0.0, 6.0)  # as nn.ReLU6 is captured
        elif node.target is _aten.adaptive_avg_pool2d.default and _is_mean(node):
            node.target, node.args = _aten.mean.dim, (node.args[0], [-1, -2], True)
    graph.recompile()


def _plain_form(node: Node) -> torch._ops.OpOverload | None:
    """`relu` for `relu_`; None for what is not in place, or might come out of another type."""
    name = _name_of(node)
    if name not in _IN_PLACE:
        return None
    values = [one.meta.get("val") for one in node.all_input_nodes]
    if len({value.dtype if isinstance(value, torch.Tensor) else None for value in values}) != 1:
        return None
    assert isinstance(node.target, torch._ops.OpOverload)
    found = getattr(getattr(_aten, name[:-1], None), node.target._overloadname, None)
    return found if isinstance(found, torch._ops.OpOverload) else None


def _name_of(node: Node) -> str:
    """The name of one of torch's own operations, without its overload."""
    known = isinstance(node.target, torch._ops.OpOverload) and node.target.namespace == "aten"
    return node.target._schema.name.removeprefix("aten::") if known else ""  # type: ignore[union-attr]


def _alone(node: Node) -> bool:
    """Whether nothing else reads what a node changes, nor anything that may share memory with it."""
    source: object = node.args[0]
    reader = node
    while isinstance(source, Node) and list(source.users) == [reader]:
        if _name_of(source) in _FRESH:
            return True
        if not _hands_on(source):
            return False
        reader = source
        source = source.args[0]
    return False


def _hands_on(node: Node) -> bool:
    """Whether a result may share memory with the first argument and with nothing else: a view, or idle dropout."""
    returns = node.target._schema.returns if isinstance(node.target, torch._ops.OpOverload) else []
    return _name_of(node) == "dropout" or (len(returns) == 1 and returns[0].alias_info is not None)


def _is_mean(pool: Node) -> bool:
    """Whether an adaptive pool gives one value for each channel, of maps whose rows do not lie densely in memory."""
    maps = pool.all_input_nodes[0].meta.get("val")
    return pool.args[1] == [1, 1] and isinstance(maps, torch.Tensor) and maps.stride(-1) != 1
