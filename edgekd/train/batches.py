"""From rows of a table to what networks see: views, device, normalisation, memory layout."""

from __future__ import annotations

import torch
from torch import Tensor

from edgekd.data.table import Table
from edgekd.data.views import Views
from edgekd.train.world import World


def training_batch(world: World, rows: Table, views: Views, epoch: int, device: torch.device) -> dict[str, Tensor]:
    """Inputs in the view that (seed, epoch, sample) chooses, normalised; targets under their own names."""
    view = views.choose(epoch, rows.ids)
    batch = {name: to_input(world, name, views.apply(x, view), device) for name, x in rows.inputs.items()}
    return {**batch, **{name: y.to(device) for name, y in rows.targets.items()}}


def to_input(world: World, name: str, values: Tensor, device: torch.device) -> Tensor:
    """Raw values of one input (N, ..) as a network sees them: on the device, normalised, images channels-last."""
    values = values.to(device)
    normalization = world.normalization.get(name)
    values = normalization.apply(values) if normalization is not None else values.float()
    return values.contiguous(memory_format=torch.channels_last) if values.dim() == 4 else values
