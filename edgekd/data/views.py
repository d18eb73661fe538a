"""Seeded augmentation: a sample in a slot looks the same in any batch, whoever trains on it, on any device.

Where a sample is cut out can be enumerated. A view of crop c is a place of the window in the image padded by c zeros,
and whether the window is mirrored:
    view = (mirrored * (2c + 1) + row) * (2c + 1) + column,   row and column in 0 .. 2c
What else is done to it (colour, RandAugment, erasing, mixing) cannot, but is drawn by (sample, slot) alone. So a sample
with so many slots has as many views, and a frozen teacher is asked once about each.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor
from torch.nn import functional

from edgekd.data.color import ColorJitter
from edgekd.data.counters import hash_counter, permutation
from edgekd.data.draws import VIEW_SEED, sample_keys
from edgekd.data.mixing import Erasing, Mixing
from edgekd.data.rand_augment import RandAugment
from edgekd.data.settings import AugmentSettings
from edgekd.errors import ConfigError

__all__ = ["Look", "Views", "hash_counter", "permutation"]


@dataclass(frozen=True)
class Look:
    """How N samples are seen.

    Attributes:
        view: int64 (N,), the geometric view of each.
        ids: int64 (N,), the samples.
        slots: int64 (N,), which of its own views each is seen in.
    """

    view: Tensor
    ids: Tensor
    slots: Tensor

    @cached_property
    def keys(self) -> Tensor:
        """What everything but the geometric view is drawn by: int64 (N,)."""
        return sample_keys(self.ids, self.slots)


class Views:
    """All views under some augmentation, which of them a sample sees in an epoch, and how it then looks.

    Attributes:
        count: number of all geometric views, (2c + 1)^2, times 2 with flips; 1 without augmentation.
        identity: the geometric view that changes nothing.
        finite: whether a sample has finitely many views; otherwise each epoch draws new ones.
        per_sample: number of views that one sample can be given; 0 if they are not finite.
        mixing: how samples are mixed with others, or None.
    """

    def __init__(self, settings: AugmentSettings | None, seed: int) -> None:
        self._crop = settings.crop if settings else 0
        self._flip = settings.flip if settings else False
        self._seed = seed
        places = 2 * self._crop + 1
        self.count = places * places * (2 if self._flip else 1)
        self.identity = self._crop * places + self._crop
        self.finite = settings is None or settings.finite
        self.per_sample = (settings.per_sample if settings else 1) if self.finite else 0
        self._erasing = Erasing(settings.erase) if settings and settings.erase else None
        self.mixing = (
            Mixing(settings.mixup or 0, settings.cutmix or 0, self.count) if settings and settings.mixes else None
        )
        self._pixels: dict[str, ColorJitter | RandAugment] = {}
        if settings and settings.color and settings.color.acts:
            self._pixels["color"] = ColorJitter(settings.color)
        if settings and settings.rand_augment is not None:
            self._pixels["rand_augment"] = RandAugment(settings.rand_augment)
        self._order = permutation(VIEW_SEED, "view order", 0, self.count)
        self._strides = torch.tensor([k for k in range(1, self.count + 1) if math.gcd(k, self.count) == 1])

    def own(self, ids: Tensor) -> Tensor:
        """The geometric views that each sample has for itself, whatever the seed: ids (N,) to int64 (N, per_sample)."""
        return self.at(ids[:, None], torch.arange(self.per_sample, device=ids.device)[None, :])

    def choose(self, epoch: int, ids: Tensor) -> Tensor:
        """The geometric view of each sample in an epoch, by (seed, epoch, id): ids (N,) to int64 (N,)."""
        return self.at(ids, self.slot(epoch, ids))

    def slot(self, epoch: int, ids: Tensor) -> Tensor:
        """Which of its own views a sample sees in an epoch: ids (N,) to int64 (N,).

        Each is below `per_sample`; if views are not finite, it is any number from 0 on, and new in every epoch.
        """
        drawn = hash_counter(self._seed, "view", epoch, ids)
        return drawn % self.per_sample if self.finite else drawn

    def at(self, ids: Tensor, slots: Tensor) -> Tensor:
        """The geometric view in each slot of a sample's own: ids and slots, int64 (N,), to int64 (N,)."""
        if self.count == 1:
            return torch.zeros_like(ids + slots)
        # A stride that shares no factor with `count` makes start + slots * stride distinct for all slots; the fixed
        # shuffle spreads what would be neighbouring places.
        order, strides = self._order.to(ids.device), self._strides.to(ids.device)
        start = hash_counter(VIEW_SEED, "start", 0, ids) % self.count
        stride = strides[hash_counter(VIEW_SEED, "stride", 0, ids) % len(strides)]
        return order[(start + slots % self.count * stride) % self.count]

    def look(self, ids: Tensor, slots: Tensor) -> Look:
        """How samples are seen in these slots of their own: ids and slots, int64 (N,)."""
        return Look(self.at(ids, slots), ids, slots)

    def show(self, x: Tensor, look: Look) -> Tensor:
        """Raw values of an input, (N, ..), as a look shows them: the same shape and type.

        Images are cut out and mirrored, and the colours of images of pixels 0 .. 255 changed; all else is returned as
        it is.
        """
        x = self.apply(x, look.view.to(x.device))
        if _has_pixels(x):
            for change in self._pixels.values():
                x = change.apply(x, look.keys)
        return x

    def erase(self, x: Tensor, look: Look) -> Tensor:
        """Normalised values of an input, float (N, ..), in which a box may be erased, if they are images."""
        return self._erasing.apply(x, look.keys) if self._erasing and x.dim() == 4 else x

    def check(self, inputs: Mapping[str, Tensor]) -> None:
        """Raise ConfigError when raw inputs, each (N, ..), cannot be seen like this."""
        if not any(_has_pixels(x) for x in inputs.values()):
            for name in self._pixels:
                raise ConfigError(
                    f"data.augment.{name} changes pixels of 0 .. 255, and no input is an image of such",
                    hint=f"remove `{name}:`, or store the images as uint8",
                )
        if self.mixing is not None:
            self.mixing.check(inputs)

    def apply(self, x: Tensor, view: Tensor) -> Tensor:
        """Show each sample in its geometric view.

        Args:
            x: (N, C, H, W) of any type; a tensor that has not four axes is returned as it is.
            view: int64 (N,), each in 0 .. count - 1 (not checked: it would make a GPU wait).

        Returns:
            The same shape and type; outside of the image are zeros.
        """
        if x.dim() != 4 or self.count == 1:
            return x
        n, channels, height, width = x.shape
        places = 2 * self._crop + 1
        across = torch.arange(width, device=x.device)
        mirrored = (view >= places * places)[:, None]
        rows = (view // places % places)[:, None] + torch.arange(height, device=x.device)
        columns = (view % places)[:, None] + torch.where(mirrored, across.flip(0), across)
        pixels = (rows[:, :, None] * (width + 2 * self._crop) + columns[:, None, :]).view(n, 1, -1)
        padded = functional.pad(x, (self._crop,) * 4).flatten(2)
        return padded.gather(2, pixels.expand(-1, channels, -1)).view(x.shape)


def _has_pixels(x: Tensor) -> bool:
    return x.dtype == torch.uint8 and x.dim() == 4
