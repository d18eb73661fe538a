"""expansion: a student as large as its teacher or larger learns its pseudo-labels under noise, and teaches the next."""

from __future__ import annotations

from edgekd.distill.schemes.pseudo import pseudo_labels, pseudo_terms
from edgekd.distill.schemes.recipe import Recipe
from edgekd.train.world import Copy, Fresh, Phase

_PSEUDO = "pseudo-labelled rows"  # of working tables: names that no table of a pipeline file can have


def expansion(
    recipe: Recipe,
    *,
    rounds: int = 3,
    unlabelled: str = "unlabelled",
    confident: float | None = None,
    soft: bool = True,
) -> list[Phase]:
    """Noisy Student (Xie et al. 2020): in each round the teacher labels clean samples and a fresh student learns.

    The noise is the student's dropout and the views of the run; the teacher labels without either. After each round
    the student is the teacher.

    Args:
        recipe: how the student learns in each round.
        rounds: how often.
        unlabelled: the table that is labelled; its own labels, if it has any, are not looked at.
        confident: least probability of a class for a row to be kept.
        soft: whether probabilities are learned, or the most probable class.

    Raises:
        ConfigError: there is no class to be sure of, or samples are mixed and labels are soft.
    """
    if soft:
        recipe.needs_whole_samples("soft pseudo-labels are what the teacher says of whole samples", "set soft: false")
    labels = pseudo_labels("teacher", recipe.heads, unlabelled, _PSEUDO, confident=confident, soft=soft)
    terms = pseudo_terms("student", recipe, soft=soft)
    phases = []
    for number in range(rounds):
        hand_over = (Copy("student", "teacher"),) if number else ()
        start = (*hand_over, *labels, Fresh("student"))
        phases.append(recipe.phase(f"expansion {number}", "student", terms, start=start, data=_PSEUDO))
    return phases
