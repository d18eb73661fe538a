"""Digests of edgekd's own sources, which stand in the keys of stages; each state of a file is parsed once (torch-free).

Parsing takes most of a second for all of edgekd. What comes out is remembered by the bytes of the file: in the store,
and in the user's cache folder for the next store that is new. Without either it is parsed again, and is the same.
"""

from __future__ import annotations

import contextlib
import functools
import json
import os
import platform
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

from edgekd.files import sha256_file, write_atomic
from edgekd.models import source
from edgekd.runtimes.timing_cache import user_cache
from edgekd.stages.kinds import StageKind
from edgekd.store import Store

_ROOT = Path(__file__).resolve().parent.parent
_NAME = "sources.json"
_MAX_REMEMBERED = 2000
_SETTLED_NS = 3_000_000_000  # longer than the coarsest time stamps of files


def sources_of(kind: StageKind, store: Store) -> dict[str, str]:
    """Digests of the rooms and the stage files that a stage's result depends on."""
    memo = SourceMemo(*_places(store))
    found = {room: memo.digest([_ROOT / room]) for room in kind.rooms}
    own = kind.function.partition(":")[0].rsplit(".", 1)[-1]
    files = sorted({_ROOT / "stages" / f"{name}.py" for name in (own, "context", "settings", *kind.shares)})
    found["stages"] = memo.digest(files)
    memo.keep()
    return found


def _places(store: Store) -> Iterator[Path]:
    yield store.root / _NAME
    with contextlib.suppress(RuntimeError):  # a user without a home
        yield user_cache() / _NAME


class SourceMemo:
    """Digests of syntax trees by the bytes that they were made from, kept in each of these places that can be written.

    What a place holds is good for one version of Python and one way of making digests.
    """

    def __init__(self, *places: Path) -> None:
        self._held = {place: _read(str(place), *_state(place)) for place in places}
        self._known = {name: digest for held in self._held.values() for name, digest in held.items()}
        self._used: dict[str, str] = {}

    def digest(self, places: list[Path]) -> str:
        """Digest of the syntax trees below some places."""
        files = sorted(path for place in places for path in _python_files(place))
        return _together(_ROOT, tuple((path, self._digest_of(path)) for path in files))

    def keep(self) -> None:
        """Write what a place lacks of what was asked for. A place that cannot be written costs time, nothing else."""
        for place, held in self._held.items():
            if not self._used.keys() <= held.keys():
                others = [(name, digest) for name, digest in self._known.items() if name not in self._used]
                text = json.dumps(dict([*others, *self._used.items()][-_MAX_REMEMBERED:]), indent=0)
                with contextlib.suppress(OSError):
                    write_atomic(place, text, durable=False)

    def _digest_of(self, path: str) -> str:
        content = _bytes_digest(path)
        name = f"{_made_by()}/{content}"
        digest = self._known.get(name) or self._used.get(name)
        if digest is None:
            digest = source.code_of(Path(path))[0]
            if sha256_file(Path(path)) != content:
                return digest  # edited meanwhile: it may be that of either
        self._used[name] = digest
        return digest


@functools.lru_cache(maxsize=256)
def _together(root: Path, digests: tuple[tuple[str, str], ...]) -> str:
    """One digest of files with those of each; stages share their rooms."""
    known = {Path(path): digest for path, digest in digests}
    return source.source_digest(known, root=root, digest_of=known.__getitem__)


@functools.cache
def _made_by() -> str:
    """The versions of Python, whose syntax trees differ, and of what makes a digest of one."""
    return f"{platform.python_version()}/{sha256_file(Path(source.__file__))[:12]}"


def _state(path: Path) -> tuple[int, ...]:
    """What differs between two states of a file; of one that is not there, nothing."""
    try:
        found = path.stat()
    except OSError:
        return ()
    return (found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns)


@functools.lru_cache(maxsize=16)
def _read(path: str, *state: int) -> Mapping[str, str]:
    """What a file remembers; every stage asks."""
    try:
        found = json.loads(Path(path).read_bytes()) if state else {}
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) and all(isinstance(digest, str) for digest in found.values()) else {}


def _python_files(place: Path) -> Iterator[str]:
    """A file, or the Python files below a folder. Every stage looks through its rooms: pathlib takes thrice as long."""
    if not place.is_dir():
        yield str(place)
    for folder, _, names in os.walk(place):
        yield from (os.path.join(folder, name) for name in names if name.endswith(".py"))


def _bytes_digest(path: str) -> str:
    """sha256 of a source file, which is read once in a process while it stays what it was: stages share their rooms.

    A file that changed within the last seconds is read every time: its next change may leave time and size alike.
    """
    found = os.stat(path)
    if time.time_ns() - max(found.st_mtime_ns, found.st_ctime_ns) < _SETTLED_NS:
        return sha256_file(Path(path))
    return _settled_digest(path, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns)


@functools.lru_cache(maxsize=_MAX_REMEMBERED)
def _settled_digest(path: str, *state: int) -> str:
    return sha256_file(Path(path))
