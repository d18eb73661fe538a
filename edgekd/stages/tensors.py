"""What a network computes on the way, for whoever looks where another form of it parts from it."""

from __future__ import annotations

import torch

from edgekd.export.parity import Arrays
from edgekd.quantize.anchors import Anchor, anchors
from edgekd.quantize.quantizer import QuantizedNetwork, capture
from edgekd.train.world import Model

FORK_SAMPLES = 8
_EXACT, _ROUNDED = 1e-3, 0.05  # of a tensor's size; quantized values may round to the next level


def anchors_of(model: Model, feeds: Arrays) -> tuple[list[Anchor], float]:
    """What a network computes of some samples on the way, and how far another form of it may be off."""
    inputs = tuple(torch.from_numpy(feeds[name]) for name in model.inputs)
    network = model.network
    if isinstance(network, QuantizedNetwork):
        return anchors(network.graph_module, inputs), _ROUNDED
    return anchors(capture(network, inputs), inputs), _EXACT
