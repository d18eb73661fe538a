"""assistant: a chain from the teacher over networks of middle size to the student (TAKD, Mirzadeh et al. 2020)."""

from __future__ import annotations

from collections.abc import Mapping

from edgekd.distill.schemes.recipe import Recipe
from edgekd.train.world import Phase


def assistant(recipe: Recipe, assistants: Mapping[str, int]) -> list[Phase]:
    """One phase for each link: the teacher teaches the first assistant, that the next, and the last the student.

    Args:
        assistants: models by name, and for how many epochs each learns; 0 takes it as it is.
    """
    phases, elder = [], "teacher"
    for name, epochs in assistants.items():
        if epochs:
            phases.append(recipe.taught(name, elder, name, epochs=epochs))
        elder = name
    return [*phases, recipe.taught("student", elder, "student")]
