"""The arithmetic of a change between two runs: difference or ratio with a 95% interval, and what that amounts to."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Literal

from edgekd.report.schema import Metric
from edgekd.tasks import intervals

Pair = tuple[float, float]
Kind = Literal["metric", "latency", "throughput", "size", "memory", "precision"]
Verdict = Literal["regression", "improvement", "same", "undecided", "not judged"]

RUN_SD = 0.057
"""Standard deviation of the ratio of a model's latency to itself in two runs one after the other, as it was found on a
noisy two-core machine (wall p50)."""
INTERLEAVED_SD = 0.009
"""The same of the ratio of two builds that were interleaved."""
THRESHOLDS: dict[Kind, float] = {
    "metric": 0.0, "latency": 0.01, "throughput": 0.01, "size": 0.005, "memory": 0.02, "precision": 0.0,
}  # fmt: skip
"""The smallest change that counts: a share, of a metric in its own unit."""


@dataclass(frozen=True)
class Options:
    """What counts: thresholds by kind, what two runs differ by for no reason, whether other machines (of latency) and
    other samples (of scores) are judged all the same, and which targets and builds (`TARGET.PRECISION`) may be
    missing."""

    thresholds: Mapping[Kind, float] = field(default_factory=lambda: dict(THRESHOLDS))
    run_sd: float = RUN_SD
    across_machines: bool = False
    across_data: bool = False
    may_be_missing: Collection[str] = ()


@dataclass(frozen=True)
class Change:
    """One measure in two runs. `change` is relative (0.05: 5% more), of metrics and precision the difference."""

    kind: Kind
    what: str
    measure: str
    unit: str | None
    base: float
    new: float
    base_ci95: Pair | None
    new_ci95: Pair | None
    change: float
    ci95: Pair | None
    verdict: Verdict
    note: str = ""

    @property
    def relative(self) -> bool:
        """Whether the change is a share of what was there before."""
        return self.kind not in ("metric", "precision")


def difference(base: float, base_ci95: Pair | None, new: float, new_ci95: Pair | None) -> tuple[float, Pair | None]:
    """New minus base, for two independent samples; no interval where either lacks one.

    Each side's distance to the end of its own interval is squared and added: with Wilson's intervals of two shares that
    is method 10 of Newcombe, "Interval estimation for the difference between independent proportions" (1998). Two
    networks that are scored on the same samples agree more than that, so it is rather too wide for them.
    """
    value = new - base
    if base_ci95 is None or new_ci95 is None:
        return value, None
    low = value - math.hypot(new - new_ci95[0], base_ci95[1] - base)
    high = value + math.hypot(new_ci95[1] - new, base - base_ci95[0])
    return value, (low, high)


def ratio(base: float, base_ci95: Pair | None, new: float, new_ci95: Pair | None) -> tuple[float, Pair | None]:
    """New over base, both above 0: `difference` on a log scale."""
    logs = [None if pair is None or pair[0] <= 0 else (math.log(pair[0]), math.log(pair[1]))
            for pair in (base_ci95, new_ci95)]  # fmt: skip
    value, interval = difference(math.log(base), logs[0], math.log(new), logs[1])
    return math.exp(value), (math.exp(interval[0]), math.exp(interval[1])) if interval else None


def widened(value: float, ci95: Pair, sd: float) -> Pair:
    """The interval of a ratio, with what two runs differ by for no reason: a normal `sd` on a log scale."""
    more = intervals.Z * sd
    low, high = math.hypot(math.log(value / ci95[0]), more), math.hypot(math.log(ci95[1] / value), more)
    return value * math.exp(-low), value * math.exp(high)


def wilson(metric: Metric) -> Pair | None:
    """A metric's own interval; where it has none and is a share of n samples, Wilson's (1927)."""
    if metric.ci95 is not None or not metric.n or metric.unit != "fraction":
        return metric.ci95
    return intervals.wilson(metric.value, metric.n)


def verdict(change: float, ci95: Pair | None, threshold: float, *, more_is_worse: bool) -> Verdict:
    """A regression is worse by more than the threshold, with an interval (if there is one) that excludes no change."""
    low, high = ci95 or (change, change)
    if not more_is_worse:
        change, low, high = -change, -high, -low
    if change > threshold and low > 0:
        return "regression"
    if change < -threshold and high < 0:
        return "improvement"
    return "same" if low >= -threshold and high <= threshold else "undecided"


@dataclass(frozen=True)
class Side:
    """A value in one of the runs, with its own interval."""

    value: float
    ci95: Pair | None = None


def share(
    about: tuple[Kind, str, str, str], base: Side, new: Side, options: Options, *, ratio: tuple[float, Pair | None],
    sd: float | None = None, note: str = "",
) -> Change:  # fmt: skip
    """A change by a ratio of two runs, widened by what these differ by for no reason; undecided without an interval.

    Args:
        about: kind, what, measure and unit.
        ratio: new over base with the interval that the samples of both runs allow.
        sd: what two runs differ by; `options.run_sd` if not given.
    """
    kind, what, measure, unit = about
    value, ci95 = ratio
    wide: Pair | None = None
    judged: Verdict = "undecided"
    if ci95 is not None:
        low, high = widened(value, ci95, options.run_sd if sd is None else sd)
        wide = (low - 1, high - 1)
        judged = verdict(value - 1, wide, options.thresholds[kind], more_is_worse=kind == "latency")
    note = note or ("no interval" if ci95 is None else "")
    ends = base.ci95, new.ci95
    return Change(kind, what, measure, unit, base.value, new.value, *ends, value - 1, wide, judged, note)


def fact(kind: Kind, what: str, measure: str, unit: str, base: float, new: float, options: Options) -> Change:
    """A change of something that has no spread, or of which none is known."""
    value = new - base if kind == "precision" else new / base - 1
    judged = verdict(value, None, options.thresholds[kind], more_is_worse=kind in ("size", "memory"))
    return Change(kind, what, measure, unit, base, new, None, None, value, None, judged)
