"""Which sample belongs to which split: shares drawn by seed, in proportion to the classes when there are any."""

from __future__ import annotations

from collections.abc import Collection, Mapping

import torch
from torch import Tensor

from edgekd.data.counters import permutation
from edgekd.data.sources import Split
from edgekd.errors import DataError

_CHUNK = 1 << 16


def part_size(n: int, share: float) -> int:
    """How many of n samples a share is: at least one, unless the share is 0."""
    return max(1, round(n * share)) if share else 0


def split_sizes(n: int, shares: Mapping[Split, float]) -> dict[Split, int]:
    """How n training samples fall into train and the splits that have a share; test goes first, then validation.

    Raises:
        DataError: nothing is left to train on.
    """
    sizes: dict[Split, int] = {}
    left = n
    names: tuple[Split, ...] = ("test", "validation")
    for split in names:
        if split in shares:
            sizes[split] = part_size(left, shares[split])
            left -= sizes[split]
    if left < 1:
        taken = " and ".join(f"{size} for {split}" for split, size in sizes.items())
        raise DataError(
            f"train is empty: of its {n} samples {taken} were split off",
            hint="add samples, or lower `data.validation` and `data.test`",
        )
    return {"train": left, **sizes}


def split_rows(n: int, shares: Mapping[Split, float], labels: Tensor | None, seed: int) -> dict[Split, Tensor]:
    """Rows of n training samples for train and every split that has a share; disjoint, complete, ascending.

    Args:
        labels: int64 (n,) to keep the classes in proportion, or None.

    Raises:
        DataError: nothing is left to train on.
    """
    rows = torch.arange(n)
    result: dict[Split, Tensor] = {}
    for split, size in split_sizes(n, shares).items():
        if split != "train":
            left = labels if labels is None or len(rows) == n else labels[rows]
            chosen = choose_rows(len(rows), size, left, seed, split)
            keep = torch.ones(len(rows), dtype=torch.bool)
            keep[chosen] = False
            result[split], rows = rows[chosen], rows[keep]
    return {"train": rows, **result}


def stratum(targets: Collection[Tensor]) -> Tensor | None:
    """The labels to keep in proportion, int64 (n,): the one target, if it is one integer per sample."""
    only = next(iter(targets)) if len(targets) == 1 else None
    return only if only is not None and only.dim() == 1 and not only.is_floating_point() else None


def choose_rows(n: int, size: int, labels: Tensor | None, seed: int, purpose: str) -> Tensor:
    """`size` of n rows, drawn by (seed, purpose), ascending: int64 (size,).

    With labels, int64 (n,), each class gives its proportion, by largest remainders; ties are drawn.
    """
    order = permutation(seed, purpose, 0, n)
    if labels is None:
        return order[:size].sort().values
    classes = torch.empty(0, dtype=labels.dtype)
    for part in torch.split(labels, _CHUNK):
        classes = torch.unique(torch.cat([classes, torch.unique(part)]))
    counts = sum(
        (_count(classes, part) for part in torch.split(labels, _CHUNK)), torch.zeros(len(classes), dtype=torch.int64)
    )
    quota = counts * size // n
    drawn = permutation(seed, f"{purpose} ties", 0, len(counts))
    by_remainder = drawn[torch.argsort(-(counts * size % n)[drawn], stable=True)]
    quota[by_remainder[: size - int(quota.sum())]] += 1
    return _first_of_each_class(order, labels, classes, quota)


def _first_of_each_class(order: Tensor, labels: Tensor, classes: Tensor, quota: Tensor) -> Tensor:
    """The first `quota` rows of each class in an order, ascending; chunk by chunk, to hold little beside the order."""
    chosen = torch.zeros(len(order), dtype=torch.bool)
    seen = torch.zeros_like(quota)
    for part in torch.split(order, _CHUNK):
        of_class = torch.searchsorted(classes, labels[part])
        by_class = torch.argsort(of_class, stable=True)
        counts = torch.bincount(of_class, minlength=len(classes))
        rank = torch.arange(len(part)) - (counts.cumsum(0) - counts - seen).repeat_interleave(counts)
        chosen[part[by_class[rank < quota.repeat_interleave(counts)]]] = True
        seen += counts
    return chosen.nonzero().flatten()


def _count(classes: Tensor, labels: Tensor) -> Tensor:
    return torch.bincount(torch.searchsorted(classes, labels), minlength=len(classes))
