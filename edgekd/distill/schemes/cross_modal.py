"""cross_modal: a teacher of one modality teaches a student of another on pairs of both (Gupta et al. 2016)."""

from __future__ import annotations

from edgekd.distill.schemes.recipe import Recipe
from edgekd.train.world import Phase


def cross_modal(recipe: Recipe, *, pairs: str = "train") -> list[Phase]:
    """One phase on a table whose rows hold both modalities; the models' inputs say who sees which columns.

    A recipe without task weight needs no labels.
    """
    terms = recipe.task("student") + recipe.teaching("student", "teacher")
    return [recipe.phase("cross_modal", "student", terms, data=pairs)]
