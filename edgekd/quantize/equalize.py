"""Cross-layer equalisation: channels of one range, so that one scale serves them all (Nagel et al. 2019).

Between two layers a channel may be divided by any s > 0 in the first and multiplied by it in the second; a ReLU lets
that through. One scale per tensor then has to serve channels of like ranges. Weights have a scale per output channel,
so the first layer pays nothing. What the second pays depends: a depthwise one has one input channel per output channel
and pays nothing; in a dense one, input channels of unlike size share a scale, so the ranges are balanced half way
between activations and weights (SmoothQuant, Xiao et al. 2023).

A ReLU6 clips at a value that cannot be scaled. A channel that comes near it keeps its range; the others, which it never
clips, are raised towards it.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.fx import GraphModule, Node

from edgekd.quantize.graph import Batches, Layer, channel_tops, layers_of, reader
from edgekd.quantize.placement import CONVOLUTIONS, TRANSPOSED

_aten = torch.ops.aten
_RELU = {_aten.relu.default, _aten.relu_.default}
_LEAST = 1e-2  # a channel is made at most a hundred times as large: dead ones stay dead
_MARGIN = 1.1  # between the largest value seen and a ReLU6's limit


@dataclass(frozen=True)
class Pair:
    """Two layers, of which the second alone reads the first. `limit`: where an activation between them clips."""

    first: Layer
    second: Layer
    between: Node
    limit: float | None


def pairs_of(graph: GraphModule) -> list[Pair]:
    """Neighbouring convolutions with nothing but ReLUs between them, from input to output."""
    layers = {layer.node: layer for layer in layers_of(graph) if layer.node.target in CONVOLUTIONS - TRANSPOSED}
    uses = Counter(layer.weight for layer in layers.values())
    found = []
    for first in layers.values():
        read = reader(graph, first.node)
        if read is None or read[0] not in layers:
            continue
        second, activations = layers[read[0]], read[1]
        limits = [_limit(node) for node in activations if node.target not in _RELU]
        if uses[first.weight] == uses[second.weight] == 1 and None not in limits:
            between = activations[-1] if activations else first.node
            found.append(Pair(first, second, between, min((x for x in limits if x is not None), default=None)))
    return found


@torch.no_grad()
def equalize(graph: GraphModule, batches: Batches) -> int:
    """Rescale the weights and biases of a prepared, observing graph in place; how many pairs were.

    What the network computes stays as it is, up to rounding and to values of unseen data that a ReLU6 now clips.
    """
    pairs = pairs_of(graph)
    tops = channel_tops(graph, [pair.between for pair in pairs], batches)
    for pair in pairs:
        _rescale(graph, pair, _factors(graph, pair, tops[pair.between]))
    return len(pairs)


def _factors(graph: GraphModule, pair: Pair, tops: Tensor) -> Tensor:
    """What each channel is divided by: (C,), at most 1 relative to the largest channel."""
    weight = _by_input(graph.get_parameter(pair.second.weight).detach(), pair.second.groups)
    sizes = weight.abs().flatten(1).amax(1).clamp_min(1e-12)
    depthwise = pair.second.groups == len(tops)
    wanted = tops if depthwise else (tops / sizes).sqrt()
    wanted = (wanted / wanted.max().clamp_min(1e-12)).clamp(_LEAST, 1.0)
    if pair.limit is None:
        return wanted
    free = tops * _MARGIN < pair.limit
    return torch.where(free, wanted.maximum(tops * _MARGIN / pair.limit).clamp(_LEAST, 1.0), torch.ones_like(wanted))


def _rescale(graph: GraphModule, pair: Pair, factors: Tensor) -> None:
    first, second = graph.get_parameter(pair.first.weight), graph.get_parameter(pair.second.weight)
    first.div_(factors.reshape(-1, *[1] * (first.dim() - 1)))
    if pair.first.bias is not None:
        graph.get_parameter(pair.first.bias).div_(factors)
    second.copy_(
        _by_output(_by_input(second, pair.second.groups) * factors.reshape(-1, *[1] * (second.dim() - 1)), second)
    )


def _by_input(weight: Tensor, groups: int) -> Tensor:
    """A weight (O, I / groups, ..) by its input channels: (I, O / groups, ..)."""
    parts = weight.reshape(groups, weight.shape[0] // groups, *weight.shape[1:])
    return parts.transpose(1, 2).reshape(groups * weight.shape[1], weight.shape[0] // groups, *weight.shape[2:])


def _by_output(rows: Tensor, like: Tensor) -> Tensor:
    """The inverse of `_by_input`."""
    groups = rows.shape[0] // like.shape[1]
    parts = rows.reshape(groups, like.shape[1], *rows.shape[1:]).transpose(1, 2)
    return parts.reshape(like.shape)


def _limit(node: Node) -> float | None:
    """Where an activation that is 0 below 0 clips from above (ReLU6 and its like); None for any other."""
    low, high = (*node.args[1:], None, None)[:2]
    return float(high) if low == 0 and isinstance(high, (int, float)) else None
