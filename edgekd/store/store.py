"""Artefacts by key: published whole by one rename, verified by sha256 when read, kept apart from work in progress.

objects/ab/abcd../meta.json   every file's sha256, the artefact's digest, facts
objects/ab/abcd../..          the files
work/<key>/                   checkpoints of a stage that has not finished
locks/<key>                   held while a stage works on that key
memo.json                     digests of data files by path, size and time
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from edgekd.errors import TryAgainError
from edgekd.files import canonical_json, lock, sha256_file, sha256_json, write_atomic

_META = "meta.json"
_STALE_S = 3600.0


@dataclass(frozen=True)
class Artifact:
    """A finished result of a stage: a folder, the sha256 of each file in it, and the facts the stage stated.

    `record` is what may differ between two runs that built the same thing (seconds); it is not part of the digest.
    """

    key: str
    folder: Path
    files: dict[str, str]
    facts: dict[str, Any]
    record: dict[str, Any]
    digest: str

    def path(self, name: str) -> Path:
        """Path of one file of the artefact."""
        return self.folder / name


@dataclass
class Draft:
    """What a stage fills while it works: files in `folder`, `facts`, `record`."""

    folder: Path
    facts: dict[str, Any] = field(default_factory=dict)
    record: dict[str, Any] = field(default_factory=dict)


class Store:
    """Artefacts below one folder."""

    def __init__(self, root: Path) -> None:
        self.root = root

    @property
    def memo(self) -> Path:
        """Where digests of data files are remembered."""
        return self.root / "memo.json"

    def get(self, key: str, *, verify: bool = True) -> Artifact | None:
        """The artefact of a key, or None. One that fails verification is removed: it is built again, never served."""
        folder = self._object(key)
        try:
            meta = json.loads((folder / _META).read_text())
            artifact = Artifact(key, folder, meta["files"], meta["facts"], meta["record"], meta["digest"])
        except FileNotFoundError:
            return None
        except (ValueError, KeyError, TypeError):
            self.discard(key)
            return None
        if verify and self.problems(artifact):
            self.discard(key)
            return None
        return artifact

    def problems(self, artifact: Artifact) -> list[str]:
        """What is wrong with a stored artefact: missing, changed or unknown files."""
        found = []
        if artifact.digest != _digest(artifact.files, artifact.facts):
            found.append(f"{artifact.key[:12]}: meta.json was changed")
        for name, sha256 in artifact.files.items():
            path = artifact.path(name)
            if not path.is_file():
                found.append(f"{artifact.key[:12]}: {name} is missing")
            elif sha256_file(path) != sha256:
                found.append(f"{artifact.key[:12]}: {name} was changed")
        return found

    @contextlib.contextmanager
    def publish(self, key: str) -> Iterator[Draft]:
        """Give a draft to fill; on a clean exit it becomes the artefact of the key."""
        staging = self.root / "staging" / f"{key}.{os.getpid()}"
        shutil.rmtree(staging, ignore_errors=True)
        staging.mkdir(parents=True)
        draft = Draft(staging)
        try:
            yield draft
            self._commit(key, draft)
        finally:
            shutil.rmtree(staging, ignore_errors=True)
        shutil.rmtree(self.work(key, create=False), ignore_errors=True)

    def work(self, key: str, *, create: bool = True) -> Path:
        """The folder for checkpoints of a stage that works on this key."""
        folder = self.root / "work" / key
        if create:
            folder.mkdir(parents=True, exist_ok=True)
        return folder

    def cache(self, kind: str, key: str) -> Path:
        """The folder of a cache that checks itself; `collect` may delete it."""
        return self.root / "caches" / kind / key

    @contextlib.contextmanager
    def locked(self, key: str, *, timeout_s: float, on_wait: Callable[[], None] | None = None) -> Iterator[None]:
        """Hold a key, so that two runs on one store never build it both."""
        with lock(
            self.root / "locks" / key,
            timeout_s=timeout_s,
            on_wait=on_wait,
            holder_hint="another run builds this; wait for it, or use another --store",
        ):
            yield

    def discard(self, key: str) -> None:
        """Take an artefact out of service at once, then delete it."""
        folder = self._object(key)
        if not folder.exists():
            return
        bin_ = self.root / "staging" / f"discarded.{key[:16]}.{os.getpid()}"
        bin_.parent.mkdir(parents=True, exist_ok=True)
        with contextlib.suppress(FileNotFoundError):
            folder.replace(bin_)
        shutil.rmtree(bin_, ignore_errors=True)

    def all(self) -> list[Artifact]:
        """Every artefact, without verification, the newest first."""
        metas = sorted(self.root.glob(f"objects/*/*/{_META}"), key=lambda p: p.stat().st_mtime, reverse=True)
        found = (self.get(meta.parent.name, verify=False) for meta in metas)
        return [artifact for artifact in found if artifact is not None]

    def collect(self, *, keep: int) -> tuple[int, int]:
        """Delete all but the `keep` newest artefacts and caches, and abandoned work; return (count, bytes) gone."""
        count = size = 0
        for artifact in self.all()[keep:]:
            size += _size(artifact.folder)
            count += 1
            self.discard(artifact.key)
        caches = sorted(self.root.glob("caches/*/*"), key=lambda p: p.stat().st_mtime, reverse=True)
        for folder in caches[keep:]:
            size += _size(folder)
            count += 1
            shutil.rmtree(folder, ignore_errors=True)
        for pattern in ("work/*", "staging/*"):
            for folder in self.root.glob(pattern):
                if time.time() - folder.stat().st_mtime > _STALE_S and not self._in_use(folder.name.split(".")[0]):
                    size += _size(folder)
                    shutil.rmtree(folder, ignore_errors=True)
        return count, size

    def _commit(self, key: str, draft: Draft) -> None:
        staging = draft.folder
        paths = sorted(p for p in staging.rglob("*") if p.is_file())
        files = {}
        for path in paths:
            with path.open("rb") as stream:
                os.fsync(stream.fileno())
            files[path.relative_to(staging).as_posix()] = sha256_file(path)
        facts = json.loads(canonical_json(draft.facts))
        meta = {"key": key, "files": files, "facts": facts, "record": draft.record, "digest": _digest(files, facts)}
        write_atomic(staging / _META, json.dumps(meta, indent=1, sort_keys=True))
        self.discard(key)
        target = self._object(key)
        target.parent.mkdir(parents=True, exist_ok=True)
        staging.replace(target)

    def _in_use(self, key: str) -> bool:
        """Whether a run holds this key: however long ago it last wrote, its work is not abandoned."""
        try:
            with self.locked(key, timeout_s=0):
                return False
        except TryAgainError:
            return True

    def _object(self, key: str) -> Path:
        return self.root / "objects" / key[:2] / key


def _digest(files: dict[str, str], facts: dict[str, Any]) -> str:
    return sha256_json({"files": files, "facts": facts})


def _size(folder: Path) -> int:
    """Bytes on disk."""
    return sum(path.stat().st_blocks * 512 for path in folder.rglob("*") if path.is_file())
