"""Engines for the agent, by "latency_engines:NAME": one that adds a counted amount of work, one that asks OpenVINO.

It runs where the agent runs, so it imports what the agent carries and nothing else.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from edgekd.runtimes.protocol import noise
from edgekd.runtimes.registry import runtime

WORK = "work.json"
REQUEST_MS = "request_ms.npy"
FIRST = 1
_MULTIPLIER, _PRIME = 48271, 2**31 - 1


def burn(state: int, units: int) -> int:
    """So many steps of the minimal standard generator (Park and Miller, 1988): each needs the one before it, and the
    state tells how many were taken."""
    for _ in range(units):
        state = state * _MULTIPLIER % _PRIME
    return state


class _Over:
    """A session over another one."""

    def __init__(self, inner: Any) -> None:
        self.inner = inner
        self.inputs, self.outputs = inner.inputs, inner.outputs

    def bind(self, feeds: Any) -> None:
        self.inner.bind(feeds)

    def memory_bytes(self) -> int | None:
        found: int | None = self.inner.memory_bytes()
        return found

    def close(self) -> None:
        self.inner.close()


class WorkingSession(_Over):
    """A session that does `units` of work more in every call."""

    def __init__(self, inner: Any, units: int) -> None:
        super().__init__(inner)
        self.units, self.state = units, FIRST

    def run(self) -> None:
        self.inner.run()
        self.state = burn(self.state, self.units)


class Working:
    """An engine with more work; the model file is JSON: {"runtime", "path", "units"}."""

    name = "working"

    def version(self) -> str:
        return "1"

    def check(self, device: str, *, run: bool) -> None:
        """Loading says what is missing."""

    def load(self, path: Path, *, device: str, threads: int) -> WorkingSession:
        told = json.loads(path.read_text())
        inner = runtime(told["runtime"]).load(Path(told["path"]), device=device, threads=threads)
        return WorkingSession(inner, told["units"])


class AskingSession(_Over):
    """A session that asks OpenVINO after every call how long the request took, and keeps it beside the model."""

    def __init__(self, inner: Any, keep: Path) -> None:
        super().__init__(inner)
        self.keep = keep
        self.request_ms: list[float] = []

    def run(self) -> None:
        self.inner._request.infer()  # benchmark_app's own two lines; edgekd's call leaves out the Python layer over it
        self.request_ms.append(self.inner._request.latency)

    def close(self) -> None:
        np.save(self.keep, np.asarray(self.request_ms))
        super().close()


class Asking:
    """OpenVINO with its own clock beside ours."""

    name = "asking"

    def version(self) -> str:
        return runtime("openvino").version()

    def check(self, device: str, *, run: bool) -> None:
        runtime("openvino").check(device, run=run)

    def load(self, path: Path, *, device: str, threads: int) -> AskingSession:
        inner = runtime("openvino").load(path, device=device, threads=threads)
        return AskingSession(inner, path.with_name(REQUEST_MS))


def calibrate(engine: str, path: Path, *, units: int = 400, blocks: int = 150, calls: int = 20) -> dict[str, float]:
    """CPU nanoseconds of a call, and of one unit of work where it is done: behind a call. Medians over blocks that take
    turns; wall time would count what else the machine does."""
    session = runtime(engine).load(path, device="CPU", threads=1)
    session.bind(noise(session.inputs))
    plain, more = WorkingSession(session, 0), WorkingSession(session, units)
    times: dict[int, list[float]] = {0: [], units: []}
    for block in range(blocks):
        for one in (plain, more) if block % 2 else (more, plain):
            one.run()
            begin = time.thread_time_ns()
            for _ in range(calls):
                one.run()
            times[one.units].append((time.thread_time_ns() - begin) / calls)
    extra = [b - a for a, b in zip(times[0], times[units], strict=True)]
    return {"call_ns": median(times[0]), "unit_ns": median(extra) / units}


if __name__ == "__main__":
    print(json.dumps(calibrate(sys.argv[1], Path(sys.argv[2]))))
