"""Images and labels in Parquet files, in the layout of public data hubs."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgekd.config.settings import did_you_mean
from edgekd.data.readers.images import ImageDecoder
from edgekd.data.readers.parquet_footer import read_footer
from edgekd.data.settings import SPLITS, ParquetSettings, Split
from edgekd.errors import ConfigError, DataError

if TYPE_CHECKING:
    from torch import Tensor

_BATCH_ROWS = 512
_HINT = "give the folder that holds train*.parquet; a relative path starts at the folder of the pipeline file"


class ParquetReader:
    """Rows in the order of the sorted files; the files of a split are those whose name starts with it."""

    input_names = ("image",)

    def __init__(self, settings: ParquetSettings, root: Path, decoder: ImageDecoder) -> None:
        self._root = root
        self._image, self._label = settings.image, settings.label
        self._decoder = decoder
        found = {split: sorted(root.glob(f"{split}*.parquet")) for split in SPLITS}
        self._files = {split: files for split, files in found.items() if files}
        self.splits = tuple(self._files)
        self.target_names = ("label",) if settings.label is not None else ()

    def check(self) -> None:
        if not self._root.is_dir():
            raise ConfigError(f"data.parquet.path: {self._root} is not a folder", hint=_HINT)
        if "train" not in self._files:
            raise ConfigError(f"data.parquet.path: {self._root} holds no train*.parquet", hint=_HINT)
        for path in self.files().values():
            if not path.is_file():
                raise ConfigError(f"data.parquet.path: {path} does not exist", hint=_HINT)
            columns = read_footer(path).columns
            for option, column in (("image", self._image), ("label", self._label)):
                if column is not None and column not in columns:
                    raise ConfigError(
                        f"data.parquet.{option}: {path} has no column {column!r}", hint=did_you_mean(column, columns)
                    )

    def files(self) -> dict[str, Path]:
        return {path.name: path for files in self._files.values() for path in files}

    def identity(self) -> dict[str, Any]:
        return {"image": self._image, "label": self._label, **self._decoder.identity()}

    def rows(self, split: Split) -> int:
        return sum(read_footer(path).rows for path in self._files[split])

    def targets(self, split: Split) -> dict[str, Tensor]:
        if self._label is None:
            return {}
        import numpy as np

        from edgekd.data.labels import index_names, target_tensor

        values = self._labels(split)
        if values.dtype.kind == "O":
            values = index_names(values.tolist(), self._names or (), split)
        return {"label": target_tensor(np.asarray(values), f"{split} column {self._label!r}")}

    def inputs(self, split: Split, rows: Tensor) -> dict[str, Tensor]:
        return {"image": self._decoder.decode(self._encoded(split, rows.numpy()), len(rows))}

    def names(self, target: str) -> tuple[str, ...] | None:
        return self._names

    @cached_property
    def _names(self) -> tuple[str, ...] | None:
        values = self._labels("train")
        return tuple(sorted(set(values.tolist()))) if values.dtype.kind == "O" else None

    def _labels(self, split: Split) -> Any:
        """The labels of a split as one NumPy array (N,): integers, floats, or texts as objects."""
        import numpy as np
        import pyarrow as pa
        import pyarrow.parquet as pq

        parts = []
        for path in self._files[split]:
            with _readable(path):
                column = pq.ParquetFile(path).read(columns=[self._label]).column(0)
            if pa.types.is_dictionary(column.type):
                column = column.cast(column.type.value_type)
            kind = column.type
            if column.null_count:
                row = int(np.argmax(column.is_null().to_numpy()))
                raise DataError(f"{path} row {row}: the label is missing", hint="remove the row, or give it a label")
            if pa.types.is_string(kind) or pa.types.is_large_string(kind):
                parts.append(np.array(column.to_pylist(), dtype=object))
            elif pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_boolean(kind):
                parts.append(column.to_numpy())
            else:
                raise DataError(
                    f"{path}: the label column {self._label!r} is {kind}", hint="integers, floats and texts are known"
                )
        kinds = {"text" if part.dtype.kind == "O" else "number" for part in parts}
        if len(kinds) > 1:
            raise DataError(
                f"{self._root}: the labels of {split} are texts in one file, numbers in another",
                hint="write them alike",
            )
        return np.concatenate(parts)

    def _encoded(self, split: Split, rows: Any) -> Iterator[tuple[str, bytes]]:
        """Name and content of the images of some rows, ascending int64 (M,)."""
        import pyarrow.parquet as pq

        start = 0
        for path in self._files[split]:
            first = start
            with _readable(path), pq.ParquetFile(path) as file:
                for batch in file.iter_batches(_BATCH_ROWS, columns=[self._image]):
                    low, high = rows.searchsorted([start, start + len(batch)])
                    wanted = rows[low:high] - start
                    for row, content in zip(
                        wanted.tolist(), self._contents(path, batch.column(0), wanted), strict=True
                    ):
                        name = f"{path} row {start - first + row}"
                        if content is None:
                            raise DataError(
                                f"{name}: there is no image", hint="remove the row, or store the image's bytes"
                            )
                        yield name, content
                    start += len(batch)

    def _contents(self, path: Path, column: Any, wanted: Any) -> list[bytes | None]:
        import pyarrow as pa
        import pyarrow.compute as pc

        if pa.types.is_struct(column.type) and column.type.get_field_index("bytes") >= 0:
            column = pc.struct_field(column, "bytes")
        if not (pa.types.is_binary(column.type) or pa.types.is_large_binary(column.type)):
            raise DataError(
                f"{path}: the image column {self._image!r} is {column.type}",
                hint="encoded images are struct<bytes: binary, path: string>, or binary",
            )
        contents: list[bytes | None] = column.take(pa.array(wanted)).to_pylist()
        return contents


@contextlib.contextmanager
def _readable(path: Path) -> Iterator[None]:
    """Turn pyarrow's complaints about a damaged file into a DataError."""
    import pyarrow as pa

    try:
        yield
    except (pa.ArrowException, OSError) as error:
        first = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise DataError(f"{path}: cannot be read as Parquet: {first}", hint="write it again, or remove it") from None
