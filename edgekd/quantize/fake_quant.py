"""Fake quantization with learnable scales: LSQ (Esser et al. 2020) on a symmetric grid."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from edgekd.errors import quiet
from edgekd.quantize.ranges import BINS, centres, clipping_value, weight_clipping

with quiet():  # torchao speaks while it is imported
    from torchao.quantization.pt2e.fake_quantize import FakeQuantizeBase

_MIN_SCALE = 1e-8
_STORED_BITS = 8


class _Lsq(torch.autograd.Function):
    """Rounding with the gradients of LSQ: straight through inside the grid, 0 outside.

    Written out, a training step takes half the time that it takes by autograd over the formula, and keeps one tensor.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, scale: Tensor, q_min: int, q_max: int) -> Tensor:
        v = (x / scale).clamp_(q_min, q_max)
        ctx.save_for_backward(v, scale)
        ctx.grid = q_min, q_max
        return v.round().mul_(scale)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, None, None]:
        v, scale = ctx.saved_tensors
        inside = torch.ops.aten.hardtanh_backward(gradient, v, *ctx.grid)
        q = v.round()
        # Inside the grid a scale moves its value by q - v (eq. 3), outside by the end of the grid, where q = v.
        moved = (q - v).mul_(gradient).addcmul_(gradient - inside, q)
        factor = 1.0 / math.sqrt(v.numel() / scale.numel() * ctx.grid[1])
        return inside, moved.sum_to_size(scale.shape) * factor, None, None


def lsq(x: Tensor, scale: Tensor, q_min: int, q_max: int) -> Tensor:
    """Round x / scale to whole numbers in [q_min, q_max] and scale back; differentiable in both (LSQ, eq. 1 to 5).

    The gradient of each scale is multiplied by 1 / sqrt(values per scale * q_max), as the paper does.
    `scale` broadcasts against x.
    """
    found: Tensor = _Lsq.apply(x, scale, q_min, q_max)
    return found


class FakeQuant(FakeQuantizeBase):
    """One quantized tensor: observes first, then rounds to a grid whose scale is learned.

    An activation that is never negative, as after a ReLU, gets the grid 0 .. 2^bits - 1: half of a signed one would
    never be used. Below 8 bits both fit into the int8 that engines store. 0 .. 255 is uint8's; int8 holds every other
    value of it (`coarsen`).

    Observing, it lets values pass and takes notes; `set_range` makes a scale of the notes, as often as wanted;
    `forget` forgets them. Passing, it lets values pass and does nothing.

    Args:
        bits: width of the grid, 2 to 8.
        axis: axis that has a scale of its own per index (weights: 0), or None for one scale.
        weight: whether the tensor is a parameter, which is the same for every batch.
        from_zero: whether the tensor is known to have no negative values; below 8 bits calibration data tell as well.
    """

    unsigned: Tensor
    quant_min: int
    quant_max: int

    def __init__(
        self, bits: int = 8, axis: int | None = None, weight: bool = False, from_zero: bool = False, **_: Any
    ) -> None:
        super().__init__()
        self.axis, self.weight, self.from_zero = axis, weight, from_zero
        self.register_buffer("unsigned", torch.tensor(False))
        self.set_bits(bits)
        # What torchao's conversion reads off the module.
        self.dtype, self.ch_axis, self.is_dynamic = torch.int8, axis, False
        self.qscheme = torch.per_tensor_symmetric if axis is None else torch.per_channel_symmetric
        self.scale = nn.Parameter(torch.ones(1))
        self.register_buffer("calibrated", torch.tensor(False))
        self._histogram: Tensor | None = None
        self._top, self._negative = 0.0, False
        self._values: Tensor | None = None  # a weight, as it was last seen
        self._clips: dict[tuple[str, int], Tensor] = {}  # by method and grid: calibration asks for each several times
        self.mode = "observing"

    def forward(self, x: Tensor) -> Tensor:
        if self.mode != "rounding":
            if self.mode == "observing":
                self._observe(x.detach())
            return x
        return lsq(x, self._broadcast(self._step(), x), self.quant_min, self.quant_max)

    def calculate_qparams(self, **_: Any) -> tuple[Tensor, Tensor]:
        """Scale (C,) or (1,) and zero points, all 0: the grid is symmetric."""
        scale = self._step().detach()
        return scale, torch.zeros_like(scale, dtype=torch.int64)

    def _step(self) -> Tensor:
        """The scale, whose sign means nothing: training may take it beyond 0."""
        return self.scale.abs().clamp_min(_MIN_SCALE)

    def set_bits(self, bits: int) -> None:
        """Change the width of the grid; `set_range` must follow."""
        self.bits = bits
        self._set_sign(unsigned=False)

    def _set_sign(self, *, unsigned: bool) -> None:
        """Whether the grid begins at 0."""
        self.unsigned.fill_(unsigned)
        half = 2 ** (self.bits - 1)
        self.quant_min, self.quant_max = (0, 2 * half - 1) if unsigned else (-half, half - 1)

    @property
    def beyond_int8(self) -> bool:
        """Whether the grid is 0 .. 255."""
        return bool(self.unsigned) and self.bits == _STORED_BITS

    @torch.no_grad()
    def coarsen(self) -> None:
        """Of a grid 0 .. 255 keep every other value, which int8 holds, up to the last."""
        if self.beyond_int8:
            self._set_sign(unsigned=False)
            self.scale.mul_(2)

    def set_range(self, method: str) -> None:
        """Make the scale of what was observed, and quantize until the next observation.

        Args:
            method: one of `ranges.METHODS`; weights take every one but minmax for mse.
        """
        if not self.weight:
            self._set_sign(unsigned=self.from_zero or (self.bits < _STORED_BITS and not self._negative))
        known = method, self.quant_max
        if known not in self._clips:
            self._clips[known] = self._weight_range(method) if self.weight else self._activation_range(method)
        clip = self._clips[known]
        self.scale = nn.Parameter((clip / self.quant_max).clamp_min(_MIN_SCALE))
        self.mode = "rounding"
        self.calibrated.fill_(True)

    def set_mode(self, mode: str) -> None:
        """Observe (forgetting what was seen so far), round, or pass values on."""
        if mode == "observing":
            self.forget()
        self.mode = mode

    def forget(self) -> None:
        """Forget what was observed: the scale is known."""
        self._histogram, self._values, self._top, self._negative = None, None, 0.0, False
        self._clips.clear()

    def _activation_range(self, method: str) -> Tensor:
        assert self._histogram is not None, "a tensor of the graph was never computed during calibration"
        value = clipping_value(method, self._histogram, self._top, self.quant_max)
        return torch.full((1,), value, dtype=torch.float32, device=self._histogram.device)

    def _weight_range(self, method: str) -> Tensor:
        assert self._values is not None, "a weight of the graph was never used during calibration"
        rows = self._values.reshape(1, -1) if self.axis is None else self._values.movedim(self.axis, 0).flatten(1)
        return weight_clipping("minmax" if method == "minmax" else "mse", rows, self.quant_max)

    def _observe(self, x: Tensor) -> None:
        """A weight is kept; of the magnitudes of an activation a histogram, stretched when its range grows."""
        self._clips.clear()
        if self.weight:
            self._values = x
            return
        self._negative = self._negative or bool((x < 0).any())
        top = max(float(x.abs().max()), self._top, _MIN_SCALE)
        counts = torch.histc(x.abs().float(), BINS, 0.0, top).double()
        if self._histogram is not None:
            moved = (centres(self._top, x.device) / top * BINS).long().clamp_max(BINS - 1)
            counts = counts.index_add(0, moved, self._histogram)
        self._histogram, self._top = counts, top

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
        self._set_sign(unsigned=bool(self.unsigned))
        if bool(self.calibrated):
            self.mode = "rounding"


class BiasGrid(nn.Module):
    """Rounds the bias (C,) of a layer while both its input and its weight are rounded; gradients go straight through.

    Args:
        scales: the fake-quants of the input and of the weight, modules of the graph themselves.
    """

    def __init__(self, *scales: FakeQuant) -> None:
        super().__init__()
        self._scales = scales  # in a tuple, so that they are not registered a second time

    def forward(self, bias: Tensor) -> Tensor:
        if any(scale.mode != "rounding" for scale in self._scales):
            return bias
        given, weight = (scale.calculate_qparams()[0] for scale in self._scales)
        step = given * weight
        return bias + ((bias / step).round() * step - bias).detach()
