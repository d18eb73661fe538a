"""What a data set is once it is loaded: named tensors of equally many rows, and how inputs are normalised."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Protocol

import torch
from torch import Tensor

from edgekd.data.settings import MeanStd
from edgekd.errors import ConfigError

_CHUNK_ROWS = 4096
_CHUNK_BYTES = 1 << 20


class Rows(Protocol):
    """Samples of one split: all of them in memory (Table), or read batch by batch (stream.StreamedTable)."""

    @property
    def inputs(self) -> Mapping[str, Tensor]:
        """By name, (N, ..). Of streamed samples only names, shapes and types: tensors on the device `meta`."""
        ...

    @property
    def targets(self) -> Mapping[str, Tensor]:
        """By name, (N, ..)."""
        ...

    @property
    def ids(self) -> Tensor:
        """int64 (N,), on the CPU."""
        ...

    def __len__(self) -> int: ...

    def take(self, rows: Tensor) -> Table:
        """The table of these rows, int64 (M,), in this order."""
        ...

    def batches(self, groups: Iterable[Tensor]) -> Iterator[Table]:
        """The tables of several groups of rows, one after the other."""
        ...


@dataclass(frozen=True)
class Table:
    """Samples as named tensors; row i of every tensor belongs to sample ids[i].

    Attributes:
        inputs: by name; uint8 (N, C, H, W) for images, float32 (N, ..) for arrays.
        targets: by name; int64 (N,) or (N, ..) for classes, float32 (N,) or (N, D) for real targets; may be empty.
        ids: int64 (N,), the number of each sample in its data set, the same in every run and split; on the CPU.
    """

    inputs: dict[str, Tensor]
    targets: dict[str, Tensor]
    ids: Tensor

    def __post_init__(self) -> None:
        assert all(len(t) == len(self.ids) for t in (*self.inputs.values(), *self.targets.values()))

    def __len__(self) -> int:
        return len(self.ids)

    def take(self, rows: Tensor) -> Table:
        """The table of these rows, int64 (M,), in this order, on the table's own device."""
        on = {t.device: rows.to(t.device) for t in (*self.inputs.values(), *self.targets.values(), self.ids)}
        return Table(
            {name: t[on[t.device]] for name, t in self.inputs.items()},
            {name: t[on[t.device]] for name, t in self.targets.items()},
            self.ids[on[self.ids.device]],
        )

    def batches(self, groups: Iterable[Tensor]) -> Iterator[Table]:
        """The tables of several groups of rows, one after the other."""
        return map(self.take, groups)

    def to(self, device: torch.device) -> Table:
        """The table with inputs and targets on a device; ids stay on the CPU, where orders and views are drawn."""
        return Table(
            {name: t.to(device) for name, t in self.inputs.items()},
            {name: t.to(device) for name, t in self.targets.items()},
            self.ids,
        )


def place(table: Rows, device: torch.device, share: float) -> Rows:
    """The table on a GPU, if it is in memory and takes at most this share of what the GPU has free; else as it is."""
    if device.type != "cuda" or not isinstance(table, Table):
        return table
    needed = sum(t.nbytes for t in (*table.inputs.values(), *table.targets.values()))
    free, _ = torch.cuda.mem_get_info(device)
    return table.to(device) if needed <= share * free else table


def row_groups(count: int, size: int) -> Iterator[Tensor]:
    """The rows 0 .. count - 1 in groups of `size`, the last one smaller, each int64 (M,)."""
    return (torch.arange(start, min(start + size, count)) for start in range(0, count, size))


@dataclass(frozen=True)
class Normalization:
    """(x * scale - mean) / std, with one mean and std per index of axis 1, or one for all.

    Attributes:
        mean: per channel or feature, in units of x * scale.
        std: as mean; never 0.
        scale: 1/255 for uint8, else 1.
    """

    mean: tuple[float, ...]
    std: tuple[float, ...]
    scale: float

    def apply(self, x: Tensor) -> Tensor:
        """Normalise x of shape (N,) or (N, C, ..): float32 of the same shape, on the same device."""
        shape = (1, -1, *[1] * (x.dim() - 2)) if x.dim() > 1 else (-1,)
        mean, std = _on_device(self.mean, x.device).view(shape), _on_device(self.std, x.device).view(shape)
        return (x.to(torch.float32) * self.scale - mean) / std


@cache
def _on_device(values: tuple[float, ...], device: torch.device) -> Tensor:
    """Kept there: a copy to a GPU in every step would wait for it."""
    return torch.tensor(values, dtype=torch.float32, device=device)


def scale_of(x: Tensor) -> float:
    """The factor that brings images of uint8 to 0 .. 1 and leaves everything else as it is."""
    return 1 / 255 if x.dtype == torch.uint8 else 1.0


def measure(x: Tensor) -> Normalization:
    """Mean and standard deviation (of the population) per index of axis 1 of x, (N,) or (N, C, ..).

    Exact integer sums for uint8, and float64 sums in a fixed order for the rest, so that the number of threads changes
    nothing. A channel that never varies gets std 1.
    """
    if x.dtype == torch.uint8:
        return measure_images(torch.split(x, _CHUNK_ROWS))
    return _normalization(*_float_moments(x), scale_of(x))


def measure_images(chunks: Iterable[Tensor]) -> Normalization:
    """`measure` of uint8 that comes in chunks, each (M, C, ..): exact, so however it is cut the result is the same."""
    n, total, squares = 0, torch.zeros((), dtype=torch.int64), torch.zeros((), dtype=torch.int64)
    for chunk in map(_channels, chunks):
        values = chunk.to(torch.int32)
        total = total + values.sum(dim=(0, 2), dtype=torch.int64)
        squares = squares + values.square_().sum(dim=(0, 2), dtype=torch.int64)
        n += chunk.shape[0] * chunk.shape[2]
    moments = [(int(s), int(q)) for s, q in zip(total, squares, strict=True)]
    mean, variance = [s / n for s, _ in moments], [(q * n - s * s) / (n * n) for s, q in moments]
    return _normalization(mean, variance, 1 / 255)


def measure_rows(table: Rows) -> dict[str, Normalization]:
    """`measure` of every input; the streamed ones are images, and are read once."""
    if isinstance(table, Table):
        return {name: measure(x) for name, x in table.inputs.items()}
    ((name, x),) = table.inputs.items()
    groups = row_groups(len(table), max(1, _CHUNK_BYTES // x[0].numel()))
    return {name: measure_images(rows.inputs[name] for rows in table.batches(groups))}


def given_normalization(given: MeanStd | str, table: Rows) -> dict[str, Normalization]:
    """The mean and std that were given, or `none`, for every input.

    Raises:
        ConfigError: there are not as many means as channels.
    """
    found = {}
    for name, x in table.inputs.items():
        mean, std = (given.mean, given.std) if isinstance(given, MeanStd) else ((0.0,), (1.0,))
        channels = x.shape[1] if x.dim() > 1 else 1
        if len(mean) not in (1, channels):
            raise ConfigError(
                f"data.normalize: {len(mean)} means for the {channels} channels of {name!r}",
                hint=f"give {channels} of each, or one for all",
            )
        found[name] = Normalization(mean, std, scale_of(x))
    return found


def _normalization(mean: list[float], variance: list[float], scale: float) -> Normalization:
    std = [math.sqrt(v) * scale if v > 0 else 1.0 for v in variance]
    return Normalization(tuple(m * scale for m in mean), tuple(std), scale)


def _float_moments(x: Tensor) -> tuple[list[float], list[float]]:
    import numpy as np

    chunks = [c.numpy() for c in torch.split(_channels(x), _CHUNK_ROWS)]
    n = sum(c.shape[0] * c.shape[2] for c in chunks)
    sums = [c.sum(axis=(0, 2), dtype=np.float64) for c in chunks]
    mean = [math.fsum(parts) / n for parts in zip(*sums, strict=True)]
    centre = np.array(mean)[None, :, None]
    squares = [np.square(c.astype(np.float64) - centre).sum(axis=(0, 2)) for c in chunks]
    return mean, [math.fsum(parts) / n for parts in zip(*squares, strict=True)]


def _channels(x: Tensor) -> Tensor:
    """(N,) or (N, C, ..) as (N, C, everything else)."""
    return x.reshape(len(x), x.shape[1] if x.dim() > 1 else 1, -1)
