"""The measuring loop: warm up until it is steady, then visit the models in turn, A B C C B A, and record every call.

A *visit* is about 20 ms of calls of one model; a *round* visits every model twice, the second time in reverse order, so
that a machine that slowly changes its speed does the same to all of them. Python 3.8, standard library and numpy.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from edgekd.bench.machine import Monitor

try:
    import resource
except ImportError:  # Windows
    resource = None  # type: ignore[assignment]

VISIT_NS = 20_000_000
# A counter costs about a microsecond: below this it is read once per visit, not around every call.
COUNTERS_PER_CALL_FROM_NS = 100_000
# Shorter calls feel the caches that the model before them left: the first call of a visit brings them back, unrecorded.
SETTLE_BELOW_NS = 10_000_000
FEWEST_SAMPLES = 20
SWITCHES_PER_S = 50.0

if TYPE_CHECKING:
    Run = Callable[[], None]


@dataclass(frozen=True)
class Warmth:
    """How a warm-up ended: whether three windows agreed within 2%, after how long, and at what time per call."""

    stable: bool
    seconds: float
    call_ns: float


@dataclass
class Record:
    """Everything recorded of one model in one launch; lists grow by one entry per visit."""

    calls: int
    detailed: bool
    start_ns: list[int] = field(default_factory=list)
    wall_ns: list[list[int]] = field(default_factory=list)
    visit_cpu_ns: list[int] = field(default_factory=list)
    visit_switches: list[int] = field(default_factory=list)
    cpu_ns: list[list[int]] = field(default_factory=list)
    switches: list[list[int]] = field(default_factory=list)

    def arrays(self) -> dict[str, Any]:
        """int64 arrays: `start_ns`, `visit_*` of shape (visits,), the others of shape (visits, calls); switches are
        -1 where the system does not count them, per-call counters are absent for calls below 100 us."""
        names = ["start_ns", "wall_ns", "visit_cpu_ns", "visit_switches"]
        names += ["cpu_ns", "switches"] if self.detailed else []
        return {name: np.asarray(getattr(self, name), dtype=np.int64) for name in names}


def disturbed(wall_ns: Any, switches: Any) -> Any:
    """Which visits (V,) of wall times (V, C) lost their core at least once, and once per 20 ms if they are longer."""
    return np.asarray(switches) >= np.maximum(1.0, np.asarray(wall_ns).sum(axis=1) / 1e9 * SWITCHES_PER_S)


def time_runs(run: Run, count: int) -> list[int]:
    """Wall nanoseconds of each of the next `count` calls."""
    clock, walls = time.perf_counter_ns, []
    for _ in range(count):
        start = clock()
        run()
        walls.append(clock() - start)
    return walls


def warm_up(run: Run, *, window_s: float, min_s: float, max_s: float) -> Warmth:
    """Call in windows of `window_s` until three medians in a row agree within 2%, for `min_s` to `max_s` seconds."""
    medians: list[float] = []
    begin = time.perf_counter()
    while True:
        medians.append(_median_of_window(run, window_s))
        seconds = time.perf_counter() - begin
        last = medians[-3:]
        stable = len(last) == 3 and max(last) <= 1.02 * min(last)
        if (stable and seconds >= min_s) or seconds >= max_s:
            return Warmth(stable, seconds, medians[-1])


def _median_of_window(run: Run, window_s: float) -> float:
    walls: list[int] = []
    end = time.perf_counter() + window_s
    while not walls or time.perf_counter() < end:
        walls += time_runs(run, 1)
    return float(np.median(walls))


def interleave(
    runs: Sequence[Run],
    call_ns: Sequence[float],
    *,
    min_time_s: float,
    max_time_s: float,
    min_samples: int,
    monitor: Monitor,
) -> list[Record]:
    """Measure in rounds until `min_time_s` and `min_samples` per model are reached, or `max_time_s` with 20 samples.

    Args:
        runs: one call of each model.
        call_ns: about how long a call of each takes, from its warm-up; sets the number of calls in a visit.
    """
    records = [
        Record(calls=max(1, round(VISIT_NS / max(1.0, ns))), detailed=ns >= COUNTERS_PER_CALL_FROM_NS) for ns in call_ns
    ]
    settle = [ns < SETTLE_BELOW_NS for ns in call_ns]
    there = list(range(len(runs)))
    gc.collect()
    gc.disable()
    begin, waited_s = time.perf_counter(), _waited_s()
    try:
        while True:
            elapsed_s = time.perf_counter() - begin
            if _enough(records, elapsed_s, _waited_s() - waited_s, min_time_s, max_time_s, min_samples):
                break
            monitor.note_if_due()
            for index in there + there[::-1]:
                if settle[index]:
                    runs[index]()
                _visit(runs[index], records[index])
    finally:
        gc.enable()
    monitor.note()
    return records


def _enough(
    records: list[Record], elapsed_s: float, waited_s: float, min_time_s: float, max_time_s: float, min_samples: int
) -> bool:
    fewest = min(record.calls * len(record.wall_ns) for record in records)
    if fewest < FEWEST_SAMPLES:
        return False
    return elapsed_s >= max(min_time_s, max_time_s) or (elapsed_s - waited_s >= min_time_s and fewest >= min_samples)


def _waited_s() -> float:
    """Seconds that this thread was ready and waited for a core (Linux's schedstat); 0 where nobody counts them.

    Beside a neighbour on the same core a launch of two seconds holds one second of measurements; this makes up for it.
    """
    try:
        with open("/proc/thread-self/schedstat", encoding="ascii") as file:
            return int(file.read().split()[1]) / 1e9
    except (OSError, IndexError, ValueError):
        return 0.0


def _visit(run: Run, record: Record) -> None:
    record.start_ns.append(time.perf_counter_ns())
    if record.detailed:
        _visit_counting_calls(run, record)
        return
    cpu, switches = time.process_time_ns(), _involuntary_switches()
    record.wall_ns.append(time_runs(run, record.calls))
    record.visit_cpu_ns.append(time.process_time_ns() - cpu)
    record.visit_switches.append(-1 if switches < 0 else _involuntary_switches() - switches)


def _visit_counting_calls(run: Run, record: Record) -> None:
    clock, cpu_clock = time.perf_counter_ns, time.process_time_ns
    walls, cpu, switches = [], [cpu_clock()], [_involuntary_switches()]
    for _ in range(record.calls):
        start = clock()
        run()
        walls.append(clock() - start)
        cpu.append(cpu_clock())
        switches.append(_involuntary_switches())
    counted = switches[0] >= 0
    record.wall_ns.append(walls)
    record.visit_cpu_ns.append(cpu[-1] - cpu[0])
    record.visit_switches.append(switches[-1] - switches[0] if counted else -1)
    record.cpu_ns.append([cpu[i + 1] - cpu[i] for i in range(record.calls)])
    record.switches.append([switches[i + 1] - switches[i] if counted else -1 for i in range(record.calls)])


def _involuntary_switches() -> int:
    """Times that a thread of this process was taken off its core so far; -1 where the system does not count."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_nivcsw if resource else -1
