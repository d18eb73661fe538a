"""Digests of data files, remembered so that an unchanged data set is not read again."""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from edgekd.data.sources import SPLITS
from edgekd.errors import DataError
from edgekd.files import sha256_file, write_atomic

_PARTS = ("files", "counts", "normalization", "broken")


class Memo:
    """A small JSON file: digests of files by their path, size and time; by fingerprint what was counted and measured.

    It only saves work: a file that cannot be read counts as empty, and one that cannot be written is let be.
    """

    def __init__(self, path: Path | None) -> None:
        self._path = path

    def digests(self, groups: Mapping[str, Sequence[Path]]) -> dict[str, str]:
        """Hex sha256 of the names and contents of each group of files, by the names given.

        A group is read again when one of its files changed. One entry for each group keeps the memo small where a
        folder holds a million images.

        Raises:
            DataError: a file cannot be read.
        """
        known = self._read()["files"]
        fresh: dict[str, list[str]] = {}
        result: dict[str, str] = {}
        for name, paths in groups.items():
            first = str(paths[0].absolute())
            # Before reading: if a file changes meanwhile, the next look sees another time.
            state = _digest(paths, lambda path: f"{path.stat().st_size} {path.stat().st_mtime_ns}")
            entry = known.get(first)
            if not isinstance(entry, list) or entry[:1] != [state]:
                entry = fresh[first] = [state, _digest(paths, sha256_file)]
            result[name] = entry[1]
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

    def normalization(self, fingerprint: str) -> dict[str, list[Any]] | None:
        """What `remember_normalization` kept."""
        found = self._read()["normalization"].get(fingerprint)
        return dict(found) if isinstance(found, dict) else None

    def remember_normalization(self, fingerprint: str, found: Mapping[str, list[Any]]) -> None:
        """Keep mean, std and scale of each input of a data set."""
        self._update("normalization", {fingerprint: dict(found)})

    def broken(self, key: str) -> dict[str, list[Any]] | None:
        """What `remember_broken` kept."""
        found = self._read()["broken"].get(key)
        return dict(found) if isinstance(found, dict) else None

    def remember_broken(self, key: str, found: Mapping[str, list[Any]]) -> None:
        """Keep the broken images of each split of a source."""
        self._update("broken", {key: dict(found)})

    def _read(self) -> dict[str, dict[str, Any]]:
        content: Any = None
        if self._path is not None:
            with contextlib.suppress(OSError, ValueError):
                content = json.loads(self._path.read_bytes())
        parts = content if isinstance(content, dict) else {}
        return {key: parts[key] if isinstance(parts.get(key), dict) else {} for key in _PARTS}

    def _update(self, part: str, entries: Mapping[str, Any]) -> None:
        if self._path is None:
            return
        content = self._read()
        content[part].update(entries)
        with contextlib.suppress(OSError):
            write_atomic(self._path, json.dumps(content, sort_keys=True))


def _digest(paths: Sequence[Path], say: Callable[[Path], str]) -> str:
    """Hex sha256 of what is said of each file, with its name."""
    digest = hashlib.sha256()
    for path in paths:
        try:
            digest.update(f"{say(path)} {path.name}\n".encode(errors="surrogateescape"))
        except OSError as error:
            raise DataError(f"{path}: cannot be read: {error.strerror}", hint="check the file and its rights") from None
    return digest.hexdigest()
