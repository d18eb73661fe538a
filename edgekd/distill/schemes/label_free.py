"""label_free: the teacher's word alone, on a table without labels (Ba and Caruana 2014; Hinton et al. 2015)."""

from __future__ import annotations

from edgekd.distill.schemes.recipe import Recipe
from edgekd.train.world import Phase


def label_free(recipe: Recipe, *, transfer: str = "unlabelled") -> list[Phase]:
    """One phase on the table `transfer`, whose labels, if it has any, are not looked at.

    Raises:
        ConfigError: a knowledge needs true classes.
    """
    blind = recipe.without_targets(("scheme label_free looks at none", "use kd, or scheme offline"))
    return [recipe.phase("label_free", "student", blind.teaching("student", "teacher"), data=transfer)]
