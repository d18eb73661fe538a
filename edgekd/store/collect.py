"""Garbage collection: what was not used for longest goes first, and nothing that a live or newest run uses."""

from __future__ import annotations

import contextlib
import shutil
import time
from pathlib import Path

from edgekd.errors import TryAgainError
from edgekd.files import temporaries
from edgekd.store.artifact import is_key
from edgekd.store.store import Store
from edgekd.store.usage import collecting, used_keys

_STALE_S = 3600.0
_NOTES = ("memo.json", "sources.json", "devices.json", "drawings.json")


def collect(store: Store, *, keep: int, max_bytes: int | None = None) -> tuple[int, int, int]:
    """Delete artefacts, caches and abandoned work; return (artefacts and caches, bytes) gone, and artefacts in use.

    The `keep` artefacts (and as many caches) that were used last stay, and of these, with `max_bytes`, as many as fit:
    caches go before artefacts. What a live run uses, or the newest whole run of any pipeline, stays in any case; of
    these, those are counted that would be gone otherwise.

    Raises:
        TryAgainError: another collection is at work.
    """
    bins: list[Path] = []
    gone = size = in_use = 0
    with collecting(store.root):
        used = used_keys(store.root)
        artifacts = store.all()
        sizes = {artifact.key: disk_bytes(artifact.folder) for artifact in artifacts}
        caches = _caches(store.root)
        cached = {folder: disk_bytes(folder) for folder in caches}
        total = sum(sizes.values()) + sum(cached.values())
        for place, folder in reversed([*enumerate(caches)]):
            if place >= keep or (max_bytes is not None and total > max_bytes):
                total -= cached[folder]
                size += cached[folder]
                gone += 1
                shutil.rmtree(folder, ignore_errors=True)
        for place, artifact in reversed([*enumerate(artifacts)]):
            too_much = max_bytes is not None and total > max_bytes
            if not (place >= keep or too_much):
                continue
            if artifact.key in used or held(store, artifact.key):
                in_use += 1
                continue
            bin_ = store.retire(artifact.key)
            if bin_ is not None:
                bins.append(bin_)
                total -= sizes[artifact.key]
                size += sizes[artifact.key]
                gone += 1
    for bin_ in bins:
        shutil.rmtree(bin_, ignore_errors=True)
    return gone, size + _sweep(store), in_use


def held(store: Store, key: str) -> bool:
    """Whether a run holds this key: however long ago it last wrote, its work is not abandoned."""
    if not (store.root / "locks" / key).exists():
        return False
    try:
        with store.locked(key, timeout_s=0):
            return False
    except TryAgainError:
        return True


def disk_bytes(folder: Path) -> int:
    """Bytes on disk."""
    total = 0
    for path in folder.rglob("*"):
        with contextlib.suppress(FileNotFoundError):  # its owner may be at work
            total += path.stat().st_blocks * 512 if path.is_file() else 0
    return total


def _caches(root: Path) -> list[Path]:
    found = (path for path in root.glob("caches/*/*") if is_key(path.name))
    return sorted(found, key=lambda path: path.stat().st_mtime, reverse=True)


def _sweep(store: Store) -> int:
    """Delete what killed runs left behind: checkpoints and drafts that nobody touched for an hour, and free locks."""
    size = 0
    for pattern in ("work/*", "staging/*"):
        for folder in store.root.glob(pattern):
            key = folder.name.partition(".")[0]
            stale = is_key(key) and time.time() - folder.stat().st_mtime > _STALE_S
            if stale and not held(store, key):
                size += disk_bytes(folder)
                shutil.rmtree(folder, ignore_errors=True)
    for place in (*_NOTES, "last/*.json", "runs/*.json"):  # files that were being written
        for path in temporaries((store.root / place).parent, Path(place).name):
            if time.time() - path.stat().st_mtime > _STALE_S:
                path.unlink(missing_ok=True)
    for path in store.root.glob("locks/*"):
        old = time.time() - path.stat().st_mtime > _STALE_S
        if old and is_key(path.name):
            with contextlib.suppress(TryAgainError), store.locked(path.name, timeout_s=0):
                path.unlink(missing_ok=True)
    return size
