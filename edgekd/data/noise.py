"""A table without data: rows of seeded Gaussian noise, for generators to make samples of."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from edgekd.data.counters import hash_counter
from edgekd.data.table import Table

_UNIT = 2.0**-63


@dataclass(frozen=True)
class NoiseTable:
    """Standard normal rows drawn by counter (seed, epoch, row, place): the same in any batch, others in each epoch.

    Attributes:
        name: of its one input.
        count: rows of an epoch.
        shape: of a row.
        seed: of all its numbers.
        epoch: which epoch's numbers these are.
    """

    name: str
    count: int
    shape: tuple[int, ...]
    seed: int
    epoch: int = 0

    def at(self, epoch: int) -> NoiseTable:
        """The table as it is in an epoch."""
        return dataclasses.replace(self, epoch=epoch)

    @property
    def inputs(self) -> Mapping[str, Tensor]:
        """The name, shape and type: a tensor on the device `meta`, (N, ..)."""
        return {self.name: torch.empty(self.count, *self.shape, device="meta")}

    @property
    def targets(self) -> Mapping[str, Tensor]:
        return {}

    @property
    def ids(self) -> Tensor:
        return torch.arange(self.count)

    def __len__(self) -> int:
        return self.count

    def take(self, rows: Tensor) -> Table:
        """The table of these rows, int64 (M,): float32 (M, ..)."""
        width = math.prod(self.shape)
        places = rows[:, None] * width + torch.arange(width)
        # Box and Muller 1958, with a radius and an angle for each number.
        first, second = (
            (hash_counter(self.seed, f"noise {part}", self.epoch, places).double() + 0.5) * _UNIT for part in (0, 1)
        )
        values = (first.log() * -2).sqrt() * (second * (2 * math.pi)).cos()
        return Table({self.name: values.float().reshape(-1, *self.shape)}, {}, rows)

    def batches(self, groups: Iterable[Tensor]) -> Iterator[Table]:
        """The tables of several groups of rows, one after the other."""
        return map(self.take, groups)
