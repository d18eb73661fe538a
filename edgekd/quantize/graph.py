"""What calibration reads off a prepared graph: its weighted layers, what follows them, statistics of what they give."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import GraphModule, Interpreter, Node

from edgekd.quantize.fake_quant import BiasGrid, FakeQuant
from edgekd.quantize.placement import FUSED, WEIGHTED

Batches = Iterable[tuple[Tensor, ...]]


@dataclass(frozen=True)
class Layer:
    """A convolution or linear layer of a graph.

    Attributes:
        node: the operation.
        weight: name of its weight among the graph's parameters.
        bias: name of its bias, if it has one.
        groups: of a convolution; 1 for a linear layer.
    """

    node: Node
    weight: str
    bias: str | None
    groups: int


def layers_of(graph: GraphModule) -> list[Layer]:
    """All layers whose weight is a stored parameter, in the order of execution."""
    found = []
    for node in graph.graph.nodes:
        if node.op != "call_function" or node.target not in WEIGHTED:
            continue
        weight = _parameter(graph, node.args[1])
        if weight is not None:
            bias = _parameter(graph, node.args[2]) if len(node.args) > 2 else None
            found.append(Layer(node, weight, bias, _groups(node)))
    return found


def weight_quant(graph: GraphModule, node: Node) -> FakeQuant | None:
    """What rounds a layer's weight, if anything does."""
    argument = node.args[1]
    return _fake_quant(graph, argument) if isinstance(argument, Node) else None


def input_quant(graph: GraphModule, node: Node) -> FakeQuant | None:
    """What rounds a layer's input, if anything does."""
    argument = node.args[0]
    return _fake_quant(graph, argument) if isinstance(argument, Node) else None


def reader(graph: GraphModule, node: Node) -> tuple[Node, list[Node]] | None:
    """The only operation that reads a node, behind fake-quants and activations, and those activations; else None."""
    activations: list[Node] = []
    while len(node.users) == 1:
        (user,) = node.users
        if _fake_quant(graph, user) is not None:
            node = user
        elif user.op == "call_function" and user.target in FUSED:
            activations.append(user)
            node = user
        else:
            return user, activations
    return None


class Watched(Interpreter):
    """Runs a graph and hands some nodes' values to a function, whose answer goes on in their place."""

    def __init__(self, graph: GraphModule, wanted: Collection[Node], see: Callable[[Node, Tensor], Tensor]) -> None:
        super().__init__(graph)
        self._wanted, self._see = wanted, see

    def run_node(self, n: Node) -> Any:
        value = super().run_node(n)
        return self._see(n, value) if n in self._wanted else value


@torch.no_grad()
def channel_means(graph: GraphModule, nodes: Collection[Node], batches: Batches) -> dict[Node, Tensor]:
    """Mean of each channel of some layers' outputs, over all samples and positions: float64 (C,)."""
    sums: dict[Node, Tensor] = {}
    counts: dict[Node, int] = {}

    def see(node: Node, value: Tensor) -> Tensor:
        rows = _by_channel(node, value)
        sums[node] = sums.get(node, torch.zeros(())) + rows.double().sum(1)
        counts[node] = counts.get(node, 0) + rows.shape[1]
        return value

    runner = Watched(graph, nodes, see)
    for batch in batches:
        runner.run(*batch)
    return {node: total / counts[node] for node, total in sums.items()}


@torch.no_grad()
def channel_tops(graph: GraphModule, nodes: Collection[Node], batches: Batches) -> dict[Node, Tensor]:
    """Largest magnitude of each channel of some nodes: (C,)."""
    found: dict[Node, Tensor] = {}

    def see(node: Node, value: Tensor) -> Tensor:
        tops = _by_channel(node, value).abs().amax(1)
        found[node] = torch.maximum(found[node], tops) if node in found else tops
        return value

    runner = Watched(graph, nodes, see)
    for batch in batches:
        runner.run(*batch)
    return found


@torch.no_grad()
def correct_biases(
    graph: GraphModule,
    biases: Mapping[Node, Tensor],
    wanted: Mapping[Node, Tensor],
    batches: Sequence[tuple[Tensor, ...]],
) -> None:
    """Change biases (C,) in place so that each layer's channels have the wanted means.

    Layer by layer in one run over all batches at once: each sees what the corrected layers before it give.
    """

    def see(node: Node, value: Tensor) -> Tensor:
        missing = (wanted[node] - _by_channel(node, value).double().mean(1)).to(value.dtype)
        biases[node].add_(missing)
        return value + (missing if _last(node) else missing.reshape(-1, *[1] * (value.dim() - 2)))

    Watched(graph, biases.keys(), see).run(*(torch.cat(parts) for parts in zip(*batches, strict=True)))


def _by_channel(node: Node, value: Tensor) -> Tensor:
    """A layer's output as (C, everything else)."""
    return value.movedim(-1 if _last(node) else 1, 0).flatten(1)


def _last(node: Node) -> bool:
    """Whether channels are the last axis: after a linear layer."""
    return bool(node.target is torch.ops.aten.linear.default)


def _parameter(graph: GraphModule, argument: object) -> str | None:
    """The name of the parameter that a node hands on, rounded or not."""
    if not isinstance(argument, Node):
        return None
    if isinstance(_module(graph, argument), (FakeQuant, BiasGrid)):
        return _parameter(graph, argument.args[0])
    if argument.op != "get_attr":
        return None
    name = str(argument.target)
    return name if name in dict(graph.named_parameters(remove_duplicate=False)) else None


def _fake_quant(graph: GraphModule, node: Node) -> FakeQuant | None:
    """The fake-quant that a node calls, if it calls one."""
    module = _module(graph, node)
    return module if isinstance(module, FakeQuant) else None


def _module(graph: GraphModule, node: Node) -> nn.Module | None:
    """The module that a node calls, if it calls one."""
    return graph.get_submodule(str(node.target)) if node.op == "call_module" else None


def _groups(node: Node) -> int:
    if node.target is torch.ops.aten.linear.default:
        return 1
    return int(node.args[6]) if len(node.args) > 6 else 1  # type: ignore[arg-type]
