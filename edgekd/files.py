"""Files that cannot be half written, locks that die with their holder, digests, and the end of a process."""

from __future__ import annotations

import atexit
import contextlib
import fcntl
import gc
import hashlib
import io
import json
import os
import re
import signal
import socket
import stat
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any, NoReturn

from edgekd.errors import TryAgainError

_PR_SET_PDEATHSIG = 1
_TEMPORARY = re.compile(r"\..+\.[a-z0-9_]{8}")  # as `replace_atomic` has tempfile name them


def write_atomic(path: Path, content: bytes | str, *, durable: bool = True) -> None:
    """Write `content` to `path` so that a reader sees the old file or the new one, never a part of it."""
    data = content.encode() if isinstance(content, str) else content

    def write(temporary: Path) -> None:
        temporary.write_bytes(data)

    replace_atomic(path, write, durable=durable)


def replace_atomic(path: Path, write: Callable[[Path], None], *, durable: bool = True) -> None:
    """Let `write` fill a temporary file beside `path`, force it to disk, then put it in place of `path`.

    `durable`: whether it is forced to disk, which takes milliseconds; not where whoever reads it can tell that a power
    cut spoiled it, and does without.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    os.close(handle)
    temporary = Path(name)
    try:
        write(temporary)
        if durable:
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


def leave(code: int) -> NoReturn:
    """End the process as `sys.exit` does, but for the objects: to take those of torch apart costs most of a second.

    Threads are waited for, exit handlers run (workers end, temporary folders go), and what was written is flushed, also
    to files that somebody's code left open. Under a profiler, a debugger or a measure of coverage nothing is skipped.
    """
    if "torch" not in sys.modules or _watched():
        sys.exit(code)
    with contextlib.suppress(KeyboardInterrupt):  # as Python: it ends the wait, not more
        threading._shutdown()  # type: ignore[attr-defined]
    leave_at_once(code)


def leave_at_once(code: int) -> NoReturn:
    """The same, but for threads: they are not waited for."""
    atexit._run_exitfuncs()
    _flush_open_files()
    try:
        sys.stdout.flush()
        sys.stderr.flush()
    except (OSError, ValueError):  # the reader went away: Python has words and a code of its own for that
        sys.exit(code)
    os._exit(code)


def _watched() -> bool:
    monitoring = getattr(sys, "monitoring", None)  # Python 3.12
    tools = monitoring is not None and any(monitoring.get_tool(number) for number in range(6))
    return tools or sys.gettrace() is not None or sys.getprofile() is not None


def _flush_open_files() -> None:
    """Flush what C wrote and, if a file is open for writing, all of Python's: to look for them takes a while."""
    import ctypes

    ctypes.CDLL(None).fflush(None)
    if _writes():
        for found in gc.get_objects():
            if type(found) in (io.TextIOWrapper, io.BufferedWriter, io.BufferedRandom) and not found.closed:
                with contextlib.suppress(OSError, ValueError):
                    found.flush()


def _writes() -> bool:
    """Whether a file is open for writing beside the standard streams; where the system does not tell, one may be."""
    try:
        numbers = [int(name) for name in os.listdir("/proc/self/fd")]
    except OSError:
        return True
    for number in numbers:
        with contextlib.suppress(OSError):  # the one by which the folder was read
            writes = fcntl.fcntl(number, fcntl.F_GETFL) & os.O_ACCMODE != os.O_RDONLY
            if number > 2 and writes and stat.S_ISREG(os.fstat(number).st_mode):
                return True
    return False
