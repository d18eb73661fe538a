"""The measuring agent seen from the host: started as a process of its own, listened to, and never left behind."""

from __future__ import annotations

import contextlib
import json
import os
import re
import selectors
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from edgekd.errors import BenchError, EdgekdError, UnavailableError

_PROGRESS = "progress: "
_LESS = "free memory, measure fewer models at once, or a smaller batch"
_DOCTOR = "`edgekd doctor` tests the engines of this machine"
# What engines, CUDA, C++, Python and the shell say of it.
_NO_MEMORY = re.compile(
    r"bad_?alloc\b|bad allocation|bad_array_new_length|out of memory|OutOfMemory|OUT_OF_MEMORY|MemoryError"
    r"|cannot allocate memory|cudaErrorMemoryAllocation|failed to allocate|could not be allocated"
    r"|CL_OUT_OF_\w+|CL_MEM_OBJECT_ALLOCATION_FAILURE",
    re.IGNORECASE,
)
# SIGKILL that nobody here sent: the system's own answer to a lack of memory. A shell adds 128.
_KILLED = (-signal.SIGKILL, 128 + signal.SIGKILL)


def run_agent(
    command: Sequence[str],
    job: Mapping[str, Any],
    *,
    limit_s: float,
    progress: Callable[[str], None],
    stop: threading.Event | None = None,
) -> dict[str, Any]:
    """The result of one job of the agent that `command` starts, ended after `limit_s` seconds or on any exception here.

    Raises:
        UnavailableError: the engine or the device of a model is missing.
        NoMemoryError: the engine says that there is no memory, or the system killed it.
        AgentDiedError: it ended without a result.
        BenchError: the engine refused a model, or the agent took longer than `limit_s`.
        StoppedError: `stop` was set meanwhile.
    """
    pipe = subprocess.PIPE
    process = subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=pipe, start_new_session=True)
    try:
        output, errors = _converse(process, json.dumps(job).encode() + b"\n", limit_s, progress, stop)
        process.wait(timeout=30)
    finally:
        _end(process)
    return _result(process.returncode, output, errors)


class AgentDiedError(BenchError):
    """The agent ended without a result; `said` is what it wrote on standard error but progress."""

    def __init__(self, message: str, *, hint: str, said: str, returncode: int) -> None:
        super().__init__(message, hint=hint)
        self.said, self.returncode = said, returncode


class NoMemoryError(AgentDiedError):
    """The agent, or the engine in it, found no memory."""


class StoppedError(EdgekdError):
    """Another thread wants the end of what is measured here; never shown."""


def _converse(
    process: subprocess.Popen[bytes],
    job: bytes,
    limit_s: float,
    progress: Callable[[str], None],
    stop: threading.Event | None,
) -> tuple[bytes, bytes]:
    """Hand over the job, then collect both outputs until they close; input stays open, for its end ends the agent."""
    assert process.stdout
    assert process.stderr
    deadline = time.monotonic() + limit_s
    collected = {process.stdout.fileno(): bytearray(), process.stderr.fileno(): bytearray()}
    told = 0
    with selectors.DefaultSelector() as selector:
        for descriptor in collected:
            selector.register(descriptor, selectors.EVENT_READ)
        _hand_over(process, job)
        while selector.get_map():
            if time.monotonic() >= deadline:
                raise BenchError(
                    f"the agent was ended after {limit_s:g} s",
                    hint="raise the stage's `time_limit_s`, or measure fewer models at once",
                )
            if stop is not None and stop.is_set():
                raise StoppedError("stopped")
            for key, _ in selector.select(timeout=0.5):
                chunk = os.read(key.fd, 65536)
                collected[key.fd] += chunk
                if not chunk:
                    selector.unregister(key.fd)
            told = _tell(collected[process.stderr.fileno()], told, progress)
    return bytes(collected[process.stdout.fileno()]), bytes(collected[process.stderr.fileno()])


def _hand_over(process: subprocess.Popen[bytes], job: bytes) -> None:
    assert process.stdin
    # It may have died before it read: what it said on standard error then tells why.
    with contextlib.suppress(BrokenPipeError):
        process.stdin.write(job)
        process.stdin.flush()


def _tell(errors: bytearray, told: int, progress: Callable[[str], None]) -> int:
    """Pass on the whole progress lines from offset `told` on; returns the new offset."""
    end = errors.rfind(b"\n") + 1
    for line in errors[told:end].decode("utf-8", "replace").splitlines():
        if line.startswith(_PROGRESS):
            progress(line[len(_PROGRESS) :])
    return max(told, end)


def _end(process: subprocess.Popen[bytes]) -> None:
    if process.poll() is None:
        process.kill()
        process.wait()
    for stream in (process.stdin, process.stdout, process.stderr):
        if stream:
            with contextlib.suppress(BrokenPipeError):
                stream.close()


def _result(returncode: int, output: bytes, errors: bytes) -> dict[str, Any]:
    try:
        result: dict[str, Any] = json.loads(output)
    except ValueError:
        raise _death(returncode, errors) from None
    if not isinstance(result, dict):
        raise BenchError("the measuring process gave no result that edgekd knows", hint=_DOCTOR)
    if "error" in result:
        error = result["error"]
        message, hint = error["message"], error["hint"] or _DOCTOR
        if error["kind"] == "unavailable":
            raise UnavailableError(message, hint=hint)
        if _NO_MEMORY.search(error.get("said") or message):
            raise NoMemoryError(f"out of memory: {message}", hint=_LESS, said=message, returncode=returncode)
        raise BenchError(message, hint=hint)
    return result


def _death(returncode: int, errors: bytes) -> AgentDiedError:
    """Why there is no result: by the code that it ended with, and by what it said last."""
    lines = errors.decode("utf-8", "replace").split("\n")
    said = [line.strip() for line in lines if line.strip() and not line.startswith(_PROGRESS)]
    how = f"signal {signal.Signals(-returncode).name}" if returncode < 0 else f"exit code {returncode}"
    more: dict[str, Any] = {"said": "\n".join(said), "returncode": returncode}
    named = next((line for line in reversed(said) if _NO_MEMORY.search(line)), None)
    if named is not None or returncode in _KILLED:
        words = named or "the system killed the process, as it does when memory runs out"
        return NoMemoryError(f"out of memory ({how}): {words}", hint=_LESS, **more)
    return AgentDiedError(
        f"the measuring process died ({how}): {said[-1] if said else 'it said nothing'}", hint=_DOCTOR, **more
    )
