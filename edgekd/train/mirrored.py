"""A frozen network asked twice about each sample: as it is, and mirrored left to right."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from edgekd.errors import ConfigError
from edgekd.tasks import HeadSettings
from edgekd.train.world import Model, named_outputs


class Mirrored(nn.Module):
    """What a network says of images and of their mirror images, as one answer (data distillation, Radosavovic et al.
    2018): the mean of classes' probabilities, as their logarithms, and the mean of values.

    Args:
        model: at least one of its inputs is images, (N, C, H, W); what else it takes stays as it is.
        heads: what its outputs are; an output without a head is averaged as a value.
    """

    def __init__(self, model: Model, heads: Sequence[HeadSettings]) -> None:
        super().__init__()
        self.network, self._outputs = model.network, model.outputs
        self._classes = {head.output for head in heads if head.task == "classification"}

    def forward(self, *inputs: Tensor) -> dict[str, Tensor]:
        """Inputs, each (N, ..), to outputs by name.

        Raises:
            ConfigError: none of the inputs is images.
        """
        if all(x.dim() != 4 for x in inputs):
            raise ConfigError(
                "quantize.mirrored is for images, and no input of the network is of such",
                hint="remove `mirrored: true`",
            )
        seen = named_outputs(self.network(*inputs), self._outputs)
        other = named_outputs(self.network(*(x.flip(3) if x.dim() == 4 else x for x in inputs)), self._outputs)
        return {name: self._mean(name, value.float(), other[name].float()) for name, value in seen.items()}

    def _mean(self, name: str, seen: Tensor, other: Tensor) -> Tensor:
        if name not in self._classes:
            return (seen + other) / 2
        return torch.logaddexp(seen.log_softmax(1), other.log_softmax(1)) - math.log(2.0)


def mirrored(model: Model, heads: Sequence[HeadSettings]) -> Model:
    """The same model, asked about mirror images as well; it shares the network."""
    return Model(Mirrored(model, heads), model.inputs, model.outputs)
