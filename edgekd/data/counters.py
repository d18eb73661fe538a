"""Random numbers without state: a hash of (seed, purpose, epoch, id), the same on every device and in any order."""

from __future__ import annotations

import hashlib

import torch
from torch import Tensor

_MASK = (1 << 64) - 1
_GOLDEN = 0x9E3779B97F4A7C15
_MULTIPLY_1 = 0xBF58476D1CE4E5B9
_MULTIPLY_2 = 0x94D049BB133111EB


def hash_counter(seed: int, purpose: str, epoch: int, ids: Tensor) -> Tensor:
    """A number for each id, uniform on 0 .. 2^63 - 1.

    Steele, Lea and Flood, "Fast splittable pseudorandom number generators" (2014): SplitMix64, with the id as its
    counter and (seed, purpose, epoch) as its start.

    Args:
        ids: integers of any shape, on any device.

    Returns:
        int64 of the same shape and on the same device.
    """
    purpose_bits = int.from_bytes(hashlib.sha256(purpose.encode()).digest()[:8], "big")
    start = _mix_int(_mix_int(_mix_int(purpose_bits) + seed) + epoch)
    return _mix((ids.to(torch.int64) + 1) * _signed(_GOLDEN) + _signed(start)) & 0x7FFFFFFFFFFFFFFF


def permutation(seed: int, purpose: str, epoch: int, n: int) -> Tensor:
    """The numbers 0 .. n - 1 in an order drawn by (seed, purpose, epoch): int64 (n,), on the CPU."""
    return torch.argsort(hash_counter(seed, purpose, epoch, torch.arange(n)), stable=True)


def _mix(z: Tensor) -> Tensor:
    # int64 products wrap around as unsigned ones do; a mask makes the arithmetic shift a logical one.
    z = (z ^ ((z >> 30) & (1 << 34) - 1)) * _signed(_MULTIPLY_1)
    z = (z ^ ((z >> 27) & (1 << 37) - 1)) * _signed(_MULTIPLY_2)
    return z ^ ((z >> 31) & (1 << 33) - 1)


def _mix_int(z: int) -> int:
    z = (z + _GOLDEN) & _MASK
    z = ((z ^ (z >> 30)) * _MULTIPLY_1) & _MASK
    z = ((z ^ (z >> 27)) * _MULTIPLY_2) & _MASK
    return z ^ (z >> 31)


def _signed(z: int) -> int:
    return z - (1 << 64) if z >> 63 else z
