"""privileged: the teacher sees what the student never will, x* beside or in place of x (LUPI)."""

from __future__ import annotations

from edgekd.distill.schemes.recipe import Recipe
from edgekd.train.world import Phase


def privileged(recipe: Recipe, *, teacher_epochs: int = 0) -> list[Phase]:
    """Generalized distillation (Lopez-Paz et al. 2016): (1 - l) CE + l T^2 KL to a teacher with other inputs.

    Vapnik and Vashist (2009) called it learning using privileged information. The models' inputs say who sees which
    columns of the table; l is the weight of the recipe's kd, and 1 - l its task weight. With `teacher_epochs` the
    teacher first learns the task from its columns.
    """
    first = [recipe.alone("teacher", "teacher", epochs=teacher_epochs)] if teacher_epochs else []
    return [*first, recipe.taught("student", "teacher", "privileged")]
