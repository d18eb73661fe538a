"""The spool: encoded images of Parquet and Arrow files, copied once into one file where each can be read by itself.

    caches/data/<key>/meta.json     files and rows it was made from; written last, so a spool without it is none
    caches/data/<key>/images.bin    the images one after the other
    caches/data/<key>/index.bin     for each image where it begins, its length and its CRC-32: <int64, uint32, uint32>

Images are read with pread: a map of the file would count as memory of the process. Importing this loads no numpy.
"""

from __future__ import annotations

import errno
import json
import os
import shutil
import struct
import zlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from edgekd.errors import DataError
from edgekd.files import lock, replace_atomic, sha256_json, write_atomic
from edgekd.store import Store

if TYPE_CHECKING:
    from numpy.typing import NDArray

KIND = "data"
_META, _IMAGES, _INDEX = "meta.json", "images.bin", "index.bin"
_ENTRY = struct.Struct("<qII")
_MISSING = 0xFFFFFFFF  # length of an image that is not there
_LOCK_S = 6 * 3600.0
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


@dataclass(frozen=True)
class Spool:
    """Images at random access. `root` is where the files lie that they came from, for messages."""

    folder: Path
    root: Path

    def pick(self, rows: NDArray[Any]) -> SpooledImages:
        """The images of some rows, int64 (M,): cheap to pickle, read when they are iterated."""
        return SpooledImages(self, rows)


@dataclass(frozen=True)
class SpooledImages:
    """Names and contents of some images of a spool, in the order of `rows`, int64 (M,)."""

    spool: Spool
    rows: NDArray[Any]

    def __len__(self) -> int:
        return len(self.rows)

    def __iter__(self) -> Iterator[tuple[object, bytes | None]]:
        """Raises DataError for an image that was changed; one that is missing is None."""
        folder = self.spool.folder
        try:
            with (folder / _INDEX).open("rb", buffering=0) as index, (folder / _IMAGES).open("rb", buffering=0) as data:
                for row in self.rows.tolist():
                    yield _Name(self.spool, row), self._read(index.fileno(), data.fileno(), row)
        except OSError as error:
            raise DataError(
                f"{folder}: cannot be read: {error.strerror}", hint="run the same command again: it is made anew"
            ) from None

    def _read(self, index: int, data: int, row: int) -> bytes | None:
        entry = os.pread(index, _ENTRY.size, row * _ENTRY.size)
        start, length, checksum = _ENTRY.unpack(entry) if len(entry) == _ENTRY.size else (0, 0, -1)
        if length == _MISSING:
            return None
        content = os.pread(data, length, start)
        if zlib.crc32(content) != checksum:
            raise DataError(
                f"{self.spool.folder}: the copy of image {row} is damaged",
                hint="delete this folder and run the same command again: it is made anew",
            )
        return content


@dataclass(frozen=True)
class _Name:
    """Where an image came from, in words; looked up only when a message needs it."""

    spool: Spool
    row: int

    def __str__(self) -> str:
        row = self.row
        for name, rows in json.loads((self.spool.folder / _META).read_text())["files"]:
            if row < rows:
                return f"{self.spool.root / name} row {row}"
            row -= rows
        raise AssertionError(f"no row {self.row}")


def open_spool(
    store: Store, about: Mapping[str, Any], files: Mapping[Path, int], images: Iterable[bytes | None]
) -> Spool:
    """The spool of what `about` describes, made from `images` if it is not there.

    Args:
        about: all that decides the images: digests of the files and the column. Its sha256 is the key.
        files: the files that the images come from, and the rows of each.
        images: encoded images of all rows in their order, None for one that is missing; not touched without need.

    Raises:
        DataError: the disk is full, or `images` raised it.
        TryAgainError: another process took more than six hours for it.
    """
    key = sha256_json({"version": 1, **about})
    folder = store.cache(KIND, key)
    root = next(iter(files)).parent
    rows = sum(files.values())
    with lock(store.root / "locks" / f"{KIND}.{key}", timeout_s=_LOCK_S, holder_hint="another run copies this data"):
        meta = _complete(folder)
        if meta is None:
            meta = {"files": [[path.name, count] for path, count in files.items()], "bytes": 0, "rows": rows}
            meta["bytes"] = _copy(folder, images, sum(path.stat().st_size for path in files))
        write_atomic(folder / _META, json.dumps(meta))  # its time is that of the last use
    return Spool(folder, root)


def _complete(folder: Path) -> dict[str, Any] | None:
    """The facts of a spool, if all of it is there."""
    try:
        meta: dict[str, Any] = json.loads((folder / _META).read_text())
        sizes = [(folder / name).stat().st_size for name in (_IMAGES, _INDEX)]
        return meta if sizes == [meta["bytes"], meta["rows"] * _ENTRY.size] else None
    except (OSError, ValueError, LookupError, TypeError):
        return None


def _copy(folder: Path, images: Iterable[bytes | None], expected: int) -> int:
    """Write images and index; returns the bytes of the images, of which about `expected` must find room."""
    folder.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(folder).free
    if expected > free:
        raise _full(folder, f"{expected / 1e9:.1f} GB are needed, {free / 1e9:.1f} GB are free")
    written = 0

    def write(images_path: Path, index_path: Path) -> None:
        nonlocal written
        with images_path.open("wb") as data, index_path.open("wb") as index:
            written = _write(images, data, index)

    try:
        replace_atomic(folder / _IMAGES, lambda data: replace_atomic(folder / _INDEX, lambda index: write(data, index)))
    except OSError as error:
        if error.errno not in _FULL:
            raise
        raise _full(folder, "no space is left on the disk") from None
    return written


def _write(images: Iterable[bytes | None], data: BinaryIO, index: BinaryIO) -> int:
    start = 0
    for content in images:
        if content is None:
            index.write(_ENTRY.pack(start, _MISSING, 0))
            continue
        index.write(_ENTRY.pack(start, len(content), zlib.crc32(content)))
        start += data.write(content)
    return start


def _full(folder: Path, why: str) -> DataError:
    return DataError(
        f"{folder}: images cannot be copied here to be streamed: {why}",
        hint="free some space (`edgekd store gc --keep 20`), choose another --store, or set `data.limit`",
    )
