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

from edgekd.train.feed import Batch, Feed
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
    """A frozen model of the world that is asked through a cache, for one phase; it sees `rows` rows at once."""

    def __init__(
        self, world: World, name: str, cache: OutputCache, feed: Feed, device: torch.device, precision: str, rows: int
    ) -> None:
        self._world, self._name, self._cache, self._feed, self._rows = world, name, cache, feed, rows
        self._device, self._precision = device, precision

    def outputs(self, batch: Batch, start: int) -> dict[str, Tensor]:
        """Outputs for a batch, which begins at a position of the epoch, on the training device."""
        stop = start + len(next(iter(batch.values())))
        ids, slots = self._feed.ids[start:stop], self._feed.slots[start:stop]
        missing = self._cache.missing(ids, slots)
        if bool(missing.all()):
            self._compute(batch, torch.arange(start, stop))
            missing = torch.zeros_like(missing)
        while bool(missing.any()):
            self._fill(start)
            missing = self._cache.missing(ids, slots)
        return {name: value.to(self._device) for name, value in self._cache.read(ids, slots).items()}

    def _fill(self, start: int) -> None:
        """Compute a batch of misses from `start` on, topped up by rows that are known if the epoch has fewer."""
        feed, count = self._feed, self._rows
        positions = start + torch.nonzero(self._cache.missing(feed.ids[start:], feed.slots[start:])).flatten()[:count]
        if len(positions) < count:
            known = torch.arange(len(feed.ids))[: count - len(positions)]
            positions = torch.cat([positions, known])
        self._compute(feed.batch(positions), positions)

    def _compute(self, batch: Batch, positions: Tensor) -> None:
        with autocast(self._precision, self._device):
            outputs = self._world.models[self._name].answer(batch, self._rows)
        kept = {name: value.float() for name, value in outputs.items()}
        self._cache.write(self._feed.ids[positions], self._feed.slots[positions], kept)
