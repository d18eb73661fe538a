"""Colour arithmetic on batches of images, and colour jitter: whole numbers throughout, so no device rounds otherwise.

All functions take and return pixels 0 .. 255 of shape (N, C, H, W) in int32, and follow Pillow within one grey level.
A factor is int (N,) in units of 1/65536: 0 is the base of an operation (black, grey, ..), 65536 the image itself.
"""

from __future__ import annotations

import torch
from torch import Tensor

from edgekd.data.draws import BITS, ONE, draw, fixed
from edgekd.data.settings import ColorSettings

_HALF = ONE // 2
_RED, _GREEN, _BLUE = 19_595, 38_470, 7_471  # ITU-R BT.601 luma in units of 1/65536, as in Pillow


class ColorJitter:
    """Brightness, contrast, saturation and hue of each sample by factors drawn for it, in this order.

    A strength s draws a factor uniformly from max(0, 1 - s) .. 1 + s, for hue a turn from -s .. s of the whole circle.
    """

    def __init__(self, settings: ColorSettings) -> None:
        factors = ((brightness, settings.brightness), (contrast, settings.contrast), (saturation, settings.saturation))
        steps = [(change, fixed(max(0.0, 1 - strength)), fixed(1 + strength)) for change, strength in factors]
        self._steps = [*steps, (hue, -fixed(settings.hue), fixed(settings.hue))]

    def apply(self, x: Tensor, keys: Tensor) -> Tensor:
        """Jitter images, uint8 (N, C, H, W), by their keys, int64 (N,): the same shape and type."""
        x = x.to(torch.int32)
        drawn = draw(keys, "color", len(self._steps)).to(x.device).unbind(1)
        for (change, low, high), numbers in zip(self._steps, drawn, strict=True):
            if low < high:
                x = change(x, low + numbers % (high - low + 1))
        return x.to(torch.uint8)


def brightness(x: Tensor, factor: Tensor) -> Tensor:
    """From black (factor 0) to the image and beyond."""
    return _blend(torch.zeros((), dtype=x.dtype, device=x.device), x, factor)


def contrast(x: Tensor, factor: Tensor) -> Tensor:
    """From the image's mean grey, rounded, to the image and beyond."""
    grey = _grey(x)
    count = grey[0].numel()
    mean = (2 * grey.sum((1, 2, 3)) + count) // (2 * count)
    return _blend(mean.to(x.dtype)[:, None, None, None], x, factor)


def saturation(x: Tensor, factor: Tensor) -> Tensor:
    """From grey to the image and beyond; grey images stay as they are."""
    return x if x.shape[1] == 1 else _blend(_grey(x), x, factor)


def hue(x: Tensor, turn: Tensor) -> Tensor:
    """Turn the hue of RGB images, (N,) in units of 1/65536 of the whole circle; other images stay as they are.

    With V the largest and d the spread of a pixel's channels, and h its hue in sixths, a channel of HSV is
    V - d * clamp(min(k, 4 - k), 0, 1), k = (n + h) mod 6, n = 5, 3, 1 for R, G, B. All of it is counted in 1/65536 d.
    """
    if x.shape[1] != 3:
        return x
    red, green, blue = x.unbind(1)
    high = x.amax(1)
    spread = high - x.amin(1)
    sixths = torch.where(high == green, 2 * spread + blue - red, 4 * spread + red - green)
    sixths = torch.where(high == red, green - blue, sixths)
    unit = spread << BITS
    circle = 6 * unit
    turned = _around((sixths << BITS) + spread * (6 * turn.to(x.dtype))[:, None, None], circle)
    channels = []
    for n in (5, 3, 1):
        k = _around(turned + n * unit, circle)
        below = torch.minimum(torch.minimum(k, 4 * unit - k), unit).clamp_(min=0)
        channels.append(high - ((below + _HALF) >> BITS))
    return torch.stack(channels, 1)


def sharpness(x: Tensor, factor: Tensor) -> Tensor:
    """From a smoothed image to the image and beyond. The border is not smoothed; nor are images of one or two rows."""
    height, width = x.shape[2:]
    if min(height, width) < 3:
        return x
    across = x[..., :-2] + x[..., 1:-1] + x[..., 2:]
    around = across[..., :-2, :] + across[..., 1:-1, :] + across[..., 2:, :]
    smooth = x.clone()
    # The sum over 13, rounded: (2 s + 13) // 26, for sums up to 13 * 255 equal to a product and a shift.
    smooth[..., 1:-1, 1:-1] = ((around + 4 * x[..., 1:-1, 1:-1]) * 2 + 13) * 20_165 >> 19
    return _blend(smooth, x, factor)


def autocontrast(x: Tensor) -> Tensor:
    """Each channel of an image stretched to 0 .. 255; one without any contrast stays."""
    low, high = x.amin((2, 3), keepdim=True), x.amax((2, 3), keepdim=True)
    low, spread = torch.where(high > low, low, 0), torch.where(high > low, high - low, 255)
    # A quotient of whole numbers this small that is not whole itself is too far from the next to be rounded to it.
    return (((x - low) * 255) / spread).to(x.dtype)


def equalize(x: Tensor) -> Tensor:
    """Each channel of an image so that all grey levels are about equally frequent; as Pillow counts it."""
    n, channels = x.shape[:2]
    flat = x.flatten(2)
    first = 256 * torch.arange(n * channels, device=x.device).view(n, channels, 1)
    counts = torch.bincount((flat + first).flatten(), minlength=n * channels * 256).view(n, channels, 256)
    brightest = counts.gather(2, flat.amax(2, keepdim=True).long())
    step = (flat.shape[2] - brightest) // 255
    level = (counts.cumsum(2) - counts + step // 2) // step.clamp(min=1)
    # Too few pixels for a step: the image stays.
    level = torch.where(step > 0, level, torch.arange(256, device=x.device)).clamp_(max=255)
    return level.gather(2, flat.long()).view(x.shape).to(x.dtype)


def posterize(x: Tensor, bits: int) -> Tensor:
    """Only the highest bits, 0 .. 8, of each value."""
    return x & (256 - (1 << (8 - bits)))


def solarize(x: Tensor, threshold: int) -> Tensor:
    """Values from a threshold, 0 .. 256, upwards are inverted."""
    inverted = ((threshold - 1 - x) >> 31) & 255  # all bits of the values from the threshold upwards
    return x ^ inverted


def _blend(base: Tensor, x: Tensor, factor: Tensor) -> Tensor:
    """base + factor * (x - base), rounded and cut to 0 .. 255; 255 * 65536 * any factor below 128 fits into 32 bits."""
    weight = factor.to(x.dtype)[:, None, None, None]
    blended = (x - base).mul_(weight).add_(_HALF).bitwise_right_shift_(BITS)
    return blended.add_(base).clamp_(0, 255)


def _around(k: Tensor, circle: Tensor) -> Tensor:
    """k modulo circle, for -circle <= k < 2 circle, 0 for a circle of 0; k >> 31 is all bits of what is below 0."""
    k = k + (circle & (k >> 31)) - circle
    return k + (circle & (k >> 31))


def _grey(x: Tensor) -> Tensor:
    """Luma of RGB images, the mean of others' channels: (N, 1, H, W)."""
    if x.shape[1] == 3:
        red, green, blue = x[:, :1], x[:, 1:2], x[:, 2:]
        return (red * _RED + green * _GREEN + blue * _BLUE + _HALF) >> BITS
    return x if x.shape[1] == 1 else (x.sum(1, keepdim=True) // x.shape[1]).to(x.dtype)
