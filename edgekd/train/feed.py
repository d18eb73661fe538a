"""From the rows of a table to what networks see: views, device, normalisation, memory layout."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from edgekd.data.table import Table
from edgekd.data.views import Views
from edgekd.train.world import World

Batch = dict[str, Tensor]


class Feed:
    """Training batches of one table: each sample in the view that (seed, epoch, sample) chooses for it.

    Attributes:
        ids: int64 (M,), the samples that this epoch visits here, in order.
        slots: int64 (M,), which of its own views each of them is seen in.
    """

    def __init__(self, world: World, table: Table, views: Views, device: torch.device) -> None:
        self._world, self._table, self._views, self._device = world, table, views, device
        self._rows = self.ids = self.slots = torch.empty(0, dtype=torch.int64)

    def columns(self) -> set[str]:
        """Names that a batch holds."""
        return {*self._world.normalization, *self._table.inputs, *self._table.targets}

    def start_epoch(self, epoch: int, rows: Tensor) -> None:
        """The rows of the table that this epoch visits, int64 (M,), in this order."""
        self._rows, self.ids = rows, self._table.ids[rows]
        self.slots = self._views.slot(epoch, self.ids)

    def batches(self, sizes: Sequence[int]) -> Iterator[Batch]:
        """Consecutive batches of these sizes, from the first row of the epoch on."""
        groups = torch.split(torch.arange(sum(sizes)), list(sizes))
        tables = self._table.batches([self._rows[positions] for positions in groups])
        for positions, rows in zip(groups, tables, strict=True):
            yield self._batch(rows, self.slots[positions])

    def batch(self, positions: Tensor) -> Batch:
        """The batch of some positions of the epoch, int64 (N,), whatever was visited so far."""
        return self._batch(self._table.take(self._rows[positions]), self.slots[positions])

    def _batch(self, rows: Table, slots: Tensor) -> Batch:
        view = self._views.at(rows.ids, slots)
        batch = {}
        for name, x in rows.inputs.items():
            batch[name] = to_input(self._world, name, self._views.apply(x, view.to(x.device)), self._device)
        return {**batch, **{name: y.to(self._device) for name, y in rows.targets.items()}}


def to_input(world: World, name: str, values: Tensor, device: torch.device) -> Tensor:
    """Raw values of one input (N, ..) as a network sees them: on the device, normalised, images channels-last."""
    values = values.to(device)
    normalization = world.normalization.get(name)
    values = normalization.apply(values) if normalization is not None else values.float()
    return values.contiguous(memory_format=torch.channels_last) if values.dim() == 4 else values
