"""Random numbers without state: a hash of (seed, purpose, epoch, id), the same on every device and in any order."""

from __future__ import annotations

import hashlib

import torch
from torch import Tensor

_MASK = (1 << 64) - 1
_GOLDEN = 0x9E3779B97F4A7C15
_MULTIPLY_1 = 0xBF58476D1CE4E5B9
_MULTIPLY_2 = 0x94D049BB133111EB
_CHUNK = 1 << 16
_PARTS = 16


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
    z = ids.to(torch.int64) + 1
    return _mix(z.mul_(_signed(_GOLDEN)).add_(_signed(start))).bitwise_and_(0x7FFFFFFFFFFFFFFF)


def permutation(seed: int, purpose: str, epoch: int, n: int) -> Tensor:
    """The numbers 0 .. n - 1 in an order drawn by (seed, purpose, epoch): int64 (n,), on the CPU.

    They are sorted by `hash_counter`, in parts, so that little more is held at once than the numbers and their keys.
    """
    keys = torch.empty(n, dtype=torch.int64)
    for start in range(0, n, _CHUNK):
        stop = min(start + _CHUNK, n)
        keys[start:stop] = hash_counter(seed, purpose, epoch, torch.arange(start, stop))
    if n <= _CHUNK:
        return torch.argsort(keys, stable=True)
    part_of = torch.empty(n, dtype=torch.uint8)
    for start in range(0, n, _CHUNK):
        part_of[start : start + _CHUNK] = (keys[start : start + _CHUNK] >> 32) * _PARTS >> 31
    order = torch.empty(n, dtype=torch.int64)
    start = 0
    for part in range(_PARTS):
        places = (part_of == part).nonzero().flatten()
        order[start : start + len(places)] = places[torch.argsort(keys[places], stable=True)]
        start += len(places)
    return order


def _mix(z: Tensor) -> Tensor:
    """The last steps of SplitMix64, in place."""
    # int64 products wrap around as unsigned ones do; a mask makes the arithmetic shift a logical one.
    z ^= (z >> 30).bitwise_and_((1 << 34) - 1)
    z *= _signed(_MULTIPLY_1)
    z ^= (z >> 27).bitwise_and_((1 << 37) - 1)
    z *= _signed(_MULTIPLY_2)
    z ^= (z >> 31).bitwise_and_((1 << 33) - 1)
    return z


def _mix_int(z: int) -> int:
    z = (z + _GOLDEN) & _MASK
    z = ((z ^ (z >> 30)) * _MULTIPLY_1) & _MASK
    z = ((z ^ (z >> 27)) * _MULTIPLY_2) & _MASK
    return z ^ (z >> 31)


def _signed(z: int) -> int:
    return z - (1 << 64) if z >> 63 else z
