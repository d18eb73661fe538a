"""Files that cannot be half written, locks that die with their holder, and digests."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import re
import signal
import socket
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any

from edgekd.errors import TryAgainError

_PR_SET_PDEATHSIG = 1
_TEMPORARY = re.compile(r"\..+\.[a-z0-9_]{8}")  # as `replace_atomic` has tempfile name them


def write_atomic(path: Path, content: bytes | str) -> None:
    """Write `content` to `path` so that a reader sees the old file or the new one, never a part of it."""
    data = content.encode() if isinstance(content, str) else content

    def write(temporary: Path) -> None:
        temporary.write_bytes(data)

    replace_atomic(path, write)


def replace_atomic(path: Path, write: Callable[[Path], None]) -> None:
    """Let `write` fill a temporary file beside `path`, force it to disk, then put it in place of `path`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    os.close(handle)
    temporary = Path(name)
    try:
        write(temporary)
        with temporary.open("rb") as written:
            os.fsync(written.fileno())
        temporary.chmod(0o644)
        temporary.replace(path)
    except BaseException as error:
        temporary.unlink(missing_ok=True)
        if isinstance(error, OSError):
            error.filename = str(path)  # a full disk is reported with the file that was to be written
        raise


def temporaries(folder: Path, pattern: str) -> list[Path]:
    """What writers that were killed left in a folder of files whose names match a glob pattern; no other dotfile."""
    return [path for path in folder.glob(f".{pattern}.*") if _TEMPORARY.fullmatch(path.name) and path.is_file()]


def from_here(path: Path) -> str:
    """A path as somebody would type it here: from the current directory if it lies below that, else as a whole."""
    whole, here = Path(os.path.normpath(path.absolute())), Path.cwd()
    return str(whole.relative_to(here) if whole.is_relative_to(here) else whole)


def sha256_file(path: Path) -> str:
    """Hex sha256 of a file's content."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def sha256_bytes(data: bytes) -> str:
    """Hex sha256 of bytes."""
    return hashlib.sha256(data).hexdigest()


def canonical_json(value: Any) -> str:
    """The one text of a plain value: sorted keys, no white space, no NaN."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False, ensure_ascii=True)


def sha256_json(value: Any) -> str:
    """Hex sha256 of a plain value's canonical JSON."""
    return sha256_bytes(canonical_json(value).encode())


@contextlib.contextmanager
def lock(
    path: Path, *, timeout_s: float, holder_hint: str, on_wait: Callable[[], None] | None = None
) -> Iterator[None]:
    """Hold an exclusive lock on `path`; the kernel frees it when its holder dies, however it dies.

    `on_wait` is called once when another process holds it and there is time to wait.

    Raises:
        TryAgainError: another process still held it after `timeout_s` seconds.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    deadline = time.monotonic() + timeout_s
    with contextlib.ExitStack() as closing:
        while True:
            stream = closing.enter_context(path.open("a+"))
            try:
                fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if _still_is(path, stream):
                    break
            except BlockingIOError:
                if time.monotonic() >= deadline:
                    held = f"{path} is held by another process{_holder(stream)}"
                    raise TryAgainError(held, hint=holder_hint) from None
                if on_wait is not None:
                    on_wait()
                    on_wait = None
                time.sleep(0.1)
            closing.close()  # what was locked may have been deleted meanwhile: look at the path anew
        with contextlib.suppress(OSError):  # who holds it is for people to read; a full disk keeps it from nobody
            os.ftruncate(stream.fileno(), 0)
            os.write(stream.fileno(), f"process {os.getpid()} on {socket.gethostname()}".encode())
        try:
            yield
        finally:
            fcntl.flock(stream, fcntl.LOCK_UN)  # also where a forked child has the file open


def _still_is(path: Path, stream: IO[str]) -> bool:
    """Whether an open file is the one at `path`: its last holder may have deleted it."""
    try:
        return os.path.samestat(path.stat(), os.fstat(stream.fileno()))
    except FileNotFoundError:
        return False


def _holder(stream: IO[str]) -> str:
    """Who holds a lock, as the holder wrote it: ` (process 12 on ci3)`."""
    with contextlib.suppress(OSError, ValueError):
        stream.seek(0)
        text = stream.read(200)
        return f" ({text})" if text.isprintable() and text else ""
    return ""


def sync_folder(path: Path) -> None:
    """Force a folder's entries to disk, where the system can."""
    with contextlib.suppress(OSError):
        handle = os.open(path, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def launched() -> bool:
    """Whether torchrun started this process as one of several."""
    return int(os.environ.get("WORLD_SIZE", "1")) > 1


def processes_here() -> int:
    """How many of a run's processes share this machine, and its memory and cores."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", "1")) if launched() else 1


def die_with_parent() -> None:
    """Have the system end this process when its parent dies, so that nobody trains on for no one (Linux alone)."""
    if sys.platform == "linux":
        import ctypes

        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
