"""Where a grid ends: the clipping value of a tensor from a histogram of its magnitudes, or of weights from themselves.

minmax        the largest magnitude
percentile    99.99% of the values lie below
mse           the least squared error of rounding and clipping
entropy       the least KL divergence between the clipped distribution and its quantized form (Migacz 2017)
"""

from __future__ import annotations

import torch
from torch import Tensor

BINS = 2048
METHODS = ("minmax", "percentile", "mse", "entropy")
_PERCENTILE = 0.9999
_CANDIDATES = 99
_ENTROPY_STEP = 16
_TINY = 1e-12


def centres(top: float, device: torch.device) -> Tensor:
    """Middles of a histogram's bins from 0 to `top`: float64 (BINS,)."""
    return (torch.arange(BINS, dtype=torch.float64, device=device) + 0.5) * (top / BINS)


def clipping_value(method: str, counts: Tensor, top: float, levels: int) -> float:
    """The magnitude beyond which values of a tensor are clipped.

    Args:
        method: one of METHODS.
        counts: float64 (BINS,), how many magnitudes lie in each of equal bins from 0 to `top`.
        top: the largest magnitude.
        levels: whole numbers above 0 that the grid has, 127 for 8 bits.
    """
    if method == "minmax" or top <= 0:
        return top
    if method == "percentile":
        index = int((counts.cumsum(0) < _PERCENTILE * counts.sum()).sum())
        return top * (min(index, BINS - 1) + 1) / BINS
    if method == "mse":
        return _least_squares(counts, top, levels)
    return _least_divergence(counts, top, levels)


def weight_clipping(method: str, weight: Tensor, levels: int) -> Tensor:
    """Clipping values of weights, one for each row of (C, ..): minmax, or those of least squared error.

    Below 8 bits a channel's few large weights are worth less than a finer grid for the others.
    """
    rows = weight.detach().flatten(1)
    top = rows.abs().amax(1)
    if method == "minmax":
        return top
    best, least = top.clone(), torch.full_like(top, torch.inf)
    for share in torch.linspace(0.2, 1.0, 41, dtype=rows.dtype, device=rows.device):
        scale = (top * share / levels).clamp_min(_TINY).unsqueeze(1)
        rounded = (rows / scale).round().clamp(-levels - 1, levels) * scale
        error = (rounded - rows).square().sum(1)
        best, least = torch.where(error < least, top * share, best), torch.minimum(error, least)
    return best


def _least_squares(counts: Tensor, top: float, levels: int) -> float:
    middles = centres(top, counts.device)
    candidates = top * torch.linspace(0.02, 1.0, _CANDIDATES, dtype=torch.float64, device=counts.device)
    scale = (candidates / levels).unsqueeze(1)
    rounded = (middles / scale).round().clamp_max(levels) * scale
    error = ((rounded - middles).square() * counts).sum(1)
    return float(candidates[error.argmin()])


def _least_divergence(counts: Tensor, top: float, levels: int) -> float:
    """Clip after each number of bins in turn; what is cut off counts to the last bin, and a level stands for its bins.

    The first bin holds the zeros that a ReLU makes, which every grid has: it counts as much as its neighbour.
    """
    values = counts.clone()
    values[0] = values[1]
    stops = torch.arange(max(_ENTROPY_STEP, levels + 1), BINS + 1, _ENTROPY_STEP, device=counts.device).unsqueeze(1)
    bins = torch.arange(BINS, device=counts.device).unsqueeze(0)
    inside = bins < stops  # (candidates, BINS), as everything below
    kept = torch.where(inside, values, 0.0)
    reference = kept.scatter_add(1, stops - 1, values.sum() - kept.sum(1, keepdim=True))
    # Bins by the level that they are rounded to; the mass of a level is spread over those of its bins that had any.
    level = (bins * (levels + 1) // stops).clamp_max(levels)
    there = (kept > 0).double()
    empty = torch.zeros(len(stops), levels + 1, dtype=torch.float64, device=counts.device)
    mass, filled = empty.scatter_add(1, level, kept), empty.scatter_add(1, level, there)
    spread = (mass / filled.clamp_min(1)).gather(1, level) * there
    # KL; where the reference has mass and the other none, a ten-thousandth of a bin's.
    p = reference / reference.sum(1, keepdim=True).clamp_min(_TINY)
    q = spread / spread.sum(1, keepdim=True).clamp_min(_TINY)
    q = torch.where(q > 0, q, 1e-4 / stops)
    divergence = torch.where(p > 0, p * (p.clamp_min(_TINY).log() - q.log()), 0.0).sum(1)
    return top * int(stops[divergence.argmin(), 0]) / BINS
