"""Several calls at once: as many as go (throughput), or as they come by a schedule (latency under an open-loop load).

Every stream is a thread with a session of its own over one loaded build; the engines let go of the interpreter while
they work. In the open loop a free stream takes the next arrival of the schedule, waits until it is due and serves it:
that is one queue with as many servers as streams, and an arrival that finds them all busy waits. Latency counts from
when it was *due*, so a stall is felt by everything that was to arrive meanwhile ("coordinated omission", Gil Tene, How
NOT to Measure Latency, 2013). Python 3.8, standard library and numpy.
"""

from __future__ import annotations

import ctypes
import gc
import itertools
import math
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from edgekd.errors import BenchError

GAIN = 0.03
HEAD_START_NS = 5_000_000
SPIN_NS = 60_000
SWITCH_S = 5e-5
KEPT_BACKLOG = 0.02
NEAR = 1.1
MOST_TRIALS = 12
ENOUGH = 1000  # requests that p99 is known from: 10 lie beyond it

if TYPE_CHECKING:
    Run = Callable[[], None]


@dataclass(frozen=True)
class Burst:
    """Calls of a closed loop: int64 nanoseconds of shape (calls,), in the order in which they ended."""

    start_ns: Any
    end_ns: Any

    @property
    def per_s(self) -> float:
        """Calls a second, from the first start to the last end."""
        return float(len(self.end_ns) / max(1, self.end_ns.max() - self.start_ns.min()) * 1e9)


@dataclass(frozen=True)
class Served:
    """An open loop: int64 nanoseconds of shape (requests,) since the begin, in the order of the schedule.

    `due_ns`: when each was to arrive; `latency_ns`: from then to its answer. Of those without an answer when the loop
    was given up (`unserved`) it is the time that they had waited by then: they took at least that long.
    """

    due_ns: Any
    latency_ns: Any
    unserved: int
    kept_up: bool
    seconds: float

    @property
    def per_s(self) -> float:
        """Answers a second, from the begin to the last one."""
        return (len(self.due_ns) - self.unserved) / max(1e-9, self.seconds)


def closed_loop(runs: Sequence[Run], *, seconds: float, min_calls: int, max_s: float) -> Burst:
    """Each stream calls again as soon as its last call ended, until `seconds` and `min_calls` in all, or `max_s`."""
    least = math.ceil(min_calls / len(runs))
    starts: list[list[int]] = [[] for _ in runs]
    ends: list[list[int]] = [[] for _ in runs]
    clock, gate = time.perf_counter_ns, threading.Barrier(len(runs))

    def stream(index: int) -> None:
        run, began, ended = runs[index], starts[index], ends[index]
        gate.wait()
        begin = clock()
        until, latest = begin + int(seconds * 1e9), begin + int(max_s * 1e9)
        now = begin
        while not ended or ((now < until or len(ended) < least) and now < latest):
            began.append(clock())
            run()
            now = clock()
            ended.append(now)

    _together(stream, len(runs), gate)
    start, end = np.concatenate(starts).astype(np.int64), np.concatenate(ends).astype(np.int64)
    order = np.argsort(end, kind="stable")
    return Burst(start[order], end[order])


def arrivals(rate_per_s: float, count: int, *, seed: Sequence[int]) -> Any:
    """A Poisson process: int64 nanoseconds of shape (count,) at which requests arrive, all of them fixed in advance."""
    gaps = np.random.default_rng(list(seed)).exponential(1e9 / rate_per_s, count)
    return np.cumsum(gaps).astype(np.int64)


def open_loop(runs: Sequence[Run], due_ns: Any, *, grace_s: float) -> Served:
    """Serve a schedule, and give up `grace_s` after its last arrival."""
    due, n = due_ns.tolist(), len(due_ns)
    ended = [-1] * n
    take, clock, gate = itertools.count().__next__, time.perf_counter_ns, threading.Barrier(len(runs))
    begin = [0]
    latest = due[-1] + int(grace_s * 1e9)

    def stream(index: int) -> None:
        run = runs[index]
        if gate.wait() == 0:
            begin[0] = clock() + HEAD_START_NS
        gate.wait()
        zero = begin[0]
        while True:
            at = take()
            if at >= n or clock() - zero > latest:
                return
            _wait_until(zero + due[at])
            run()
            ended[at] = clock() - zero

    _together(stream, len(runs), gate)
    return _served(due_ns, np.asarray(ended, dtype=np.int64), len(runs), latest)


def _served(due_ns: Any, ended_ns: Any, streams: int, latest_ns: int) -> Served:
    open_ = ended_ns < 0
    last = int(max(ended_ns.max(), latest_ns)) if open_.any() else int(ended_ns.max())
    # How many had arrived and were not answered when the last one arrived: a queue that only grows is not kept up with.
    backlog = int(open_.sum() + (ended_ns > due_ns[-1]).sum())
    kept = not open_.any() and backlog <= streams + KEPT_BACKLOG * len(due_ns)
    return Served(due_ns, np.where(open_, last, ended_ns) - due_ns, int(open_.sum()), bool(kept), last / 1e9)


def doubled(limit: int) -> Iterator[int]:
    """1, 2, 4, .. up to a limit."""
    value = 1
    while value <= limit:
        yield value
        value *= 2


def until_saturated(
    counts: Sequence[int], measure: Callable[[int], float], *, given: bool
) -> tuple[list[int], list[bool]]:
    """Measure one number of streams (or rows) after the other, until one brings less than 3% over the best before it.

    Numbers that were `given` are all measured. Others end, too, where an engine has no room for more (BenchError).

    Returns:
        The numbers that were measured, and of each whether it is saturated: more than it brought no more.
    """
    done: list[int] = []
    found: list[float] = []
    for count in counts:
        try:
            value = measure(count)
        except BenchError:
            if given or not done:
                raise
            return done, [False] * len(done)
        done.append(count)
        found.append(value)
        if not given and _flat(found):
            break
    if not _flat(found):
        return done, [False] * len(found)
    enough = next(i for i, one in enumerate(found) if (1 + GAIN) * one > max(found))
    return done, [i >= enough for i in range(len(found))]


def _flat(found: Sequence[float]) -> bool:
    """Whether the last value is less than 3% above the best before it."""
    return len(found) > 1 and found[-1] < (1 + GAIN) * max(found[:-1])


def search(
    capacity_per_s: float,
    serve: Callable[[float, int], Served],
    *,
    limit_ns: float,
    requests: int,
    fewest: int,
    max_s: float,
    search_s: float,
) -> float | None:
    """Look for the highest rate whose p99 is within a limit, within `search_s`; `serve` measures (rate, requests).

    A loop has `requests`, or as many as `max_s` has room for, but enough to judge p99 by where the time left allows.

    Returns:
        The rate at which it ended because that many take longer; one is then measured only if none was before.
    """
    until_s = time.monotonic() + search_s
    served: list[Served] = []
    unjudged: list[float] = []

    def passes(rate: float) -> bool | None:
        left_s, count = until_s - time.monotonic(), min(requests, int(rate * max_s))
        enough = count >= ENOUGH or rate * left_s >= ENOUGH
        if not enough:
            unjudged.append(rate)
            if served or fewest > rate * left_s:
                return None
        served.append(serve(rate, max(count, ENOUGH if enough else fewest)))
        return served[-1].kept_up and beyond_99(served[-1].latency_ns) <= limit_ns if enough else None

    highest(capacity_per_s, passes, until_s=until_s)
    return unjudged[0] if unjudged else None


def highest(capacity_per_s: float, passes: Callable[[float], bool | None], *, until_s: float) -> None:
    """Look for the highest rate that passes: from half the capacity by factors of 2, then between them until 10% apart.

    `passes` measures a rate and keeps what it found; None, if nobody can tell, ends it: a lower rate tells less.
    At or above the capacity nothing is tried: a queue grows there.
    """
    low, high, rate = 0.0, capacity_per_s, capacity_per_s / 2
    for _ in range(MOST_TRIALS):
        if time.monotonic() >= until_s:
            return
        verdict = passes(rate)
        if verdict is None:
            return
        if verdict:
            low = rate
        else:
            high = rate
        if low and high / low <= NEAR:
            return
        rate = math.sqrt(low * high) if low else high / 2


def beyond_99(latency_ns: Any) -> float:
    """Upper end of a one-sample 95% interval of the 99th percentile, by order statistics; infinite for too few."""
    n = len(latency_ns)
    rank = math.ceil(0.99 * n + 1.96 * math.sqrt(0.0099 * n))
    return float(np.partition(latency_ns, rank - 1)[rank - 1]) if n >= ENOUGH and rank <= n else math.inf


def _wait_until(due: int) -> None:
    """Sleep until shortly before, then look at the clock; others may work meanwhile."""
    clock, sleep = time.perf_counter_ns, time.sleep
    left = due - clock()
    while left > SPIN_NS:
        sleep((left - SPIN_NS) / 1e9)
        left = due - clock()
    while clock() < due:
        sleep(0)


def _together(stream: Callable[[int], None], count: int, gate: threading.Barrier) -> None:
    """Run a function once per stream, each in a thread, and raise the first error that one of them met."""
    errors: dict[int, BaseException] = {}

    def guarded(index: int) -> None:
        try:
            _precise_sleep()
            stream(index)
        except BaseException as error:  # it is raised below, in the thread that asked
            errors[index] = error
            gate.abort()

    threads = [threading.Thread(target=guarded, args=(index,), daemon=True) for index in range(count)]
    with _undisturbed():
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    causes = [e for _, e in sorted(errors.items()) if not isinstance(e, threading.BrokenBarrierError)]
    if causes:
        raise causes[0]


@contextmanager
def _undisturbed() -> Iterator[None]:
    """No garbage collector, and threads that take turns often: 5 ms would be a stall of ours."""
    before = sys.getswitchinterval()
    gc.collect()
    gc.disable()
    sys.setswitchinterval(SWITCH_S)
    try:
        yield
    finally:
        sys.setswitchinterval(before)
        gc.enable()


def _precise_sleep() -> None:
    """Ask Linux to wake this thread on time, and not up to 50 us later."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(29, 1, 0, 0, 0)  # PR_SET_TIMERSLACK, 1 ns
