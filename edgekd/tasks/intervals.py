"""95% intervals of shares of samples (torch-free)."""

from __future__ import annotations

import math

Z = 1.959964  # the normal distribution's 97.5th percentile


def wilson(share: float, n: int) -> tuple[float, float]:
    """A share of n samples with Wilson's score interval (1927): honest at small n and near 0 or 1."""
    centre = (share + Z**2 / (2 * n)) / (1 + Z**2 / n)
    half = Z * math.sqrt(share * (1 - share) / n + Z**2 / (4 * n * n)) / (1 + Z**2 / n)
    # At the ends the interval begins on them; rounding would leave it a hair beside.
    return (max(0.0, centre - half) if share > 0 else 0.0), (min(1.0, centre + half) if share < 1 else 1.0)


def paired(gained: int, lost: int, n: int) -> tuple[float, float]:
    """The interval of (gained - lost) / n: of two shares on the same n samples, of which only these tell them apart.

    That of Agresti and Min, "Simple improved confidence intervals for comparing matched proportions" (2005): Wald's,
    with half a sample more in each cell of the 2x2 table. It stays honest where the two hardly ever differ.
    """
    b, c, m = gained + 0.5, lost + 0.5, n + 2
    half = Z * math.sqrt(b + c - (b - c) ** 2 / m) / m
    centre, value = (b - c) / m, (gained - lost) / n
    return min(centre - half, value), max(centre + half, value)
