"""Memory that grows with every call: a leak, told from a process that settles. Python 3.8, standard library, numpy."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from edgekd.bench import machine

BLOCKS = 24
LEAST_POINTS = 8
# The kernel counts pages to about 64 a thread, and an allocator takes them from it in portions.
NOISE_BYTES = 2**20
RISING_SHARE = 0.7

if TYPE_CHECKING:
    Run = Callable[[], None]


def watch(run: Run, seconds: float) -> tuple[list[int], list[int | None]]:
    """Call for some seconds in blocks, twice as long at most if calls are slow; calls so far and VmRSS after each."""
    calls: list[int] = []
    rss: list[int | None] = []
    done, begin, clock = 0, time.perf_counter(), time.perf_counter
    for block in range(1, BLOCKS + 1):
        while True:
            run()
            done += 1
            if clock() - begin >= seconds * block / BLOCKS:
                break
        calls.append(done)
        rss.append(machine.rss_bytes())
        if clock() - begin > 2 * seconds:
            break
    return calls, rss


def growth(calls: Sequence[int], rss_bytes: Sequence[int | None]) -> dict[str, Any]:
    """Bytes per call by the median of all slopes (Theil and Sen) after the first quarter, and whether that is a leak.

    A leak rises from nearly every point to every later one (70% of pairs; a single step does so in half of them at
    most, and noise too) and by more than 1 MiB in all. Both values are None for fewer than 8 points.
    """
    unknown = {"memory_growth_bytes_per_call": None, "leaks": None}
    if None in rss_bytes:
        return unknown
    since = len(calls) // 4
    x, y = np.asarray(calls[since:], dtype=np.float64), np.asarray(rss_bytes[since:], dtype=np.float64)
    if len(x) < LEAST_POINTS:
        return unknown
    first, second = np.triu_indices(len(x), 1)
    rises = y[second] - y[first]
    slope = float(np.median(rises / (x[second] - x[first])))
    leaks = np.mean(rises > 0) >= RISING_SHARE and slope * (x[-1] - x[0]) > NOISE_BYTES
    return {"memory_growth_bytes_per_call": round(slope, 3), "leaks": bool(leaks)}
