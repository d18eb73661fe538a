"""Digests of data files, remembered so that an unchanged data set is not read again."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from edgekd.data.settings import SPLITS
from edgekd.errors import DataError
from edgekd.files import sha256_file, write_atomic


class Memo:
    """A small JSON file: sha256 by (absolute path, size, modification time), and sizes of splits by fingerprint.

    It only saves work: a file that cannot be read counts as empty, and one that cannot be written is let be.
    """

    def __init__(self, path: Path | None) -> None:
        self._path = path

    def digests(self, files: Mapping[str, Path]) -> dict[str, str]:
        """Hex sha256 of every file, by the names given.

        Raises:
            DataError: a file cannot be read.
        """
        known = self._read()["files"]
        fresh: dict[str, list[Any]] = {}
        result: dict[str, str] = {}
        for name, path in files.items():
            absolute = str(path.absolute())
            try:
                status = path.stat()  # before reading: if the file changes meanwhile, the next look sees another time
                entry = known.get(absolute)
                if not isinstance(entry, list) or entry[:2] != [status.st_size, status.st_mtime_ns]:
                    entry = fresh[absolute] = [status.st_size, status.st_mtime_ns, sha256_file(path)]
            except OSError as error:
                raise DataError(
                    f"{path}: cannot be read: {error.strerror}", hint="check the file and its rights"
                ) from None
            result[name] = entry[2]
        if fresh:
            self._update("files", fresh)
        return result

    def counts(self, fingerprint: str) -> dict[str, int] | None:
        """The sizes of the splits of a data set, if they are known."""
        found = self._read()["counts"].get(fingerprint)
        return dict(found) if isinstance(found, dict) and set(found) == set(SPLITS) else None

    def remember_counts(self, fingerprint: str, counts: Mapping[str, int]) -> None:
        """Keep the sizes of the splits of a data set."""
        self._update("counts", {fingerprint: dict(counts)})

    def _read(self) -> dict[str, dict[str, Any]]:
        content: Any = None
        if self._path is not None:
            with contextlib.suppress(OSError, ValueError):
                content = json.loads(self._path.read_bytes())
        parts = content if isinstance(content, dict) else {}
        return {key: parts[key] if isinstance(parts.get(key), dict) else {} for key in ("files", "counts")}

    def _update(self, part: str, entries: Mapping[str, Any]) -> None:
        if self._path is None:
            return
        content = self._read()
        content[part].update(entries)
        with contextlib.suppress(OSError):
            write_atomic(self._path, json.dumps(content, sort_keys=True))
