"""Rows of a source as a table that is decoded at once, or streamed where that would take too much memory."""

from __future__ import annotations

import shutil
import tempfile
import weakref
from collections.abc import Callable, Mapping
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from edgekd.data.memory import free_bytes
from edgekd.data.readers import ImageReader, Reader
from edgekd.data.settings import DataSettings
from edgekd.data.sources import Split
from edgekd.data.workers import Pool
from edgekd.store import Store

if TYPE_CHECKING:
    from torch import Tensor

    from edgekd.data.table import Rows


class Loader:
    """Loads rows as the data's `stream`, `memory` and `workers` say; `spool` as in `open_data`."""

    def __init__(self, settings: DataSettings, spool: Path | None) -> None:
        self._settings, self._spool = settings, spool
        self._pool = Pool(settings.workers)

    def load(
        self,
        reader: Reader,
        origin: Split,
        rows: Tensor,
        targets: Mapping[str, Tensor],
        offset: int,
        digests: Callable[[], Mapping[str, str]],
    ) -> Rows:
        """Some rows of a part of a source.

        Args:
            origin: the part.
            rows: int64 (N,), rows of it, ascending.
            targets: of all M rows of the part, each (M, ..).
            offset: id of row 0 of the part.
            digests: sha256 of the groups of the reader's files.

        Raises:
            DataError: something cannot be decoded.
        """
        from edgekd.data.stream import StreamedTable
        from edgekd.data.table import Table

        if isinstance(reader, ImageReader) and self._settings.stream != "never":
            first = reader.inputs(origin, rows[:1])["image"][0]
            if self._settings.stream == "always" or len(rows) * first.nbytes > self._settings.memory * free_bytes():
                images = reader.encoded(origin, self._store, digests())
                return StreamedTable(images, reader.decoder, tuple(first.shape), targets, rows, offset, self._pool)
        return Table(
            reader.inputs(origin, rows), {name: values[rows] for name, values in targets.items()}, rows + offset
        )

    @cached_property
    def _store(self) -> Store:
        """Where images are copied to, to be streamed from."""
        if self._spool is not None:
            return Store(self._spool)
        folder = tempfile.mkdtemp(prefix="edgekd-")
        weakref.finalize(self._pool, shutil.rmtree, folder, ignore_errors=True)  # which streamed tables hold, too
        return Store(Path(folder))
