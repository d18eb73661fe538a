"""What decides how a sample is seen: whole numbers drawn by counter from (sample, slot), the same on every device.

A slot is the number of a view among a sample's own. Strengths and shares are counted in units of 1/65536, so that a
draw, and what integer arithmetic makes of it, is equal to the last bit in any batch and on any device.
"""

from __future__ import annotations

import torch
from torch import Tensor

from edgekd.data.counters import hash_counter

VIEW_SEED = 20_150_309  # of the samples' own views; a change gives every data set other views
BITS = 16
ONE = 1 << BITS


def sample_keys(ids: Tensor, slots: Tensor) -> Tensor:
    """A number for each (sample, slot): ids and slots, int64 (N,), to int64 (N,), uniform on 0 .. 2^63 - 1."""
    # Slots may be as large as ids, so they cannot be packed into one counter; hashed twice, no bit of either is lost.
    return hash_counter(VIEW_SEED, "seen", 0, hash_counter(VIEW_SEED, "sample", 0, ids) ^ slots)


def draw(keys: Tensor, purpose: str, n: int) -> Tensor:
    """Numbers for each key and a purpose: keys (N,) to int64 (N, n), uniform on 0 .. 2^63 - 1."""
    return hash_counter(VIEW_SEED, purpose, 0, keys[:, None] ^ torch.arange(n, device=keys.device))


def fixed(value: float) -> int:
    """A number in units of 1/65536, rounded."""
    return round(value * ONE)
