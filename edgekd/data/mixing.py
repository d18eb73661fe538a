"""Samples mixed with others, boxes erased: what is drawn for each view, and how it is done to normalised inputs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor

from edgekd.data.draws import BITS, ONE, draw, fixed
from edgekd.errors import ConfigError

LEVELS = 4096
_GRID = 1 << 16
_ERASED_AREA = (0.02, 0.4)
_ERASED_RATIO = 0.3


@dataclass(frozen=True)
class Mix:
    """How N samples are mixed with their partners.

    Attributes:
        view: int64 (N,), the geometric view in which each partner is seen.
        cut: bool (N,), whether a box of the partner is pasted instead of the two being averaged; None: of no sample.
        share: int64 (N,) in units of 1/65536, what a sample keeps of itself; for a box, before it is cut at the border.
        side: int64 (N,) in units of 1/65536, sides of the box as parts of the image's.
        centre: int64 (N, 2), any numbers; the remainder by the image's height and width is the centre of the box.
    """

    view: Tensor
    cut: Tensor | None
    share: Tensor
    side: Tensor
    centre: Tensor

    def shares(self, like: Tensor) -> Tensor:
        """What each sample keeps of itself, float32 (N,), in inputs like this; of boxes exact in pixels."""
        averaged = self.share.to(torch.float32) / ONE
        if self.cut is None:
            return averaged
        pixels = like.shape[2] * like.shape[3]
        top, bottom, left, right = self._box(like)
        kept = (pixels - (bottom - top) * (right - left)).to(torch.float32) / pixels
        return torch.where(self.cut, kept, averaged)

    def blend(self, x: Tensor, other: Tensor) -> Tensor:
        """Mix normalised inputs, float (N, ..), with their partners': the same shape, memory layout and device."""
        weight = self.shares(x).to(x.device).view(-1, *[1] * (x.dim() - 1))
        if self.cut is not None:
            kept = (~_inside(self._box(x), x)).to(x.dtype)
            weight = torch.where(self.cut.to(x.device)[:, None, None, None], kept, weight)
        # Not torch.lerp, which some devices fuse: products and sums round alike everywhere.
        mixed = (x * weight).add_(other * (1 - weight))
        return mixed.contiguous(memory_format=torch.channels_last) if x.dim() == 4 else mixed

    def _box(self, like: Tensor) -> Tensor:
        """Top, bottom, left and right of each box, cut at the border: int64 (4, N)."""
        edges = []
        for size, centre in zip(like.shape[2:], self.centre.unbind(1), strict=True):
            side = self.side * size >> BITS
            start = centre % size - side // 2
            edges += [start.clamp(min=0), (start + side).clamp(max=size)]
        return torch.stack(edges)


class Mixing:
    """mixup and cutmix: a partner for each view, and how much of it.

    Zhang, Cisse, Dauphin, Lopez-Paz, "mixup: Beyond empirical risk minimization" (2018); Yun et al., "CutMix:
    Regularization strategy to train strong classifiers with localizable features" (2019). Where both are given, a view
    takes one of them with equal odds. Shares are drawn among 4096 quantiles of Beta(alpha, alpha).

    Args:
        mixup: alpha of mixup, 0 for none.
        cutmix: alpha of cutmix, 0 for none; one of the two is above 0.
        geometric_views: number of views that a partner can be seen in.
    """

    def __init__(self, mixup: float, cutmix: float, geometric_views: int) -> None:
        self._views = geometric_views
        self._cuts = [kind for kind, alpha in ((False, mixup), (True, cutmix)) if alpha]
        shares = [beta_quantiles(alpha or 1.0, LEVELS) for alpha in (mixup, cutmix)]
        self._shares = torch.stack([(levels * ONE).round().to(torch.int64) for levels in shares])
        self._sides = ((1 - shares[1]).sqrt() * ONE).round().to(torch.int64)

    def partners(self, keys: Tensor, rows: int) -> Tensor:
        """The row of each key's partner in a table of so many rows: int64 (N,) to int64 (N,)."""
        return draw(keys, "partner", 1)[:, 0] % rows

    def plan(self, keys: Tensor) -> Mix:
        """How the samples of these keys, int64 (N,), are mixed."""
        view, kind, level, *centre = draw(keys, "mix", 5).unbind(1)
        level = level % LEVELS
        cut = torch.tensor(self._cuts, device=keys.device)[kind % len(self._cuts)]
        share = self._shares.to(keys.device)[cut.long(), level]
        side = self._sides.to(keys.device)[level]
        return Mix(view % self._views, cut if any(self._cuts) else None, share, side, torch.stack(centre, 1))

    def check(self, inputs: Mapping[str, Tensor]) -> None:
        """Raise ConfigError when inputs, each (N, ..), cannot be mixed like this."""
        if not any(self._cuts):
            return
        flat = [name for name, x in inputs.items() if x.dim() != 4]
        if flat:
            raise ConfigError(f"data.augment.cutmix: the input {flat[0]!r} is not an image", hint="use `mixup` instead")
        if len({x.shape[2:] for x in inputs.values()}) > 1:
            raise ConfigError("data.augment.cutmix: the inputs are images of several sizes", hint="use `mixup` instead")


class Erasing:
    """Random erasing with a given probability: a box of 2% to 40% of the image becomes zeros.

    Zhong, Zheng, Kang, Li, Yang, "Random erasing data augmentation" (2020). Normalised inputs have mean 0, so this is
    their variant RE-M. Sides are in the ratio .3 to 1/.3 relative to the image's; 1 of 64 areas and ratios is drawn.
    """

    def __init__(self, probability: float) -> None:
        self._probability = fixed(probability)
        level = (torch.arange(64, dtype=torch.float64) + 0.5) / 64
        area = _ERASED_AREA[0] + (_ERASED_AREA[1] - _ERASED_AREA[0]) * level
        ratio = _ERASED_RATIO ** (1 - 2 * level)
        sides = torch.stack([torch.outer(area, ratio), torch.outer(area, 1 / ratio)]).sqrt().clamp(max=1)
        self._sides = (sides * ONE).round().to(torch.int64).flatten(1)

    def apply(self, x: Tensor, keys: Tensor) -> Tensor:
        """Erase in normalised images, float (N, C, H, W), by their keys, int64 (N,): the same shape and type."""
        erased, sides, *places = draw(keys, "erase", 4).unbind(1)
        # What is not erased has a box of no height and no width.
        parts = self._sides.to(keys.device)[:, sides % self._sides.shape[1]] * (erased % ONE < self._probability)
        edges = []
        for size, part, place in zip(x.shape[2:], parts, places, strict=True):
            side = part * size >> BITS
            start = place % (size - side + 1)
            edges += [start, start + side]
        return x * (~_inside(torch.stack(edges), x)).to(x.dtype)


@cache
def beta_quantiles(alpha: float, count: int) -> Tensor:
    """The quantiles (i + 1/2) / count of Beta(alpha, alpha), float64 (count,), alpha > 0.

    The density x^(alpha - 1) (1 - x)^(alpha - 1) is symmetric, so its left half is summed by the trapezoidal rule and
    inverted linearly. For alpha < 1 it is infinite at 0; z = (2 x)^alpha makes it finite and smooth. Errors stay below
    1e-5 for alpha up to 32.
    """
    power = min(alpha, 1.0)
    z = torch.linspace(0, 1, _GRID + 1, dtype=torch.float64)
    x = z ** (1 / power) / 2
    density = z ** ((alpha - power) / power) * (1 - x) ** (alpha - 1)
    below = torch.cat([torch.zeros(1, dtype=torch.float64), (density[1:] + density[:-1]).cumsum(0)])
    below = below / (2 * below[-1])
    wanted = (torch.arange(count, dtype=torch.float64) + 0.5) / count
    half = wanted[wanted <= 0.5]
    right = torch.searchsorted(below, half).clamp(1, _GRID)
    part = (half - below[right - 1]) / (below[right] - below[right - 1])
    left_half = (z[right - 1] + part * (z[right] - z[right - 1])) ** (1 / power) / 2
    # An odd count has the median 1/2 as its own mirror image.
    return torch.cat([left_half, 1 - left_half[: count // 2].flip(0)])


def _inside(box: Tensor, like: Tensor) -> Tensor:
    """Which pixels of images (N, C, H, W) lie in boxes, int64 (4, N): bool (N, 1, H, W), on the images' device."""
    top, bottom, left, right = box.to(like.device)[:, :, None].unbind()
    rows, columns = (torch.arange(size, device=like.device) for size in like.shape[2:])
    down, across = (rows >= top) & (rows < bottom), (columns >= left) & (columns < right)
    return (down[:, :, None] & across[:, None, :]).unsqueeze(1)
