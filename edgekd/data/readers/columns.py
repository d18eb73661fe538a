"""Images and labels in columns of Arrow arrays: what readers of Parquet files and of Arrow files share."""

from __future__ import annotations

import contextlib
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from edgekd.data.memory import free_bytes
from edgekd.data.readers.images import ImageDecoder
from edgekd.data.readers.spool import Spool, open_spool
from edgekd.data.sources import Split
from edgekd.errors import DataError
from edgekd.store import Store

if TYPE_CHECKING:
    from torch import Tensor


class ColumnReader(ABC):
    """Rows in the order of the files of a split.

    Args:
        image: column of the encoded images: struct<bytes, path>, or binary.
        label: column of the labels, if there are any.
    """

    input_names = ("image",)
    kind: ClassVar[str]
    """What the files are called in messages."""

    def __init__(
        self,
        root: Path,
        files: Mapping[Split, Sequence[Path]],
        image: str,
        label: str | None,
        decoder: ImageDecoder,
    ) -> None:
        self._root, self._files = root, dict(files)
        self._image, self._label = image, label
        self.decoder = decoder
        self.splits = tuple(self._files)
        self.target_names = ("label",) if label is not None else ()

    @abstractmethod
    def check(self) -> None:
        """See that the files and the columns are there. Raises ConfigError if not."""

    @abstractmethod
    def _rows_of(self, path: Path) -> int:
        """Number of rows of a file."""

    @abstractmethod
    def _column(self, path: Path, column: str) -> Any:
        """A column of numbers or short texts of a file as a chunked array. Raises DataError."""

    @abstractmethod
    def _batches(self, path: Path, column: str) -> Iterator[Any]:
        """A column of a file as arrays of some hundred rows. Raises DataError."""

    def files(self, split: Split | None = None) -> dict[str, Sequence[Path]]:
        parts = [files for of, files in self._files.items() if split in (None, of)]
        return {self._name(path): (path,) for files in parts for path in files}

    def identity(self, split: Split | None = None) -> dict[str, Any]:
        return {"image": self._image, "label": self._label, **self.decoder.identity()}

    def rows(self, split: Split) -> int:
        return sum(self._rows_of(path) for path in self._files[split])

    def targets(self, split: Split) -> dict[str, Tensor]:
        if self._label is None:
            return {}
        from edgekd.data.labels import index_codes, target_tensor

        values, distinct = self._labels(split)
        if distinct is not None:
            values = index_codes(values, distinct, self._names or (), split)
        return {"label": target_tensor(values, f"{split} column {self._label!r}")}

    def inputs(self, split: Split, rows: Tensor) -> dict[str, Tensor]:
        import torch

        return {"image": torch.from_numpy(self.decoder.decode(self._encoded(split, rows.numpy()), len(rows)))}

    def names(self, target: str) -> tuple[str, ...] | None:
        return self._names

    def encoded(self, split: Split, store: Store, digests: Mapping[str, str]) -> Spool:
        files = {path: self._rows_of(path) for path in self._files[split]}
        about = {"files": {path.name: digests[self._name(path)] for path in files}, "image": self._image}
        return open_spool(store, about, files, self._contents(split))

    @cached_property
    def _names(self) -> tuple[str, ...] | None:
        distinct = self._labels("train")[1]
        return tuple(sorted(distinct)) if distinct is not None else None

    def _labels(self, split: Split) -> tuple[Any, tuple[str, ...] | None]:
        """The labels of a split as one NumPy array (N,) of integers or floats; of texts their places in the second."""
        import numpy as np
        import pyarrow as pa

        parts = [self._label_column(path) for path in self._files[split]]
        texts = [pa.types.is_string(part.type) or pa.types.is_large_string(part.type) for part in parts]
        if not any(texts):
            return np.concatenate([part.to_numpy() for part in parts]), None
        if not all(texts):
            raise DataError(
                f"{self._root}: the labels of {split} are texts in one file, numbers in another",
                hint="write them alike",
            )
        with readable(self._root, self.kind):
            chunks = [chunk for part in parts for chunk in part.cast(pa.large_string()).chunks]
            column = pa.chunked_array(chunks, pa.large_string()).combine_chunks().dictionary_encode()
            return column.indices.to_numpy(), tuple(column.dictionary.to_pylist())

    def _label_column(self, path: Path) -> Any:
        """The labels in one file, without nulls: a chunked array of texts or numbers."""
        import numpy as np
        import pyarrow as pa

        assert self._label is not None
        needed, memory = 8 * self._rows_of(path), free_bytes()
        if needed > memory:  # a few bytes can say that one label is repeated a trillion times
            raise DataError(
                f"{path}: says that it has {needed // 8} rows, whose labels alone take more memory than is free",
                hint="write it again, or remove it",
            )
        with readable(path, self.kind):
            column = self._column(path, self._label)
            if pa.types.is_dictionary(column.type):
                column = column.cast(column.type.value_type)
        kind = column.type
        if column.null_count:
            row = int(np.argmax(column.is_null().to_numpy()))
            raise DataError(f"{path} row {row}: the label is missing", hint="remove the row, or give it a label")
        known = ("string", "large_string", "integer", "floating", "boolean")
        if not any(getattr(pa.types, f"is_{name}")(kind) for name in known):
            raise DataError(
                f"{path}: the label column {self._label!r} is {kind}", hint="integers, floats and texts are known"
            )
        return column

    def _encoded(self, split: Split, rows: Any) -> Iterator[tuple[str, bytes | None]]:
        """Name and content of the images of some rows, ascending int64 (M,); None for one that is missing."""
        import pyarrow as pa

        start = 0
        for path, first, column in self._columns(split):
            low, high = rows.searchsorted([start, start + len(column)])
            wanted = rows[low:high] - start
            for row, content in zip(wanted.tolist(), column.take(pa.array(wanted)).to_pylist(), strict=True):
                yield f"{path} row {first + row}", content
            start += len(column)
            if start > rows[-1]:
                return

    def _contents(self, split: Split) -> Iterator[bytes | None]:
        """The images of all rows, None for one that is missing."""
        return (content for _, content in self.each(split))

    def each(self, split: Split) -> Iterator[tuple[object, bytes | None]]:
        for path, first, column in self._columns(split):
            yield from ((f"{path} row {first + row}", value.as_py()) for row, value in enumerate(column))

    def _columns(self, split: Split) -> Iterator[tuple[Path, int, Any]]:
        """Encoded images a few hundred at a time: their file, the row of the first in it, a binary array."""
        for path in self._files[split]:
            first = 0
            for batch in self._batches(path, self._image):
                yield path, first, self._binary(path, batch)
                first += len(batch)

    def _name(self, path: Path) -> str:
        """A file's name inside of the data set."""
        return path.relative_to(self._root if self._root.is_dir() else self._root.parent).as_posix()

    def _binary(self, path: Path, column: Any) -> Any:
        import pyarrow as pa
        import pyarrow.compute as pc

        if pa.types.is_struct(column.type) and column.type.get_field_index("bytes") >= 0:
            column = pc.struct_field(column, "bytes")
        if not (pa.types.is_binary(column.type) or pa.types.is_large_binary(column.type)):
            raise DataError(
                f"{path}: the image column {self._image!r} is {column.type}",
                hint="encoded images are struct<bytes: binary, path: string>, or binary",
            )
        return column


@contextlib.contextmanager
def readable(path: Path, kind: str) -> Iterator[None]:
    """Turn pyarrow's complaints about a damaged file into a DataError; `kind` is what the file should be."""
    import pyarrow as pa

    try:
        yield
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        first = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise DataError(f"{path}: cannot be read as {kind}: {first}", hint="write it again, or remove it") from None
