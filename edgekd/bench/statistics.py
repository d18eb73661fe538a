"""Percentiles and ratios of interleaved samples, with bootstrap intervals that respect blocks and launches.

Samples of one launch are not independent: neighbours share the machine's mood, a launch its memory layout. So intervals
come from resampling launches, and within them blocks (visits or rounds of `loop`), never single samples: the
hierarchical bootstrap of Kalibera and Jones, "Rigorous benchmarking in reasonable time" (ISMM 2013).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from edgekd.bench import loop

Verdict = Literal["faster", "slower", "equivalent", "inconclusive"]
Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

PERCENTILES_PERMILLE = {"p50": 500, "p90": 900, "p95": 950, "p99": 990, "p999": 999}
SAMPLES_BEYOND = 10
MARGIN = 0.01
LOW = 0.1
DRAWS = 1000
DISTURBED_SHARE = 0.2
DRIFT_LIMIT = 0.1
FEWEST_BLOCKS = 10
FEWEST_LAUNCHES = 3
"""For an interval that is of use: one process says nothing of what others would find, two hardly anything."""
T_975 = {1: 12.706, 2: 4.303, 3: 3.182, 4: 2.776, 5: 2.571, 6: 2.447, 7: 2.365, 8: 2.306, 9: 2.262}


@dataclass(frozen=True)
class Samples:
    """One model in one launch, as `loop.Record` recorded it: V visits (two per round) of C calls each.

    `wall_ns` (V, C); `visit_cpu_ns`, `visit_switches` (V,), the latter -1 where not counted; `switches` and `cpu_ns`
    (V, C), or None where they were not counted around every call.
    """

    wall_ns: Ints
    visit_cpu_ns: Ints
    visit_switches: Ints
    switches: Ints | None = None
    cpu_ns: Ints | None = None

    def round_wall_ns(self) -> Floats:
        """Median wall time per call of each round, shape (V / 2,)."""
        return np.asarray(np.median(self.wall_ns.reshape(len(self.wall_ns) // 2, -1), axis=1), dtype=np.float64)

    def round_cpu_ns(self) -> Floats:
        """Mean CPU time per call of each round, shape (V / 2,)."""
        cpu_ns = self.visit_cpu_ns.reshape(-1, 2).sum(axis=1) / (2.0 * self.wall_ns.shape[1])
        return np.asarray(cpu_ns, dtype=np.float64)

    def round_low_cpu_ns(self) -> Floats | None:
        """CPU time that nine in ten calls of each round exceed, shape (V / 2,); None: not counted around every call.

        What else the machine does makes calls slower, never faster, and does so in spells that outlast a visit (a
        neighbour on the same core, cold caches): means and medians move with it, the fastest calls do not.
        """
        if self.cpu_ns is None:
            return None
        return np.asarray(np.quantile(self.cpu_ns.reshape(len(self.cpu_ns) // 2, -1), LOW, axis=1), dtype=np.float64)

    def disturbed_visits(self) -> NDArray[np.bool_] | None:
        """Which visits (V,) lost their core at least once, and once per 20 ms if they are longer; None: not counted."""
        if np.any(self.visit_switches < 0):
            return None
        return np.asarray(loop.disturbed(self.wall_ns, self.visit_switches), dtype=np.bool_)

    def undisturbed_ns(self) -> Ints | None:
        """Wall times of the calls without an involuntary switch (of whole visits, where calls were not counted)."""
        if np.any(self.visit_switches < 0):
            return None
        if self.switches is not None:
            return np.asarray(self.wall_ns[self.switches == 0])
        return np.asarray(self.wall_ns[self.visit_switches == 0]).reshape(-1)


@dataclass(frozen=True)
class Estimate:
    """A value with its 95% interval, in the unit of what was estimated."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Comparison:
    """Time of one model over time of another: the ratio that leads, its verdict, and both clocks' ratios."""

    ratio: Estimate
    verdict: Verdict
    led_by: Literal["wall", "cpu"]
    wall: Estimate
    cpu: Estimate | None


def percentiles(launches: Sequence[Samples], *, seed: int) -> dict[str, Estimate | None]:
    """p50 to p99.9 of the pooled wall times in milliseconds; None where fewer than 10 samples lie beyond."""
    pooled = np.sort(np.concatenate([launch.wall_ns.reshape(-1) for launch in launches]))
    n = len(pooled)
    wanted = {name: pm for name, pm in PERCENTILES_PERMILLE.items() if n * (1000 - pm) >= SAMPLES_BEYOND * 1000}
    found: dict[str, Estimate | None] = dict.fromkeys(PERCENTILES_PERMILLE)
    if not wanted:
        return found
    grid = _grid(pooled)
    drawn = _drawn_counts(launches, grid, np.random.default_rng([seed, 0]))
    own = [np.sort(launch.wall_ns.reshape(-1)) for launch in launches]
    for name, permille in wanted.items():
        value = _percentile(pooled, permille)
        reached = drawn >= drawn[:, -1:] * (permille / 1000 - 1e-9)
        low, high = np.quantile(grid[reached.argmax(axis=1)], [0.025, 0.975], method="nearest")
        ends = [value, float(low), float(high)]
        if min(len(walls) for walls in own) * (1000 - permille) >= SAMPLES_BEYOND * 1000:
            logs = [math.log(max(1.0, _percentile(walls, permille))) for walls in own]
            ends += [math.exp(end) for end in _between_launches(logs)]
        found[name] = Estimate(value / 1e6, min(ends) / 1e6, max(ends) / 1e6)
    return found


def _percentile(ordered: NDArray[np.int64], permille: int) -> float:
    return float(ordered[-(-len(ordered) * permille // 1000) - 1])


def compare(a: Sequence[Samples], b: Sequence[Samples], *, seed: int, cpu_may_lead: bool) -> Comparison:
    """Time of `a` over time of `b`, which were interleaved in the same launches; the verdict is on `a`.

    Wall time leads, unless either was contended and `cpu_may_lead` (both run on the CPU): then CPU time does.
    """
    wall = _ratio([s.round_wall_ns() for s in a], [s.round_wall_ns() for s in b], seed)
    cpu = None
    if cpu_may_lead and min(_cpu_share(a), _cpu_share(b)) > 0.05:
        cpu = _ratio(*_cpu_times(a, b), seed)
    if cpu is not None and (contended(a) or contended(b)):
        return Comparison(cpu, verdict(cpu), "cpu", wall, cpu)
    return Comparison(wall, verdict(wall), "wall", wall, cpu)


def verdict(ratio: Estimate) -> Verdict:
    """Faster or slower by more than 1% with an interval that excludes 1; equivalent with an interval inside 1%."""
    if ratio.high < 1 and ratio.value < 1 - MARGIN:
        return "faster"
    if ratio.low > 1 and ratio.value > 1 + MARGIN:
        return "slower"
    if ratio.low >= 1 - MARGIN and ratio.high <= 1 + MARGIN:
        return "equivalent"
    return "inconclusive"


def mean_ms(launches: Sequence[Samples], *, seed: int) -> Estimate:
    """Mean wall time per call in milliseconds, what the throughput of calls one after the other is the inverse of."""
    value = sum(float(s.wall_ns.sum()) for s in launches) / sum(s.wall_ns.size for s in launches)
    ends = [value, *_resampled([s.wall_ns.mean(axis=1) for s in launches], np.mean, [seed, 2])]
    return Estimate(value / 1e6, max(min(ends), 1.0) / 1e6, max(ends) / 1e6)


def contended(launches: Sequence[Samples]) -> bool | None:
    """Whether more than 20% of the visits were disturbed; None where the system does not count switches."""
    parts = [launch.disturbed_visits() for launch in launches]
    counted = [part for part in parts if part is not None]
    if len(counted) < len(parts):
        return None
    return bool(np.concatenate(counted).mean() > DISTURBED_SHARE)


def undisturbed(launches: Sequence[Samples]) -> dict[str, Any] | None:
    """n and p50 in milliseconds of the undisturbed calls; None unless 20% of all calls and 100 of them remain."""
    parts = [launch.undisturbed_ns() for launch in launches]
    kept = [part for part in parts if part is not None]
    n, total = sum(len(part) for part in kept), sum(launch.wall_ns.size for launch in launches)
    if len(kept) < len(parts) or n < 100 or n < DISTURBED_SHARE * total:
        return None
    return {"n": n, "p50_ms": float(np.median(np.concatenate(kept))) / 1e6}


def drift(times: Floats) -> float:
    """The largest lasting step in a series of block times: later over earlier median, minus 1, over five split points.

    +0.2 means that the model became 20% slower at some time and stayed so. 0 for fewer than 10 blocks.
    """
    if len(times) < FEWEST_BLOCKS:
        return 0.0
    splits = [len(times) * part // 6 for part in range(1, 6)]
    steps = [float(np.median(times[at:]) / np.median(times[:at])) - 1 for at in splits]
    return max(steps, key=abs)


def cpu_p50_ms(launches: Sequence[Samples]) -> float:
    """Median over rounds of the CPU time per call, all threads of the process together."""
    return float(np.median(np.concatenate([launch.round_cpu_ns() for launch in launches]))) / 1e6


def t_975(freedom: int) -> float:
    """Student's 97.5th percentile for some degrees of freedom."""
    return T_975.get(freedom, 1.96 + 2.5 / freedom)


def _cpu_times(a: Sequence[Samples], b: Sequence[Samples]) -> tuple[list[Floats], list[Floats]]:
    """CPU time per call in each round: of the fastest tenth if it is known of both, else the mean of both."""
    low = [[s.round_low_cpu_ns() for s in side] for side in (a, b)]
    known_a, known_b = ([times for times in side if times is not None] for side in low)
    if (len(known_a), len(known_b)) == (len(a), len(b)):
        return known_a, known_b
    return [s.round_cpu_ns() for s in a], [s.round_cpu_ns() for s in b]


def _cpu_share(launches: Sequence[Samples]) -> float:
    return float(sum(s.visit_cpu_ns.sum() for s in launches) / max(1, sum(s.wall_ns.sum() for s in launches)))


def _ratio(a: Sequence[Floats], b: Sequence[Floats], seed: int) -> Estimate:
    logs = [np.log(np.maximum(x, 1.0) / np.maximum(y, 1.0)) for x, y in zip(a, b, strict=True)]
    value = float(np.median(np.concatenate(logs)))
    ends = [value, *_resampled(logs, np.median, [seed, 1])]
    return Estimate(math.exp(value), math.exp(min(ends)), math.exp(max(ends)))


def _resampled(launches: Sequence[Floats], middle: Callable[..., Any], seed: Sequence[int]) -> tuple[float, ...]:
    """Ends of a middle's intervals: of resampled launches and blocks within them, and between launches."""
    rng = np.random.default_rng(seed)
    n, rounds = len(launches), max(1, round(float(np.mean([len(launch) for launch in launches]))))
    flat, sizes = np.concatenate(launches), np.array([len(launch) for launch in launches])
    first = np.concatenate([[0], np.cumsum(sizes)[:-1]])
    picked = rng.integers(n, size=(DRAWS, n))
    within = (rng.random((DRAWS, n, rounds)) * sizes[picked][:, :, None]).astype(np.int64)
    drawn = middle(flat[(first[picked][:, :, None] + within).reshape(DRAWS, -1)], axis=1)
    low, high = np.quantile(drawn, [0.025, 0.975])
    return float(low), float(high), *_between_launches([float(middle(launch)) for launch in launches])


def _between_launches(middles: Sequence[float]) -> tuple[float, ...]:
    """Student's interval of what launches say: resampling 5 of them alone covers 88% at most where 95% is claimed."""
    n = len(middles)
    if n < 2:
        return ()
    half = t_975(n - 1) * float(np.std(middles, ddof=1)) / math.sqrt(n)
    return float(np.mean(middles)) - half, float(np.mean(middles)) + half


def _grid(pooled: NDArray[np.int64]) -> NDArray[np.int64]:
    """Some 1,500 of the sorted samples, denser towards both ends: where the drawn percentiles are looked for."""
    n = len(pooled)
    logits = 1 / (1 + np.exp(-np.linspace(-9, 9, 768)))
    ranks = np.concatenate([logits, np.linspace(0, 1, 768)]) * (n - 1)
    return np.unique(pooled[np.unique(np.rint(ranks).astype(np.int64))])


def _drawn_counts(launches: Sequence[Samples], grid: NDArray[np.int64], rng: np.random.Generator) -> Floats:
    """For each draw, how many of the drawn samples are at most each grid value, shape (DRAWS, len(grid))."""
    picks = rng.multinomial(len(launches), np.full(len(launches), 1 / len(launches)), size=DRAWS)
    total = np.zeros((DRAWS, len(grid)), dtype=np.float32)
    for index, launch in enumerate(launches):
        visits, calls = launch.wall_ns.shape
        bins = np.searchsorted(grid, launch.wall_ns.reshape(-1)) + len(grid) * np.repeat(np.arange(visits), calls)
        counts = np.bincount(bins, minlength=visits * len(grid)).reshape(visits, len(grid)).cumsum(axis=1)
        weights = rng.multinomial(picks[:, index] * visits, np.full(visits, 1 / visits))
        total += weights.astype(np.float32) @ counts.astype(np.float32)
    return total.astype(np.float64)
