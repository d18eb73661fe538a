"""offline: a frozen teacher teaches the student (Hinton et al. 2015). Without a teacher: plain supervised training."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from edgekd.distill.knowledge_settings import KnowledgeSettings
from edgekd.distill.schemes.recipe import Recipe
from edgekd.distill.schemes.terms import no_pairs
from edgekd.distill.settings import DistillationSettings
from edgekd.distill.term_settings import Pair
from edgekd.tasks import HeadSettings
from edgekd.train.world import Optim, Phase


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
    recipe = Recipe(tuple(heads), optim, epochs, keep is not None, mixed=mixed, label_smoothing=label_smoothing)
    return [recipe.alone(model, "supervised")]


def offline(
    heads: Sequence[HeadSettings],
    settings: DistillationSettings,
    optim: Optim,
    epochs: int,
    keep: str | None,
    *,
    pairs: Callable[[KnowledgeSettings], Sequence[Pair]] | None = None,
    mixed: bool = False,
    label_smoothing: float = 0.0,
) -> list[Phase]:
    """One phase: `student` learns from the targets and from `teacher`.

    Args:
        pairs: layers of student and teacher that a knowledge compares.
        mixed: see `task_terms`.
        label_smoothing: see `task_terms`.
    """
    recipe = Recipe(
        tuple(heads),
        optim,
        epochs,
        keep is not None,
        settings.task(),
        settings.taught(),
        no_pairs if pairs is None else lambda item, student, teacher: pairs(item),
        mixed,
        label_smoothing,
    )
    return [recipe.taught("student", "teacher", "offline")]
