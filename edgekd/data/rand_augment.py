"""RandAugment: a few operations on each image, drawn for it among fourteen, all of one strength."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import lru_cache

import torch
from torch import Tensor

from edgekd.data import color
from edgekd.data.draws import ONE, draw, fixed
from edgekd.data.settings import RAND_AUGMENT_LEVELS, RandAugmentSettings

Operation = Callable[[Tensor, Tensor, float], Tensor]
_DEGREES = 30.0
_SHEAR = 0.3
_SHIFT = 150 / 331  # of the side of an image: 150 pixels of the 331 of the networks that AutoAugment searched for
_CHANGE = 0.9


class RandAugment:
    """Operations in sequence, each drawn for a sample with equal odds, its direction too.

    Cubuk, Zoph, Shlens, Le, "RandAugment: Practical automated data augmentation with a reduced search space" (2020).
    Magnitude m of 30: rotation by 30 m/30 degrees, shear by .3 m/30, translation by 45% m/30 of the side, factors of
    colour and sharpness 1 +- .9 m/30, 8 - 4 m/30 bits, solarize from 256 - 256 m/30. Nearest pixel; zeros outside.
    """

    def __init__(self, settings: RandAugmentSettings) -> None:
        self._rounds = settings.operations
        self._strength = settings.magnitude / RAND_AUGMENT_LEVELS

    def apply(self, x: Tensor, keys: Tensor) -> Tensor:
        """Augment images, uint8 (N, C, H, W), by their keys, int64 (N,): the same shape and type."""
        draws = draw(keys, "rand augment", 2 * self._rounds)
        x = x.to(torch.int32)
        for number in range(self._rounds):
            chosen, direction = draws[:, 2 * number] % len(OPERATIONS), draws[:, 2 * number + 1] % 2 * 2 - 1
            x = self._round(x, chosen, direction)
        return x.to(torch.uint8)

    def _round(self, x: Tensor, chosen: Tensor, direction: Tensor) -> Tensor:
        """One operation for each image; images of one operation are worked on together."""
        order = torch.argsort(chosen, stable=True)
        sizes = torch.bincount(chosen, minlength=len(OPERATIONS)).tolist()
        back, order, direction = torch.argsort(order).to(x.device), order.to(x.device), direction.to(x.device)
        parts = []
        for rows, operation in zip(torch.split(order, sizes), OPERATIONS.values(), strict=True):
            parts.append(operation(x[rows], direction[rows], self._strength) if len(rows) else x[:0])
        return torch.cat(parts)[back]


def affine(x: Tensor, direction: Tensor, matrix: Callable[[int], tuple[float, ...]]) -> Tensor:
    """The image seen through a map of places; the nearest pixel, and zeros outside.

    Args:
        x: (N, C, H, W).
        direction: int64 (N,), 1 or -1.
        matrix: of a direction: (a, b, c, d, e, f), a place (x, y) of the result shows (ax + by + c, dx + ey + f).
    """
    both = tuple(tuple(fixed(value) for value in matrix(sign)) for sign in (-1, 1))
    place, inside = (t.to(x.device)[(direction + 1) // 2] for t in _places(both, x.shape[2], x.shape[3]))
    pixels = place[:, None].expand(-1, x.shape[1], -1)
    return x.flatten(2).gather(2, pixels).mul_(inside[:, None]).view(x.shape)


@lru_cache(maxsize=16)
def _places(matrices: tuple[tuple[int, ...], ...], height: int, width: int) -> tuple[Tensor, Tensor]:
    """Which pixel each of an image's shows under each of K maps, and whether it is inside: int64, bool (K, H * W)."""
    a, b, c, d, e, f = torch.tensor(matrices)[:, :, None, None].unbind(1)
    # The centre of pixel i lies at i + 1/2; twice as many units make that whole.
    across, down = (2 * torch.arange(size) + 1 for size in (width, height))
    column = (a * across + b * down[:, None] + 2 * c) // (2 * ONE)
    row = (d * across + e * down[:, None] + 2 * f) // (2 * ONE)
    inside = (column >= 0) & (column < width) & (row >= 0) & (row < height)
    return (row * width + column).masked_fill_(~inside, 0).flatten(1), inside.flatten(1)


def _identity(x: Tensor, direction: Tensor, strength: float) -> Tensor:
    return x


def _autocontrast(x: Tensor, direction: Tensor, strength: float) -> Tensor:
    return color.autocontrast(x)


def _equalize(x: Tensor, direction: Tensor, strength: float) -> Tensor:
    return color.equalize(x)


def _rotate(x: Tensor, direction: Tensor, strength: float) -> Tensor:
    middle_x, middle_y = x.shape[3] / 2, x.shape[2] / 2

    def matrix(sign: int) -> tuple[float, ...]:
        angle = math.radians(sign * _DEGREES * strength)
        cos, sin = math.cos(angle), math.sin(angle)
        first, second = middle_x - cos * middle_x + sin * middle_y, middle_y - sin * middle_x - cos * middle_y
        return cos, -sin, first, sin, cos, second

    return affine(x, direction, matrix)


def _shear_x(x: Tensor, direction: Tensor, strength: float) -> Tensor:
    return affine(x, direction, lambda sign: (1, sign * _SHEAR * strength, 0, 0, 1, 0))


def _shear_y(x: Tensor, direction: Tensor, strength: float) -> Tensor:
    return affine(x, direction, lambda sign: (1, 0, 0, sign * _SHEAR * strength, 1, 0))


def _translate_x(x: Tensor, direction: Tensor, strength: float) -> Tensor:
    return affine(x, direction, lambda sign: (1, 0, sign * int(_SHIFT * strength * x.shape[3]), 0, 1, 0))


def _translate_y(x: Tensor, direction: Tensor, strength: float) -> Tensor:
    return affine(x, direction, lambda sign: (1, 0, 0, 0, 1, sign * int(_SHIFT * strength * x.shape[2])))


def _posterize(x: Tensor, direction: Tensor, strength: float) -> Tensor:
    return color.posterize(x, 8 - round(4 * strength))


def _solarize(x: Tensor, direction: Tensor, strength: float) -> Tensor:
    return color.solarize(x, 256 - round(256 * strength))


def _changed(change: Callable[[Tensor, Tensor], Tensor]) -> Operation:
    def operation(x: Tensor, direction: Tensor, strength: float) -> Tensor:
        return change(x, ONE + direction * fixed(_CHANGE * strength))

    return operation


OPERATIONS: dict[str, Operation] = {
    "identity": _identity,
    "autocontrast": _autocontrast,
    "equalize": _equalize,
    "rotate": _rotate,
    "shear_x": _shear_x,
    "shear_y": _shear_y,
    "translate_x": _translate_x,
    "translate_y": _translate_y,
    "posterize": _posterize,
    "solarize": _solarize,
    "brightness": _changed(color.brightness),
    "contrast": _changed(color.contrast),
    "saturation": _changed(color.saturation),
    "sharpness": _changed(color.sharpness),
}
