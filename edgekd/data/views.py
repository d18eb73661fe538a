"""Augmentation that can be enumerated: a view is a number, and a sample's views do not depend on its batch.

A view of crop c is a place of the window in the image padded by c zeros, and whether the window is mirrored:
    view = (mirrored * (2c + 1) + row) * (2c + 1) + column,   row and column in 0 .. 2c
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional

from edgekd.data.counters import hash_counter, permutation
from edgekd.data.settings import AugmentSettings

__all__ = ["Views", "hash_counter", "permutation"]

_VIEW_SEED = 20_150_309  # of the samples' own views; a change gives every data set other views


class Views:
    """All views under some augmentation, which of them a sample sees in an epoch, and how it then looks.

    Attributes:
        count: number of all views, (2c + 1)^2, times 2 with flips; 1 without augmentation.
        per_sample: number of views that one sample can be given.
        identity: the view that changes nothing.
    """

    def __init__(self, settings: AugmentSettings | None, seed: int) -> None:
        self._crop = settings.crop if settings else 0
        self._flip = settings.flip if settings else False
        self._seed = seed
        places = 2 * self._crop + 1
        self.count = places * places * (2 if self._flip else 1)
        self.identity = self._crop * places + self._crop
        wanted = settings.views if settings else 1
        self.per_sample = self.count if wanted == "all" else min(wanted, self.count)
        self._order = permutation(_VIEW_SEED, "view order", 0, self.count)
        self._strides = torch.tensor([k for k in range(1, self.count + 1) if math.gcd(k, self.count) == 1])

    def own(self, ids: Tensor) -> Tensor:
        """The distinct views that each sample has for itself, whatever the seed: ids (N,) to int64 (N, per_sample)."""
        return self.at(ids[:, None], torch.arange(self.per_sample, device=ids.device)[None, :])

    def choose(self, epoch: int, ids: Tensor) -> Tensor:
        """The view of each sample in an epoch, one of its own, drawn by (seed, epoch, id): ids (N,) to int64 (N,)."""
        return self.at(ids, self.slot(epoch, ids))

    def slot(self, epoch: int, ids: Tensor) -> Tensor:
        """Which of its own views a sample sees in an epoch: ids (N,) to int64 (N,), each below `per_sample`."""
        return hash_counter(self._seed, "view", epoch, ids) % self.per_sample

    def at(self, ids: Tensor, slots: Tensor) -> Tensor:
        """The view in each slot of a sample's own: ids and slots, int64 (N,), to int64 (N,)."""
        # A stride that shares no factor with `count` makes start + slots * stride distinct for all slots; the fixed
        # shuffle spreads what would be neighbouring places.
        order, strides = self._order.to(ids.device), self._strides.to(ids.device)
        start = hash_counter(_VIEW_SEED, "start", 0, ids) % self.count
        stride = strides[hash_counter(_VIEW_SEED, "stride", 0, ids) % len(strides)]
        return order[(start + slots * stride) % self.count]

    def apply(self, x: Tensor, view: Tensor) -> Tensor:
        """Show each sample in its view.

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
