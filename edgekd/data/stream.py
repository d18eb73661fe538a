"""Samples that are read batch by batch: what does not fit into memory, under the same face as a table."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor

from edgekd.data.readers.images import EncodedImages, ImageDecoder
from edgekd.data.table import Table
from edgekd.data.workers import Pool


class StreamedTable:
    """Images of one split that are decoded when they are asked for, `batches` of them by worker processes.

    In memory are ids and targets, and the batches that are on their way.

    Args:
        images: the encoded images of the part of the source that the split is drawn from.
        decoder: has decoded one of them, so that it knows the size that all must have.
        shape: of an image, (C, H, W).
        targets: of all M rows of that part, each (M, ..).
        rows: int64 (N,), the rows of that part that are the split.
        offset: id of its row 0.
        pool: the workers.
    """

    def __init__(
        self,
        images: EncodedImages,
        decoder: ImageDecoder,
        shape: tuple[int, ...],
        targets: Mapping[str, Tensor],
        rows: Tensor,
        offset: int,
        pool: Pool,
    ) -> None:
        self._images, self._decoder, self._pool = images, decoder, pool
        self._all_targets, self._offset = targets, offset
        self.ids = rows + offset if offset else rows
        self.inputs = {"image": torch.empty(len(rows), *shape, dtype=torch.uint8, device="meta")}

    @property
    def targets(self) -> Mapping[str, Tensor]:
        """By name, (N, ..); each is gathered when it is asked for."""
        return _Lazy({name: partial(self._targets, name, self.ids) for name in self._all_targets})

    def __len__(self) -> int:
        return len(self.ids)

    def take(self, rows: Tensor) -> Table:
        """The table of these rows, int64 (M,), in this order; decoded in this process.

        Raises:
            DataError: an image cannot be read or decoded.
        """
        ids = self.ids[rows]
        if not len(ids):
            return self._table(ids, torch.empty_like(self.inputs["image"][:0], device="cpu").numpy())
        return self._table(ids, self._task(ids)())

    def batches(self, groups: Iterable[Tensor]) -> Iterator[Table]:
        """The tables of several groups of rows, none empty, one after the other; the workers are at most two ahead.

        Raises:
            DataError: an image cannot be read or decoded, or a worker died.
        """
        tasks = ((ids, self._task(ids)) for ids in (self.ids[rows] for rows in groups))
        return (self._table(ids, pixels) for ids, pixels in self._pool.in_order(tasks))

    def _task(self, ids: Tensor) -> Callable[[], Any]:
        """What gives the pixels of some samples as a uint8 NumPy array (M, C, H, W), here or in a worker."""
        picked = self._images.pick((ids - self._offset).numpy())
        return partial(self._decoder.decode, picked, len(picked))

    def _table(self, ids: Tensor, pixels: Any) -> Table:
        targets = {name: self._targets(name, ids) for name in self._all_targets}
        return Table({"image": torch.from_numpy(pixels)}, targets, ids)

    def _targets(self, name: str, ids: Tensor) -> Tensor:
        return self._all_targets[name][ids - self._offset if self._offset else ids]


class _Lazy(Mapping[str, Tensor]):
    """Tensors that are made when they are asked for."""

    def __init__(self, makers: Mapping[str, Callable[[], Tensor]]) -> None:
        self._makers = makers

    def __getitem__(self, name: str) -> Tensor:
        return self._makers[name]()

    def __iter__(self) -> Iterator[str]:
        return iter(self._makers)

    def __len__(self) -> int:
        return len(self._makers)
