"""self: the student is taught by its own former generation, or by a teacher that nobody trained."""

from __future__ import annotations

from edgekd.distill.scheme_settings import VirtualTeacherSettings
from edgekd.distill.schemes.recipe import Recipe
from edgekd.train.world import Copy, Fresh, Phase, Term

STUDENT, ELDER = "student", "elder"


def self_distillation(
    recipe: Recipe,
    *,
    generations: int = 1,
    snapshot_epochs: int | None = None,
    virtual: VirtualTeacherSettings | None = None,
) -> list[Phase]:
    """Born-again networks (Furlanello et al. 2018): train, keep a copy, train afresh from that copy; again.

    Args:
        generations: how often it is trained afresh.
        snapshot_epochs: of the first training; by default as long as the others. Where labels are wrong, a short one
            ends before they are learned by heart.
        virtual: in the first training, a virtual teacher beside the targets (Tf-KD, Yuan et al. 2020).
    """
    recipe.needs_targets("scheme self")
    if virtual is not None:
        recipe.needs_whole_samples("a virtual teacher is right about the one class of a sample", "mix nothing")
    terms = recipe.task(STUDENT, 1.0) + (_virtual_terms(recipe, virtual) if virtual is not None else ())
    phases = [recipe.phase("snapshot" if generations else "virtual teacher", STUDENT, terms, epochs=snapshot_epochs)]
    for number in range(1, generations + 1):
        start = (Copy(STUDENT, ELDER), Fresh(STUDENT))
        phases.append(recipe.taught(STUDENT, ELDER, f"generation {number}", start=start, like=STUDENT))
    return phases


def _virtual_terms(recipe: Recipe, settings: VirtualTeacherSettings) -> tuple[Term, ...]:
    heads = [head for head in recipe.heads if head.task == "classification" and head.target is not None]
    found = []
    for head in heads:
        label = "virtual_teacher" if len(recipe.heads) == 1 else f"{head.output}.virtual_teacher"
        also = {"target": head.target} if head.target is not None else {}
        chosen = {"correct": settings.correct, "temperature": settings.temperature}
        side = f"{STUDENT}[{head.output}]"
        found.append(Term("virtual_teacher", side, None, settings.weight, chosen, also, label=label))
    return tuple(found)
