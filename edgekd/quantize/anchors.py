"""Tensors of a captured network that another form of it has too: what a file or an engine is held against.

Inputs, convolutions, matrix products, additions and activations keep their order in every form of a network, so the
k-th of a kind in one form is the k-th of that kind in the other.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.fx import GraphModule, Interpreter, Node

from edgekd.quantize.placement import module_of

_aten = torch.ops.aten
_KINDS = {
    "Conv": {_aten.conv1d.default, _aten.conv2d.default, _aten.conv3d.default},
    "Gemm": {_aten.linear.default},
    "Relu": {_aten.relu.default, _aten.relu_.default},
    "Add": {_aten.add.Tensor, _aten.add_.Tensor},
}
_OF_TARGET = {target: kind for kind, targets in _KINDS.items() for target in targets}
INPUT = "the input"
_NORMS = {"batch_norm", "_native_batch_norm_legit_no_training", "native_batch_norm"}


@dataclass(frozen=True)
class Anchor:
    """One tensor of a PyTorch graph: its kind, the module whose code it is, its value."""

    kind: str
    module: str
    value: NDArray[Any]


@torch.no_grad()
def anchors(graph: GraphModule, inputs: Sequence[Tensor]) -> list[Anchor]:
    """Values of all anchors of a captured network, in the order of execution."""
    found = [Anchor("Input", INPUT, x.detach().cpu().numpy()) for x in inputs]
    shown: dict[Node, tuple[str, str]] = {}
    for node in graph.graph.nodes:
        kind = _OF_TARGET.get(node.target)
        if node.op == "call_function" and kind is not None:
            shown[_after_norm(node)] = kind, module_of(node)

    class Run(Interpreter):
        def run_node(self, n: Node) -> Any:
            value = super().run_node(n)
            if n in shown:
                result = value[0] if isinstance(value, (tuple, list)) else value
                found.append(Anchor(*shown[n], result.detach().cpu().numpy()))
            return value

    Run(graph).run(*inputs)
    return found


def _after_norm(node: Node) -> Node:
    """The BatchNorm that is a convolution's only reader, which exporters fold into it; else the node itself."""
    users = list(node.users)
    if len(users) != 1 or users[0].op != "call_function":
        return node
    name = str(getattr(users[0].target, "__name__", users[0].target)).split(".")[0]
    return users[0] if name in _NORMS else node
