"""Artefacts by key: published whole by one rename, verified by sha256 when read, kept apart from work in progress.

objects/ab/abcd../meta.json   every file's sha256, the artefact's digest, facts
objects/ab/abcd../..          the files
work/<key>/                   checkpoints of a stage that has not finished
staging/<key>.<token>/        an artefact that is not whole yet, or no longer
locks/<key>                   held while a stage works on that key
runs/<pipeline>.<token>.json  keys that a run uses: `gc` leaves them alone
memo.json                     digests of data files by path, size and time
drawings.json                 drawings of the last reports

Behind the folder may stand further levels (a store that is only read, a remote one): what is missing here is copied
from them, verified.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import uuid
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Protocol

from edgekd.errors import TryAgainError
from edgekd.files import lock, sha256_file, sync_folder, write_atomic
from edgekd.store.artifact import META, Artifact, Draft, Place, meta_text, parse_meta, problems_of, strangers_in
from edgekd.store.usage import Usage

_SYNCS = 8


class Level(Protocol):
    """Where artefacts may lie that this store lacks."""

    place: Place

    def peek(self, key: str) -> Artifact | None:
        """What is known of an artefact without its files, which need not be whole."""
        ...

    def fetch(self, key: str, folder: Path) -> Artifact | None:
        """Copy an artefact's files into a folder, verified; None where it has none, or no whole one."""
        ...


class Store:
    """Artefacts below one folder.

    `behind`: levels that artefacts are copied from when they are missing here. `pushes`: brings one to a remote store,
    where it may. `tell` takes warnings. `damaged` holds by key what was wrong with artefacts that were found damaged.
    """

    def __init__(self, root: Path, *, behind: Sequence[Level] = ()) -> None:
        self.root, self.behind = root, tuple(behind)
        self.tell: Callable[[str], None] = lambda text: None
        self.pushes: Callable[..., bool] | None = None
        self.damaged: dict[str, str] = {}
        self._usage: Usage | None = None

    @property
    def memo(self) -> Path:
        """Where digests of data files are remembered."""
        return self.root / "memo.json"

    @property
    def drawings(self) -> Path:
        """Where the drawings of reports are remembered."""
        return self.root / "drawings.json"

    def get(self, key: str, *, verify: bool = True) -> Artifact | None:
        """The artefact of a key in this folder, or None. A damaged one is removed: it is built again, never served."""
        artifact, wrong = self._read(key, verify=verify)
        if not wrong:
            if artifact is not None and verify:
                with contextlib.suppress(OSError):  # its time is that of the last use
                    os.utime(artifact.path(META))
            return artifact
        # Whoever holds the key may be replacing it at this moment, and will publish over it.
        with contextlib.suppress(TryAgainError), self.locked(key, timeout_s=0):
            artifact, wrong = self._read(key, verify=verify)
            if not wrong:
                return artifact
            self.discard(key)
        self._warn_of(key, wrong, "held")
        return None

    def find(self, key: str, *, far: bool = True) -> Artifact | None:
        """The artefact of a key, here or (`far`) on the levels behind, from which it is copied; or None."""
        self.use(key)
        artifact = self.get(key)
        for level in self.behind if artifact is None else ():
            if far or level.place == "local":
                artifact = self._copied(key, level)
            if artifact is not None:
                break
        return artifact

    def peek(self, key: str, *, far: bool = True) -> Artifact | None:
        """The artefact of a key as `find` gives it, but nothing is changed here: a damaged one is left for a run to
        remove, and files of a level behind are not copied."""
        artifact, wrong = self._read(key, verify=True)
        if wrong:
            artifact = None
            self._warn_of(key, wrong, "holds")
        for level in self.behind if artifact is None else ():
            if artifact is None and (far or level.place == "local"):
                artifact = level.peek(key)
        return artifact

    def use(self, key: str) -> None:
        """Note that the run at work uses a key."""
        if self._usage is not None:
            self._usage.add(key)

    @contextlib.contextmanager
    def in_use_by(self, pipeline: str) -> Iterator[Usage]:
        """While a run of a pipeline works, `collect` leaves alone what it uses; afterwards until its next whole run."""
        with Usage.open(self.root, pipeline) as self._usage:
            yield self._usage
        self._usage = None

    @contextlib.contextmanager
    def publish(self, key: str) -> Iterator[Draft]:
        """Give a draft to fill; on a clean exit it becomes the artefact of the key. The caller holds the key."""
        for left in self.root.glob(f"staging/{key}.*"):  # by a run that was killed: whoever publishes holds the key
            shutil.rmtree(left, ignore_errors=True)
        draft = Draft(self._staging(key))
        try:
            yield draft
            self._commit(key, draft)
        finally:
            shutil.rmtree(draft.folder, ignore_errors=True)
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
        bin_ = self.retire(key)
        if bin_ is not None:
            shutil.rmtree(bin_, ignore_errors=True)

    def retire(self, key: str) -> Path | None:
        """Take an artefact out of service by one rename; returns where it lies now."""
        bin_ = self.root / "staging" / f"{key}.{uuid.uuid4().hex[:12]}"
        bin_.parent.mkdir(parents=True, exist_ok=True)
        try:
            self.object(key).replace(bin_)
        except FileNotFoundError:
            return None
        return bin_

    def all(self) -> list[Artifact]:
        """Every artefact whose meta.json is whole, its files not verified, the last used first."""
        metas = sorted(self.root.glob(f"objects/*/*/{META}"), key=lambda p: p.stat().st_mtime, reverse=True)
        found = (self._read(meta.parent.name, verify=False)[0] for meta in metas)
        return [artifact for artifact in found if artifact is not None]

    def check(self) -> tuple[int, list[str]]:
        """Number of artefacts, and what is wrong with them: missing, changed and unknown files. Nothing is removed."""
        keys = sorted(path.name for path in self.root.glob("objects/*/*"))
        problems = []
        for key in keys:
            artifact, wrong = self._read(key, verify=True)
            wrong += strangers_in(artifact) if artifact is not None else []
            if artifact is None and not wrong:
                wrong = [f"{META} is missing"]
            problems += [f"{key[:12]}: {text}" for text in wrong]
        return len(keys), problems

    def object(self, key: str) -> Path:
        """The folder of a key's artefact."""
        return self.root / "objects" / key[:2] / key

    def _read(self, key: str, *, verify: bool) -> tuple[Artifact | None, list[str]]:
        """The artefact of a key, and what is wrong with it."""
        folder = self.object(key)
        try:
            artifact = parse_meta(key, folder, (folder / META).read_bytes())
        except (FileNotFoundError, NotADirectoryError):
            return None, []
        except ValueError as error:
            return None, [str(error)]
        return artifact, problems_of(artifact) if verify else []

    def _warn_of(self, key: str, wrong: list[str], verb: str) -> None:
        more = f" and {len(wrong) - 1} more" if len(wrong) > 1 else ""
        self.damaged[key] = f"{wrong[0]}{more}"
        self.tell(f"the store {verb} a damaged artefact, {key[:12]}: {wrong[0]}{more}")

    def _copied(self, key: str, level: Level) -> Artifact | None:
        """Copy an artefact from a level behind; None where it has none, or another run is at it and will have it."""
        try:
            with self.locked(key, timeout_s=0):
                if (artifact := self.get(key, verify=False)) is not None:
                    return artifact  # another run was quicker
                staging = self._staging(key)
                try:
                    found = level.fetch(key, staging)
                    if found is None:
                        return None
                    write_atomic(staging / META, meta_text(key, found.files, found.facts, found.record), durable=False)
                    self._install(key, staging)
                finally:
                    shutil.rmtree(staging, ignore_errors=True)
        except TryAgainError:
            return None
        return parse_meta(key, self.object(key), (self.object(key) / META).read_bytes(), level.place)

    def _staging(self, key: str) -> Path:
        folder = self.root / "staging" / f"{key}.{uuid.uuid4().hex[:12]}"
        folder.mkdir(parents=True)
        return folder

    def _commit(self, key: str, draft: Draft) -> None:
        paths = sorted(p for p in draft.folder.rglob("*") if p.is_file())
        files = {path.relative_to(draft.folder).as_posix(): sha256_file(path) for path in paths}
        write_atomic(draft.folder / META, meta_text(key, files, draft.facts, draft.record), durable=False)
        self._install(key, draft.folder)

    def _install(self, key: str, staging: Path) -> None:
        """Put a whole artefact into service: forced to disk first, then by one rename."""
        from concurrent.futures import ThreadPoolExecutor

        inside = list(staging.rglob("*"))
        with ThreadPoolExecutor(_SYNCS) as threads:  # a disk takes those that come together in one go
            list(threads.map(_sync, [path for path in inside if path.is_file()]))
        for folder in (*(path for path in inside if path.is_dir()), staging):
            sync_folder(folder)
        self.discard(key)
        target = self.object(key)
        target.parent.mkdir(parents=True, exist_ok=True)
        staging.replace(target)
        sync_folder(target.parent)


def _sync(path: Path) -> None:
    with path.open("rb") as stream:
        os.fsync(stream.fileno())
