"""What runs use: keys in a file for each run, locked while it lives, so that nothing is collected under its feet."""

from __future__ import annotations

import contextlib
import json
import re
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from edgekd.errors import TryAgainError
from edgekd.files import lock, write_atomic

_PATIENCE_S = 600.0
_NOTED = re.compile(r".+\.[0-9a-f]{12}\.json")
_HINT = "`edgekd store gc` works on this store; run it again when that is done"


class Usage:
    """The keys that one run uses. A key is noted before its artefact is looked up, and `collecting` excludes that."""

    def __init__(self, root: Path, pipeline: str, token: str) -> None:
        self._root, self._pipeline, self._token = root, pipeline, token
        self._path = root / "runs" / f"{pipeline}.{token}.json"
        self._keys: list[str] = []

    @classmethod
    @contextlib.contextmanager
    def open(cls, root: Path, pipeline: str) -> Iterator[Usage]:
        """Note what a run of a pipeline uses, and hold it for as long as the run lives."""
        token = uuid.uuid4().hex[:12]
        own = _lock_of(root, token)
        with lock(own, timeout_s=_PATIENCE_S, holder_hint=_HINT):
            yield cls(root, pipeline, token)
            own.unlink(missing_ok=True)

    def add(self, key: str) -> None:
        """Note a key."""
        if key not in self._keys:
            self._keys.append(key)
            with collecting(self._root):
                self._write(whole=False)

    def finish(self) -> None:
        """The run came to its end: it takes the place of earlier runs of its pipeline."""
        with collecting(self._root):
            self._write(whole=True)
            for path in _files(self._root):
                if path != self._path and _owner(path) == self._pipeline and not _lives(self._root, path):
                    path.unlink(missing_ok=True)

    def _write(self, *, whole: bool) -> None:
        write_atomic(self._path, json.dumps({"keys": self._keys, "whole": whole}))


@contextlib.contextmanager
def collecting(root: Path) -> Iterator[None]:
    """Exclude that a key is noted while artefacts are taken out of service, and the other way round."""
    with lock(root / "locks" / "gc", timeout_s=_PATIENCE_S, holder_hint=_HINT):
        yield


def used_keys(root: Path) -> set[str]:
    """Keys of every live run, and of each pipeline's newest whole run and later ones. Call it while `collecting`."""
    runs = sorted(_files(root), key=lambda path: path.stat().st_mtime, reverse=True)
    used: set[str] = set()
    served: set[str] = set()
    for path in runs:
        content = _read(path)
        if _owner(path) not in served or _lives(root, path):
            used |= set(content["keys"])
        else:
            path.unlink(missing_ok=True)
        if content["whole"]:
            served.add(_owner(path))
    return used


def _files(root: Path) -> list[Path]:
    """What runs have noted; other files may lie there in a store that is a folder of the user's."""
    return [path for path in root.glob("runs/*.json") if _NOTED.fullmatch(path.name)]


def _read(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_bytes())
        return {"keys": list(content["keys"]), "whole": bool(content["whole"])}
    except (OSError, ValueError, KeyError, TypeError):
        return {"keys": [], "whole": False}


def _owner(path: Path) -> str:
    """The pipeline of a run's file, `<pipeline>.<token>.json`."""
    return path.name.rsplit(".", 2)[0]


def _lives(root: Path, path: Path) -> bool:
    own = _lock_of(root, path.name.rsplit(".", 2)[1])
    if not own.exists():
        return False
    try:
        with lock(own, timeout_s=0, holder_hint=_HINT):
            own.unlink(missing_ok=True)
            return False
    except TryAgainError:
        return True


def _lock_of(root: Path, token: str) -> Path:
    return root / "locks" / f"run.{token}"
