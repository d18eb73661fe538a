"""Frozen models asked through a cache: outputs are computed once for each (sample, view) and looked up after.

A view is chosen by a counter, so what a frozen model says of a sample in a view never changes: a lookup is exact, not
an approximation. Misses are computed in full batches gathered from the steps to come, because a kernel for one or two
rows may give other bits than one for many.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

import torch
from torch import Tensor

from edgekd.data.table import Table
from edgekd.data.views import Views
from edgekd.train.batches import training_batch
from edgekd.train.precision import autocast
from edgekd.train.world import World


class OutputCache(Protocol):
    """Where outputs of one frozen model are kept, by sample id and by the number of the view among the sample's own."""

    def missing(self, ids: Tensor, slots: Tensor) -> Tensor:
        """Which of these pairs (N,) are not there: bool (N,)."""

    def read(self, ids: Tensor, slots: Tensor) -> dict[str, Tensor]:
        """Named outputs, each (N, ..), float32."""

    def write(self, ids: Tensor, slots: Tensor, outputs: Mapping[str, Tensor]) -> None:
        """Keep named outputs of these pairs."""


class CachedGuide:
    """A frozen model of the world that is asked through a cache, for one phase."""

    def __init__(
        self,
        world: World,
        name: str,
        cache: OutputCache,
        table: Table,
        views: Views,
        device: torch.device,
        precision: str,
    ) -> None:
        self._world, self._name, self._cache, self._table = world, name, cache, table
        self._views, self._device, self._precision = views, device, precision
        self._order, self._slots = torch.empty(0), torch.empty(0)
        self._epoch = 0

    def start_epoch(self, epoch: int, order: Tensor) -> None:
        """The order in which this epoch visits the rows of the table: what is ahead is known."""
        self._epoch, self._order = epoch, order
        self._slots = self._views.slot(epoch, self._table.ids[order])

    def outputs(self, start: int, stop: int) -> dict[str, Tensor]:
        """Outputs for the rows at positions start..stop of the epoch, on the training device."""
        ids, slots = self._table.ids[self._order[start:stop]], self._slots[start:stop]
        while bool(self._cache.missing(ids, slots).any()):
            self._fill(start, stop - start)
        return {name: value.to(self._device) for name, value in self._cache.read(ids, slots).items()}

    @torch.no_grad()
    def _fill(self, start: int, count: int) -> None:
        """Compute the next `count` misses from `start` on, topped up by rows that are known if the epoch has fewer."""
        ahead = self._table.ids[self._order[start:]]
        positions = start + torch.nonzero(self._cache.missing(ahead, self._slots[start:])).flatten()[:count]
        if len(positions) < count:
            known = torch.arange(len(self._order))[: count - len(positions)]
            positions = torch.cat([positions, known])
        rows = self._table.take(self._order[positions])
        batch = training_batch(self._world, rows, self._views, self._epoch, self._device)
        with autocast(self._precision, self._device):
            outputs = self._world.models[self._name](batch)
        self._cache.write(rows.ids, self._slots[positions], {name: value.float() for name, value in outputs.items()})
