"""adaptation: a network moves to another domain by the pseudo-labels it is sure of there."""

from __future__ import annotations

from edgekd.distill.schemes.pseudo import pseudo_labels, pseudo_terms
from edgekd.distill.schemes.recipe import Recipe
from edgekd.train.world import Copy, Phase

_SURE = "confident rows"  # a name that no table of a pipeline file can have


def adaptation(
    recipe: Recipe, *, domain: str = "target", confident: float | None = 0.9, rounds: int = 3
) -> list[Phase]:
    """Self-training on a target domain without labels (Lee 2013; Zou et al. 2018).

    The student starts as a copy of the teacher, which knows the source domain. In each round it learns the rows of
    whose class it was sure before.

    Args:
        recipe: how the student learns in each round.
        domain: the table of the target domain; its labels, if it has any, are not looked at.
        confident: least probability of a class for a row to be kept; None keeps all.
        rounds: how often.
    """
    labels = pseudo_labels("student", recipe.heads, domain, _SURE, confident=confident)
    terms = pseudo_terms("student", recipe)
    phases = []
    for number in range(rounds):
        first = () if number else (Copy("teacher", "student"),)
        phases.append(recipe.phase(f"adaptation {number}", "student", terms, start=(*first, *labels), data=_SURE))
    return phases
