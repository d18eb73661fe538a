"""Classification: cross-entropy, top-1 accuracy with a Wilson interval."""

from __future__ import annotations

import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from edgekd.errors import DataError
from edgekd.tasks.intervals import paired, wilson

ScoreFields = tuple[str, float, str, int, tuple[float, float], int]


def cross_entropy(
    student: Tensor,
    teacher: Tensor | None = None,
    *,
    target: Tensor,
    other: Tensor | None = None,
    share: Tensor | None = None,
    label_smoothing: float = 0.0,
) -> Tensor:
    """Mean cross-entropy of logits (N, C) with class indices (N,); there is no teacher.

    Args:
        other: class indices (N,) of the samples that these are mixed with (mixup, Zhang et al. 2018); with `share`.
        share: float (N,), how much of each sample is itself: share * CE(target) + (1 - share) * CE(other).
        label_smoothing: share of each true label that is spread over all classes (Szegedy et al. 2016).
    """
    if other is None:
        return F.cross_entropy(student, target, label_smoothing=label_smoothing)
    assert share is not None
    own, theirs = (
        F.cross_entropy(student, classes, reduction="none", label_smoothing=label_smoothing)
        for classes in (target, other)
    )
    weight = share.view(-1, *[1] * (own.dim() - 1))
    return (weight * own + (1 - weight) * theirs).mean()


def accuracy(output: Tensor, target: Tensor) -> ScoreFields:
    """Top-1 accuracy of logits (N, C) against class indices (N,), a share of 1."""
    return _share("accuracy", int((output.argmax(1) == target).sum()), len(target))


def agreement(output: Tensor, reference: Tensor) -> ScoreFields:
    """Share of samples whose top-1 class is that of reference logits (N, C): what is measured without labels."""
    return _share("agreement", int((output.argmax(1) == reference.argmax(1)).sum()), len(reference))


def accuracy_difference(output: Tensor, reference: Tensor, target: Tensor) -> ScoreFields:
    """Accuracy of logits (N, C) less that of others on the same samples, with an interval for pairs."""
    right, other = output.argmax(1) == target, reference.argmax(1) == target
    n, gained, lost = len(target), int((right & ~other).sum()), int((other & ~right).sum())
    return "accuracy", (gained - lost) / n, "fraction", n, paired(gained, lost, n), +1


def answers(output: Tensor) -> Tensor:
    """The targets (N,) that logits (N, C) stand for where there are no others."""
    return output.argmax(1)


def check(output: Tensor, target: Tensor, where: str) -> None:
    """Raise DataError when logits (N, C) and class indices (N,) cannot belong together."""
    if output.dim() != 2:
        raise DataError(
            f"{where}: a classification output must be (N, classes), the network gives {tuple(output.shape)}",
            hint="name several outputs by `task: {output: classification, ..}`, or flatten the output in the network",
        )
    if target.is_floating_point() or target.dim() != 1:
        raise DataError(
            f"{where}: class labels must be whole numbers, one per sample", hint="is this a regression task?"
        )
    worst = int(target.max())
    if worst >= output.shape[1]:
        raise DataError(
            f"{where}: label {worst} is out of range for a network with {output.shape[1]} classes",
            hint="give the network's factory the right number of classes with `args:`, or correct the labels",
        )


def _share(name: str, hits: int, n: int) -> ScoreFields:
    return name, hits / n, "fraction", n, wilson(hits / n, n), +1
