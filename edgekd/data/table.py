"""What a data set is once it is loaded: named tensors of equally many rows, and how inputs are normalised."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

_CHUNK_ROWS = 4096


@dataclass(frozen=True)
class Table:
    """Samples as named tensors; row i of every tensor belongs to sample ids[i].

    Attributes:
        inputs: by name; uint8 (N, C, H, W) for images, float32 (N, ..) for arrays.
        targets: by name; int64 (N,) or (N, ..) for classes, float32 (N,) or (N, D) for real targets; may be empty.
        ids: int64 (N,), the number of each sample in its data set, the same in every run and split.
    """

    inputs: dict[str, Tensor]
    targets: dict[str, Tensor]
    ids: Tensor

    def __post_init__(self) -> None:
        assert all(len(t) == len(self.ids) for t in (*self.inputs.values(), *self.targets.values()))

    def __len__(self) -> int:
        return len(self.ids)

    def take(self, rows: Tensor) -> Table:
        """The table of these rows, int64 (M,), in this order."""
        return Table(
            {name: t[rows] for name, t in self.inputs.items()},
            {name: t[rows] for name, t in self.targets.items()},
            self.ids[rows],
        )

    def batches(self, groups: Iterable[Tensor]) -> Iterator[Table]:
        """The tables of several groups of rows, one after the other."""
        return map(self.take, groups)


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
        mean = torch.tensor(self.mean, dtype=torch.float32, device=x.device).view(shape)
        std = torch.tensor(self.std, dtype=torch.float32, device=x.device).view(shape)
        return (x.to(torch.float32) * self.scale - mean) / std


def scale_of(x: Tensor) -> float:
    """The factor that brings images of uint8 to 0 .. 1 and leaves everything else as it is."""
    return 1 / 255 if x.dtype == torch.uint8 else 1.0


def measure(x: Tensor) -> Normalization:
    """Mean and standard deviation (of the population) per index of axis 1 of x, (N,) or (N, C, ..).

    Exact integer sums for uint8, and float64 sums in a fixed order for the rest, so that the number of threads changes
    nothing. A channel that never varies gets std 1.
    """
    mean, variance = _integer_moments(x) if x.dtype == torch.uint8 else _float_moments(x)
    scale = scale_of(x)
    std = [math.sqrt(v) * scale if v > 0 else 1.0 for v in variance]
    return Normalization(tuple(m * scale for m in mean), tuple(std), scale)


def _integer_moments(x: Tensor) -> tuple[list[float], list[float]]:
    x = _channels(x)
    n = x.shape[0] * x.shape[2]
    total = torch.zeros(x.shape[1], dtype=torch.int64)
    squares = torch.zeros_like(total)
    for chunk in torch.split(x, _CHUNK_ROWS):
        values = chunk.to(torch.int32)
        total += values.sum(dim=(0, 2), dtype=torch.int64)
        squares += values.square().sum(dim=(0, 2), dtype=torch.int64)
    moments = [(int(s), int(q)) for s, q in zip(total, squares, strict=True)]
    return [s / n for s, _ in moments], [(q * n - s * s) / (n * n) for s, q in moments]


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
