"""Images and labels in Parquet files, in the layout of public data hubs."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgekd.config.settings import did_you_mean
from edgekd.data.readers.images import ImageDecoder
from edgekd.data.readers.parquet_footer import read_footer
from edgekd.data.readers.spool import Spool, open_spool
from edgekd.data.settings import SPLITS, ParquetSettings, Split
from edgekd.errors import ConfigError, DataError
from edgekd.store import Store

if TYPE_CHECKING:
    from torch import Tensor

_BATCH_ROWS = 512
_BUFFER_BYTES = 1 << 20  # without a buffer pyarrow reads the images of a whole row group at once
_HINT = "give the folder that holds train*.parquet; a relative path starts at the folder of the pipeline file"


class ParquetReader:
    """Rows in the order of the sorted files; the files of a split are those whose name starts with it."""

    input_names = ("image",)

    def __init__(self, settings: ParquetSettings, root: Path, decoder: ImageDecoder) -> None:
        self._root = root
        self._image, self._label = settings.image, settings.label
        self.decoder = decoder
        found = {split: sorted(root.glob(f"{split}*.parquet")) for split in SPLITS}
        self._files = {split: files for split, files in found.items() if files}
        self.splits = tuple(self._files)
        self.target_names = ("label",) if settings.label is not None else ()

    def check(self) -> None:
        if not self._root.is_dir():
            raise ConfigError(f"data.parquet.path: {self._root} is not a folder", hint=_HINT)
        if "train" not in self._files:
            raise ConfigError(f"data.parquet.path: {self._root} holds no train*.parquet", hint=_HINT)
        for path in (path for files in self._files.values() for path in files):
            if not path.is_file():
                raise ConfigError(f"data.parquet.path: {path} does not exist", hint=_HINT)
            columns = read_footer(path).columns
            for option, column in (("image", self._image), ("label", self._label)):
                if column is not None and column not in columns:
                    raise ConfigError(
                        f"data.parquet.{option}: {path} has no column {column!r}", hint=did_you_mean(column, columns)
                    )

    def files(self) -> dict[str, tuple[Path, ...]]:
        return {path.name: (path,) for files in self._files.values() for path in files}

    def identity(self) -> dict[str, Any]:
        return {"image": self._image, "label": self._label, **self.decoder.identity()}

    def rows(self, split: Split) -> int:
        return sum(read_footer(path).rows for path in self._files[split])

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
        files = {path: read_footer(path).rows for path in self._files[split]}
        about = {"files": {path.name: digests[path.name] for path in files}, "image": self._image}
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
        chunks = [chunk for part in parts for chunk in part.cast(pa.large_string()).chunks]
        column = pa.chunked_array(chunks, pa.large_string()).combine_chunks().dictionary_encode()
        return column.indices.to_numpy(), tuple(column.dictionary.to_pylist())

    def _label_column(self, path: Path) -> Any:
        """The labels in one file, without nulls: a chunked array of texts or numbers."""
        import numpy as np
        import pyarrow as pa
        import pyarrow.parquet as pq

        with _readable(path):
            column = pq.ParquetFile(path).read(columns=[self._label]).column(0)
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

    def _encoded(self, split: Split, rows: Any) -> Iterator[tuple[str, bytes]]:
        """Name and content of the images of some rows, ascending int64 (M,)."""
        import pyarrow as pa

        start = 0
        for path, first, column in self._columns(split):
            low, high = rows.searchsorted([start, start + len(column)])
            wanted = rows[low:high] - start
            for row, content in zip(wanted.tolist(), column.take(pa.array(wanted)).to_pylist(), strict=True):
                name = f"{path} row {first + row}"
                if content is None:
                    raise DataError(f"{name}: there is no image", hint="remove the row, or store the image's bytes")
                yield name, content
            start += len(column)
            if start > rows[-1]:
                return

    def _contents(self, split: Split) -> Iterator[bytes | None]:
        """The images of all rows, None for one that is missing."""
        for _, _, column in self._columns(split):
            yield from (value.as_py() for value in column)

    def _columns(self, split: Split) -> Iterator[tuple[Path, int, Any]]:
        """Encoded images a few hundred at a time: their file, the row of the first in it, a binary array."""
        import pyarrow.parquet as pq

        for path in self._files[split]:
            first = 0
            with _readable(path), pq.ParquetFile(path, buffer_size=_BUFFER_BYTES) as file:
                for batch in file.iter_batches(_BATCH_ROWS, columns=[self._image]):
                    yield path, first, self._binary(path, batch.column(0))
                    first += len(batch)

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
def _readable(path: Path) -> Iterator[None]:
    """Turn pyarrow's complaints about a damaged file into a DataError."""
    import pyarrow as pa

    try:
        yield
    except (pa.ArrowException, OSError) as error:
        first = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise DataError(f"{path}: cannot be read as Parquet: {first}", hint="write it again, or remove it") from None
