"""Shares with Wilson's interval, as the latency benchmarks publish them."""

from __future__ import annotations

from typing import Any

from scipy import stats  # type: ignore[import-untyped]


def share(found: int, n: int) -> dict[str, Any]:
    """`found` of `n`, with Wilson's 95% interval of the share."""
    interval = stats.binomtest(found, n).proportion_ci(0.95, method="wilson")
    return {
        "found": found,
        "n": n,
        "share": found / n,
        "ci95": [round(float(end), 4) for end in (interval.low, interval.high)],
    }
