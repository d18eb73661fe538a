"""Fake quantization with learnable scales: LSQ (Esser et al. 2020) on a symmetric grid."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from torchao.quantization.pt2e.fake_quantize import FakeQuantizeBase

_BINS = 2048
_MIN_SCALE = 1e-8


class _Round(torch.autograd.Function):
    """Rounding whose gradient is that of the identity (straight-through estimator, Bengio et al. 2013)."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.round()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return gradient


class _ScaleGradient(torch.autograd.Function):
    """The identity, whose gradient is multiplied by a factor."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, factor: float) -> Tensor:
        ctx.factor = factor
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return gradient * ctx.factor, None


def lsq(x: Tensor, scale: Tensor, q_min: int, q_max: int) -> Tensor:
    """Round x / scale to whole numbers in [q_min, q_max] and scale back; differentiable in both (LSQ, eq. 1 and 3).

    The gradient of each scale is multiplied by 1 / sqrt(values per scale * q_max), as the paper does.
    `scale` broadcasts against x.
    """
    factor = 1.0 / math.sqrt(x.numel() / scale.numel() * q_max)
    steady = _ScaleGradient.apply(scale, factor)
    return _Round.apply((x / steady).clamp(q_min, q_max)) * steady


class FakeQuant(FakeQuantizeBase):
    """One quantized tensor: observes until `finish_calibration`, then rounds to a grid whose scale is learned.

    Args:
        bits: width of the grid, 2 to 8.
        axis: axis that has a scale of its own per index (weights: 0), or None for one scale.
        ranges: how the scale is set, see QuantizationSettings.ranges.
    """

    def __init__(self, bits: int = 8, axis: int | None = None, ranges: str = "minmax", **_: Any) -> None:
        super().__init__()
        self.bits, self.axis, self.ranges = bits, axis, ranges
        self.quant_min, self.quant_max = -(2 ** (bits - 1)), 2 ** (bits - 1) - 1
        # What torchao's conversion reads off the module.
        self.dtype, self.ch_axis, self.is_dynamic = torch.int8, axis, False
        self.qscheme = torch.per_tensor_symmetric if axis is None else torch.per_channel_symmetric
        self.scale = nn.Parameter(torch.ones(1))
        self.register_buffer("calibrated", torch.tensor(False))
        self._histogram: Tensor | None = None
        self._amax: Tensor | None = None
        self._observing = True

    def forward(self, x: Tensor) -> Tensor:
        if self._observing:
            self._observe(x.detach())
            return x
        return lsq(x, self._broadcast(self.scale, x), self.quant_min, self.quant_max)

    def calculate_qparams(self, **_: Any) -> tuple[Tensor, Tensor]:
        """Scale (C,) or (1,) and zero points, all 0: the grid is symmetric."""
        scale = self.scale.detach().abs().clamp_min(_MIN_SCALE)
        return scale, torch.zeros_like(scale, dtype=torch.int64)

    def finish_calibration(self) -> None:
        """Set the scale from what was observed, and quantize from now on."""
        if self._amax is None:
            raise AssertionError("a tensor of the graph was never computed during calibration")
        amax = self._amax if self._histogram is None else self._best_range()
        self.scale = nn.Parameter((amax / self.quant_max).clamp_min(_MIN_SCALE))
        self.start_quantizing()

    def start_quantizing(self) -> None:
        """Stop observing: the scale is known."""
        self._observing, self._histogram, self._amax = False, None, None
        self.calibrated.fill_(True)

    def _observe(self, x: Tensor) -> None:
        axis = self.axis
        amax = x.abs().max().reshape(1) if axis is None else x.abs().movedim(axis, 0).flatten(1).amax(1)
        if axis is None and self.ranges != "minmax":
            self._add_to_histogram(x, float(amax))
        self._amax = amax if self._amax is None else torch.maximum(self._amax, amax)

    def _add_to_histogram(self, x: Tensor, amax: float) -> None:
        """Histogram of |x| from 0 to the largest value so far; an older one is stretched when the range grows."""
        top = max(amax, float(self._amax) if self._amax is not None else 0.0, _MIN_SCALE)
        counts = torch.histc(x.abs().float(), _BINS, 0.0, top).double()
        if self._histogram is not None and self._amax is not None:
            centres = _centres(float(self._amax), x.device)
            moved = (centres / top * _BINS).long().clamp_max(_BINS - 1)
            counts = counts.index_add(0, moved, self._histogram)
        self._histogram = counts

    def _best_range(self) -> Tensor:
        """The clipping value that serves the observed histogram best, by `ranges`."""
        assert self._histogram is not None and self._amax is not None
        top, counts = float(self._amax), self._histogram
        centres = _centres(top, counts.device)
        if self.ranges == "percentile":
            index = int((counts.cumsum(0) < 0.9999 * counts.sum()).sum())
            return self._amax * ((min(index, _BINS - 1) + 1) / _BINS)
        candidates = top * torch.linspace(0.02, 1.0, 99, dtype=torch.float64, device=counts.device)
        scale = (candidates / self.quant_max).unsqueeze(1)
        rounded = (centres / scale).round().clamp_max(self.quant_max) * scale
        error = ((rounded - centres).square() * counts).sum(1)
        return candidates[error.argmin()].reshape(1).float()

    def _broadcast(self, scale: Tensor, x: Tensor) -> Tensor:
        if self.axis is None:
            return scale
        shape = [1] * x.dim()
        shape[self.axis] = -1
        return scale.reshape(shape)

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any, **kwargs: Any) -> None:
        """A saved scale has as many values as it has channels, which a fresh module does not know yet."""
        saved = state_dict.get(prefix + "scale")
        if saved is not None and saved.shape != self.scale.shape:
            self.scale = nn.Parameter(torch.ones_like(saved))
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)
        if bool(self.calibrated):
            self._observing = False


def _centres(top: float, device: torch.device) -> Tensor:
    """Middles of the histogram's bins from 0 to `top`."""
    return (torch.arange(_BINS, dtype=torch.float64, device=device) + 0.5) * (top / _BINS)
