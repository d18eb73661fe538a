"""A percentile in two runs that were not interleaved: by how much it changed, as far as the launches can tell.

Within a run the intervals of `statistics` hold. Between two runs the machine itself is another: whoever judges a change
adds to the interval that comes from here (`edgekd.report.changes.widened`).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from edgekd.bench.statistics import PERCENTILES_PERMILLE, SAMPLES_BEYOND, Estimate, Samples, percentiles, t_975


def ratios(base: Sequence[Samples], new: Sequence[Samples], *, seed: int) -> dict[str, Estimate]:
    """New over base of every percentile that both runs can give (p50, .., p999), with 95% intervals; with at least two
    launches each also of the mean (mean) and of the median CPU time (cpu_p50).

    The interval of a percentile holds two: that of the hierarchical bootstraps of both runs, square-and-added on a log
    scale, and Welch's of the launches' own percentiles, as resampling some 5 launches alone gives too narrow a one.
    """
    before, after = percentiles(base, seed=seed), percentiles(new, seed=seed)
    found = {}
    for name, permille in PERCENTILES_PERMILLE.items():
        a, b = before[name], after[name]
        if a is None or b is None:
            continue
        value = math.log(b.value / a.value)
        low = value - math.hypot(math.log(b.value / b.low), math.log(a.high / a.value))
        high = value + math.hypot(math.log(b.high / b.value), math.log(a.value / a.low))
        launches = _welch(*(_log_percentiles(side, permille) for side in (base, new)))
        ends = (low, high, *(launches[1:] if launches else ()))
        found[name] = Estimate(math.exp(value), math.exp(min(ends)), math.exp(max(ends)))
    for name, of in (("mean", _log_mean), ("cpu_p50", _log_cpu_p50)):
        launches = _welch(*([of(launch) for launch in side] for side in (base, new)))
        if launches is not None:
            found[name] = Estimate(*map(math.exp, launches))
    return found


def _welch(base: Sequence[float], new: Sequence[float]) -> tuple[float, float, float] | None:
    """Difference of the means of two small samples with Welch's 95% interval; None where one has fewer than two."""
    if len(base) < 2 or len(new) < 2:
        return None
    value = float(np.mean(new) - np.mean(base))
    parts = [float(np.var(logs, ddof=1)) / len(logs) for logs in (base, new)]
    spread = sum(parts)
    if spread == 0:
        return value, value, value
    freedom = spread**2 / sum(part**2 / (len(logs) - 1) for part, logs in zip(parts, (base, new), strict=True))
    half = t_975(max(1, int(freedom))) * math.sqrt(spread)
    return value, value - half, value + half


def _log_percentiles(launches: Sequence[Samples], permille: int) -> list[float]:
    """The percentile of every launch by itself; none where a launch has too few samples for it."""
    if any(launch.wall_ns.size * (1000 - permille) < SAMPLES_BEYOND * 1000 for launch in launches):
        return []
    return [math.log(max(1.0, float(np.quantile(launch.wall_ns, permille / 1000)))) for launch in launches]


def _log_mean(launch: Samples) -> float:
    return math.log(max(1.0, float(launch.wall_ns.mean())))


def _log_cpu_p50(launch: Samples) -> float:
    return math.log(max(1.0, float(np.median(launch.round_cpu_ns()))))
