"""A source of images without its broken ones (`data.skip_broken`): all are decoded once to find them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgekd.data.fingerprint import Memo
from edgekd.data.readers.images import BrokenImageError, EncodedImages, ImageDecoder, Picked
from edgekd.data.sources import Split
from edgekd.errors import DataError
from edgekd.files import sha256_json
from edgekd.store import Store

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch import Tensor

    from edgekd.data.readers import ImageReader

_LISTED = 3


@dataclass(frozen=True)
class Broken:
    """A broken image: its row in the split of its source, its name, and why."""

    row: int
    name: str
    why: str


class SoundReader:
    """What a reader has, without broken images.

    Args:
        share: how much of a split may be broken.
        memo: remembers which are, by the digests of the files and the rules.
    """

    def __init__(self, reader: ImageReader, share: float, memo: Memo) -> None:
        self._reader, self._share, self._memo = reader, share, memo
        self.input_names, self.target_names = reader.input_names, reader.target_names
        self._kept: dict[Split, Tensor] = {}

    @property
    def splits(self) -> tuple[Split, ...]:
        return self._reader.splits

    @property
    def decoder(self) -> ImageDecoder:
        return self._reader.decoder

    def files(self, split: Split | None = None) -> Mapping[str, Sequence[Path]]:
        return self._reader.files(split)

    def identity(self, split: Split | None = None) -> dict[str, Any]:
        """The reader's own, with what decides which images count as broken."""
        return {
            **self._reader.identity(split),
            "skip_broken": self._share,
            "max_pixels": self.decoder.rules.max_pixels,
        }

    def check(self) -> None:
        self._reader.check()

    def rows(self, split: Split) -> int:
        return self._reader.rows(split) - len(self.broken[split])

    def targets(self, split: Split) -> dict[str, Tensor]:
        return {name: values[self._rows(split)] for name, values in self._reader.targets(split).items()}

    def inputs(self, split: Split, rows: Tensor) -> dict[str, Tensor]:
        return self._reader.inputs(split, self._rows(split)[rows])

    def names(self, target: str) -> tuple[str, ...] | None:
        return self._reader.names(target)

    def encoded(self, split: Split, store: Store, digests: Mapping[str, str]) -> EncodedImages:
        return _SoundImages(self._reader.encoded(split, store, digests), self._rows(split).numpy())

    def each(self, split: Split) -> Iterator[tuple[object, bytes | Path | None]]:
        gone = {found.row for found in self.broken[split]}
        return (image for row, image in enumerate(self._reader.each(split)) if row not in gone)

    @cached_property
    def broken(self) -> dict[Split, list[Broken]]:
        """The broken images of each split.

        Raises:
            DataError: more than the share of a split.
        """
        key = sha256_json({"files": self._memo.digests(self.files()), "rules": self.identity(), "by": _pillow()})
        known = self._memo.broken(key)
        if known is None:
            found = {split: find_broken(self._reader, split) for split in self.splits}
            self._memo.remember_broken(key, {s: [[b.row, b.name, b.why] for b in rows] for s, rows in found.items()})
        else:
            found = {split: [Broken(*row) for row in known[split]] for split in self.splits}
        for split, rows in found.items():
            count = self._reader.rows(split)
            if len(rows) > self._share * count:
                raise DataError(
                    f"{len(rows)} of {count} images of {split} are broken, more than the share that may be: "
                    f"{listed(rows)}",
                    hint=f"replace or remove them, or raise `data.skip_broken` (now {self._share:g})",
                )
        return found

    def _rows(self, split: Split) -> Tensor:
        """The rows of the reader that are kept, int64 (N,), ascending."""
        if split not in self._kept:
            import torch

            kept = torch.ones(self._reader.rows(split), dtype=torch.bool)
            kept[[found.row for found in self.broken[split]]] = False
            self._kept[split] = kept.nonzero().flatten()
        return self._kept[split]


@dataclass(frozen=True)
class _SoundImages:
    images: EncodedImages
    kept: NDArray[Any]

    def pick(self, rows: NDArray[Any]) -> Picked:
        """The images of some rows of those that are kept, int64 (M,)."""
        return self.images.pick(self.kept[rows])


def find_broken(reader: ImageReader, split: Split) -> list[Broken]:
    """Decode every image of a split to see which are broken."""
    found = []
    with reader.decoder.opening():
        for row, (name, encoded) in enumerate(reader.each(split)):
            try:
                reader.decoder.convert(name, encoded)
            except BrokenImageError as error:
                found.append(Broken(row, str(name), error.why))
    return found


def listed(broken: Sequence[Broken]) -> str:
    """The first broken images in words."""
    shown = "; ".join(f"{found.name}: {found.why}" for found in broken[:_LISTED])
    return shown + (f" and {len(broken) - _LISTED} more" if len(broken) > _LISTED else "")


def _pillow() -> str:
    from importlib.metadata import version

    return version("pillow")
