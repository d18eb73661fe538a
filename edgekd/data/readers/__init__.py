"""One file per source of data. A reader knows its files at once, its labels cheaply, and decodes only what is asked.

Importing this loads no numpy, torch or pyarrow, and neither does opening a reader, `files` or `identity`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

from edgekd.data.fingerprint import Memo
from edgekd.data.readers.images import Encoded, EncodedImages, ImageDecoder, ImageRules
from edgekd.data.readers.sound import SoundReader
from edgekd.data.sources import ImageSettings, SourceSettings, Split
from edgekd.store import Store

if TYPE_CHECKING:
    from torch import Tensor


class Reader(Protocol):
    """A source of samples."""

    @property
    def splits(self) -> tuple[Split, ...]:
        """The splits that the source itself brings; `train` always, and first."""
        ...

    @property
    def input_names(self) -> tuple[str, ...]:
        """Names of the inputs."""
        ...

    @property
    def target_names(self) -> tuple[str, ...]:
        """Names of the targets; empty without labels."""
        ...

    def files(self, split: Split | None = None) -> Mapping[str, Sequence[Path]]:
        """All files in groups that change together, by the name of the first one inside of the data set. Of a split,
        those that hold its samples and no other split's."""
        ...

    def identity(self, split: Split | None = None) -> dict[str, Any]:
        """What besides the files (of a split) decides the samples, as plain values."""
        ...

    def check(self) -> None:
        """See that the source is there. Raises ConfigError if not."""
        ...

    def rows(self, split: Split) -> int:
        """Number of samples of a split that the source brings."""
        ...

    def targets(self, split: Split) -> dict[str, Tensor]:
        """All targets of a split: int64 or float32 (N, ..)."""
        ...

    def inputs(self, split: Split, rows: Tensor) -> dict[str, Tensor]:
        """The inputs of some rows, int64 (M,) ascending: uint8 (M, C, H, W) or float32 (M, ..)."""
        ...

    def names(self, target: str) -> tuple[str, ...] | None:
        """The names of a target's classes, if the source has any."""
        ...


@runtime_checkable
class ImageReader(Reader, Protocol):
    """A source of encoded images: they can be streamed."""

    @property
    def decoder(self) -> ImageDecoder:
        """What decodes them."""
        ...

    def encoded(self, split: Split, store: Store, digests: Mapping[str, str]) -> EncodedImages:
        """The encoded images of a split at random access.

        Args:
            store: where a source that has no random access keeps a copy that has.
            digests: sha256 of the groups of `files`.
        """
        ...

    def each(self, split: Split) -> Iterator[tuple[object, Encoded]]:
        """Name and content of all images of a split, one after the other; nothing where one is missing."""
        ...


def open_reader(settings: SourceSettings, base: Path, images: ImageSettings, memo: Memo) -> Reader:
    """The reader of the source that the settings name, without images that may be left out as broken.

    Args:
        base: folder that relative paths start from.
        images: what images become, and how many may be broken.
        memo: remembers which are.

    Raises:
        ConfigError: a path, a file, a column or an array is missing.
        DataError: a file is not what its name says.
    """
    rules = ImageRules(**{field.name: getattr(images, field.name) for field in fields(ImageRules)})
    reader = _reader(settings, base, ImageDecoder(rules))
    reader.check()
    if images.skip_broken and isinstance(reader, ImageReader):
        return SoundReader(reader, images.skip_broken, memo)
    return reader


def _reader(settings: SourceSettings, base: Path, decoder: ImageDecoder) -> Reader:
    from edgekd.data.readers.csv_files import CsvReader
    from edgekd.data.readers.digits import DigitsReader
    from edgekd.data.readers.folder import FolderReader
    from edgekd.data.readers.huggingface import HuggingFaceReader
    from edgekd.data.readers.npz import NpzReader
    from edgekd.data.readers.parquet import ParquetReader
    from edgekd.data.readers.webdataset import WebDatasetReader

    given: Any = getattr(settings, settings.source)
    if settings.digits is not None:
        return DigitsReader()
    if settings.npz is not None:
        return NpzReader(given, base / given.path)
    kinds: dict[str, Callable[[Any, Path, ImageDecoder], Reader]] = {
        "parquet": ParquetReader,
        "folder": FolderReader,
        "csv": CsvReader,
        "webdataset": WebDatasetReader,
        "huggingface": HuggingFaceReader,
    }
    return kinds[settings.source](given, base / given.path, decoder)
