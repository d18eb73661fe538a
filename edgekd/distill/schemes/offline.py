"""offline: a frozen teacher teaches the student (Hinton et al. 2015). Without a teacher: plain supervised training."""

from __future__ import annotations

from collections.abc import Sequence

from edgekd.distill.schemes.terms import PairOf, feature_terms, knowledge_of, no_pairs, response_terms, task_terms
from edgekd.distill.settings import DistillationSettings
from edgekd.tasks import HeadSettings
from edgekd.train.world import Move, Optim, Phase, Watch


def supervised(
    model: str,
    heads: Sequence[HeadSettings],
    optim: Optim,
    epochs: int,
    keep: str | None,
    *,
    mixed: bool = False,
    label_smoothing: float = 0.0,
) -> list[Phase]:
    """One phase: the model learns its task from the true targets. `mixed`, `label_smoothing`: see `task_terms`."""
    terms = task_terms(model, heads, 1.0, mixed=mixed, label_smoothing=label_smoothing)
    return [Phase("supervised", (Move({model: optim}, terms),), epochs, watch=Watch(model, keep=keep))]


def offline(
    heads: Sequence[HeadSettings],
    settings: DistillationSettings,
    optim: Optim,
    epochs: int,
    keep: str | None,
    *,
    pairs: PairOf = no_pairs,
    mixed: bool = False,
    label_smoothing: float = 0.0,
) -> list[Phase]:
    """One phase: `student` learns from the targets and from `teacher`.

    Args:
        pairs: layers that a knowledge compares.
        mixed: see `task_terms`.
        label_smoothing: see `task_terms`.
    """
    terms = task_terms("student", heads, settings.task_weight, mixed=mixed, label_smoothing=label_smoothing)
    terms += response_terms("student", "teacher", heads, lambda head: knowledge_of(head, settings.knowledge))
    terms += feature_terms("student", "teacher", heads, settings.knowledge or (), pairs)
    return [Phase("offline", (Move({"student": optim}, terms),), epochs, watch=Watch("student", keep=keep))]
