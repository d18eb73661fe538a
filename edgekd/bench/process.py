"""The measuring agent seen from the host: started as a process of its own, listened to, and never left behind."""

from __future__ import annotations

import contextlib
import json
import os
import selectors
import signal
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from edgekd.errors import BenchError, UnavailableError

_PROGRESS = "progress: "
_DOCTOR = "`edgekd doctor` tests the engines of this machine"


def run_agent(
    command: Sequence[str], job: Mapping[str, Any], *, limit_s: float, progress: Callable[[str], None]
) -> dict[str, Any]:
    """The result of one job of the agent that `command` starts, ended after `limit_s` seconds or on any exception here.

    Raises:
        UnavailableError: the engine or the device of a model is missing.
        AgentDiedError: it ended without a result.
        BenchError: the engine refused a model, or the agent took longer than `limit_s`.
    """
    pipe = subprocess.PIPE
    process = subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=pipe, start_new_session=True)
    try:
        output, errors = _converse(process, json.dumps(job).encode() + b"\n", limit_s, progress)
        process.wait(timeout=30)
    finally:
        _end(process)
    return _result(process.returncode, output, errors)


class AgentDiedError(BenchError):
    """The agent ended without a result; `said` is what it wrote on standard error but progress."""

    def __init__(self, message: str, *, hint: str, said: str, returncode: int) -> None:
        super().__init__(message, hint=hint)
        self.said, self.returncode = said, returncode


def _converse(
    process: subprocess.Popen[bytes], job: bytes, limit_s: float, progress: Callable[[str], None]
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
                    f"the measuring process was ended after {limit_s:g} s",
                    hint="measure fewer models at once, or raise `bench.time_limit_s`",
                )
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
        lines = errors.decode("utf-8", "replace").split("\n")
        said = [line.strip() for line in lines if line.strip() and not line.startswith(_PROGRESS)]
        how = f"signal {signal.Signals(-returncode).name}" if returncode < 0 else f"exit code {returncode}"
        hint = (
            "it was probably killed for lack of memory: measure fewer models at once" if returncode == -9 else _DOCTOR
        )
        message = f"the measuring process died ({how}): {said[-1] if said else 'it said nothing'}"
        raise AgentDiedError(message, hint=hint, said="\n".join(said), returncode=returncode) from None
    if "error" in result:
        error = result["error"]
        kind = UnavailableError if error["kind"] == "unavailable" else BenchError
        raise kind(error["message"], hint=error["hint"] or _DOCTOR)
    return result
