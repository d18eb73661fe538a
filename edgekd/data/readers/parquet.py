"""Images and labels in Parquet files, in the layout of public data hubs."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from edgekd.config.settings import did_you_mean
from edgekd.data.memory import free_bytes
from edgekd.data.readers.columns import ColumnReader, readable
from edgekd.data.readers.images import ImageDecoder
from edgekd.data.readers.layout import files_of
from edgekd.data.readers.parquet_footer import read_footer
from edgekd.data.sources import ParquetSettings
from edgekd.errors import ConfigError, DataError

_BATCH_ROWS = 512
_BUFFER_BYTES = 1 << 20  # without a buffer pyarrow reads the images of a whole row group at once
_HINT = "give the folder that holds train*.parquet; a relative path starts at the folder of the pipeline file"


class ParquetReader(ColumnReader):
    """Rows in the order of the sorted files; the files of a split are those whose name starts with it."""

    kind = "Parquet"

    def __init__(self, settings: ParquetSettings, root: Path, decoder: ImageDecoder) -> None:
        super().__init__(root, files_of(root, ".parquet"), settings.image, settings.label, decoder)

    def check(self) -> None:
        if not self._root.is_dir() and self._root.suffix.lower() != ".parquet":
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

    def _rows_of(self, path: Path) -> int:
        return read_footer(path).rows

    def _column(self, path: Path, column: str) -> Any:
        import pyarrow.parquet as pq

        with pq.ParquetFile(path) as file:
            _check_sizes(path, file, column)
            return file.read(columns=[column]).column(0)

    def _batches(self, path: Path, column: str) -> Iterator[Any]:
        import pyarrow.parquet as pq

        with readable(path, self.kind), pq.ParquetFile(path, buffer_size=_BUFFER_BYTES) as file:
            _check_sizes(path, file, column)
            for batch in file.iter_batches(_BATCH_ROWS, columns=[column]):
                yield batch.column(0)


def _check_sizes(path: Path, file: Any, column: str) -> None:
    """See that each part of a column fits into memory, by what the footer says. Raises DataError."""
    memory = free_bytes()
    for group in range(file.metadata.num_row_groups):
        row_group = file.metadata.row_group(group)
        chunks = [row_group.column(i) for i in range(row_group.num_columns)]
        needed = sum(c.total_uncompressed_size for c in chunks if c.path_in_schema.partition(".")[0] == column)
        if needed > memory:
            raise DataError(
                f"{path}: a row group takes {needed / 2**30:.1f} GiB, and {memory / 2**30:.1f} GiB of memory are free",
                hint="write it with smaller row groups",
            )
