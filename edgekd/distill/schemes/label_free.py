"""label_free: the teacher's word alone, on a table without labels (Ba and Caruana 2014; Hinton et al. 2015)."""

from __future__ import annotations

from edgekd.distill.schemes.recipe import Recipe
from edgekd.train.world import Phase


def label_free(recipe: Recipe, *, transfer: str = "unlabelled") -> list[Phase]:
    """One phase on the table `transfer`, whose labels, if it has any, are not looked at."""
    return [recipe.phase("label_free", "student", recipe.teaching("student", "teacher"), data=transfer)]
