"""Which operations of a prepared network stay float, and why: what `edgekd check` shows before any engine is asked."""

from __future__ import annotations

import torch
from torch.fx import GraphModule, Node

from edgekd.quantize.fake_quant import FakeQuant
from edgekd.quantize.graph import input_quant, weight_quant
from edgekd.quantize.placement import _BINARY, _CONCATENATIONS, _MOVES, _POOLS, _PRODUCTS, FUSED, WEIGHTED, module_of

_aten = torch.ops.aten
_RANGE = "few of its channels are far larger than the others, and engines gain nothing in 8 bits"
_WHY = {
    "softmax": _RANGE,
    "_softmax": _RANGE,
    "layer_norm": _RANGE,
    "group_norm": _RANGE,
    "instance_norm": _RANGE,
    "rms_norm": _RANGE,
    "matmul": "a product of two activations (attention): it has no weights",
    "bmm": "a product of two activations (attention): it has no weights",
    "scaled_dot_product_attention": "attention: products of activations, and softmax",
    "batch_norm": "a BatchNorm that no convolution before it could take in",
}
_CURVED = {"gelu", "silu", "silu_", "sigmoid", "sigmoid_", "tanh", "hardswish", "hardswish_", "hardsigmoid", "elu",
           "mish", "leaky_relu", "leaky_relu_", "prelu", "softplus", "exp", "erf"}  # fmt: skip
_GATES = {"sigmoid", "sigmoid_", "hardsigmoid", "hardsigmoid_"}


def stays_float(graph: GraphModule) -> tuple[list[dict[str, str]], int]:
    """Operations that stay float, as rows of layer, kind and why; and how many layers with weights do not.

    Args:
        graph: that of a prepared network (quantizer.prepare).
    """
    rows, quantized = [], 0
    for node in graph.graph.nodes:
        if node.op != "call_function" or not _computes(node):
            continue
        if node.target in WEIGHTED:
            if weight_quant(graph, node) is not None and input_quant(graph, node) is not None:
                quantized += 1
            else:
                rows.append(_row(node, "kept float by `layers`, `float_outputs` or `float_above`"))
        elif not _in_grid(graph, node):
            rows.append(_row(node, _why(node)))
    return rows, quantized


def _computes(node: Node) -> bool:
    """Whether a node makes new real numbers: what only moves or indexes them is in the precision that it gets."""
    value = node.meta.get("val")
    real = isinstance(value, torch.Tensor) and value.is_floating_point()
    return real and node.target not in _MOVES | FUSED and _name(node) not in _MOVING


_MOVING = {"slice", "select", "unsqueeze", "squeeze", "expand", "clone", "_to_copy", "to", "chunk", "split", "permute",
           "alias", "detach", "repeat", "unflatten", "unbind", "getitem", "zeros", "ones", "full", "arange",
           "lift_fresh_copy", "pad", "constant_pad_nd", "roll", "pixel_shuffle"}  # fmt: skip


def _in_grid(graph: GraphModule, node: Node) -> bool:
    """Whether every real input of an operation is rounded."""
    modules = dict(graph.named_modules())
    inputs = [n for n in node.all_input_nodes if isinstance(n.meta.get("val"), torch.Tensor) or n.op == "call_module"]
    return bool(inputs) and all(
        n.op == "call_module" and isinstance(modules.get(str(n.target)), FakeQuant) for n in inputs
    )


def _row(node: Node, why: str) -> dict[str, str]:
    return {"layer": module_of(node) or node.name, "kind": _name(node), "why": why}


def _why(node: Node) -> str:
    name = _name(node)
    if name in _WHY:
        return _WHY[name]
    if name in _CURVED:
        return "a curve that engines compute in float"
    if node.target in _BINARY:
        return "a sum that no convolution gave: its range is that of the whole skip"
    if node.target in _PRODUCTS:
        return _why_product(node)
    if node.target in _POOLS | _CONCATENATIONS:
        return "nothing that reads it is in 8 bits"
    return "engines have no 8-bit form of it"


def _why_product(node: Node) -> str:
    """A gate is quantized where a convolution gave its maps; behind a curve (SiLU, hardswish) they are float."""
    sources = {_name(source) for source in node.all_input_nodes}
    if sources & _CURVED - _GATES and sources & _GATES:
        return "a gate of maps that a curve gave, which engines compute in float"
    return "a product that is no gate of a channel"


def _name(node: Node) -> str:
    return str(getattr(node.target, "__name__", node.target)).split(".")[0]
