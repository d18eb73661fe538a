"""What a network computes on the way, for whoever looks where another form of it parts from it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.fx import GraphModule, Node

from edgekd.export.forks import Anchor
from edgekd.export.parity import Arrays
from edgekd.quantize.graph import Watched
from edgekd.quantize.placement import module_of
from edgekd.quantize.quantizer import QuantizedNetwork, capture
from edgekd.train.world import Model

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
FORK_SAMPLES = 8
_EXACT, ROUNDED = 1e-3, 0.05  # of a tensor's size; quantized values may round to the next level


def anchors_of(model: Model, feeds: Arrays) -> tuple[list[Anchor], float]:
    """What a network computes of some samples on the way, and how far another form of it may be off."""
    inputs = tuple(torch.from_numpy(feeds[name]) for name in model.inputs)
    network = model.network
    if isinstance(network, QuantizedNetwork):
        return anchors(network.graph_module, inputs), ROUNDED
    return anchors(capture(network, inputs), inputs), _EXACT


@torch.no_grad()
def anchors(graph: GraphModule, inputs: Sequence[Tensor]) -> list[Anchor]:
    """Values of all anchors of a captured network, in the order of execution."""
    found = [Anchor("Input", INPUT, x.detach().cpu().numpy()) for x in inputs]
    shown: dict[Node, tuple[str, str]] = {}
    for node in graph.graph.nodes:
        kind = _OF_TARGET.get(node.target)
        if node.op == "call_function" and kind is not None:
            shown[_after_norm(node)] = kind, module_of(node)

    def see(node: Node, value: Any) -> Any:
        result = value[0] if isinstance(value, (tuple, list)) else value
        found.append(Anchor(*shown[node], result.detach().cpu().numpy()))
        return value

    Watched(graph, shown.keys(), see).run(*inputs)
    return found


def _after_norm(node: Node) -> Node:
    """The BatchNorm that is a convolution's only reader, which exporters fold into it; else the node itself."""
    users = list(node.users)
    if len(users) != 1 or users[0].op != "call_function":
        return node
    name = str(getattr(users[0].target, "__name__", users[0].target)).split(".")[0]
    return users[0] if name in _NORMS else node
