"""privileged: the teacher sees what the student never will, x* beside or in place of x (LUPI)."""

from __future__ import annotations

from edgekd.distill.schemes.recipe import Recipe
from edgekd.distill.schemes.terms import response_of, response_terms
from edgekd.train.world import Phase


def privileged(
    recipe: Recipe, *, imitation: float | None = None, temperature: float = 4.0, teacher_epochs: int = 0
) -> list[Phase]:
    """Generalized distillation (Lopez-Paz et al. 2016): (1 - l) CE + l T^2 KL to a teacher with other inputs.

    Vapnik and Vashist (2009) called it learning using privileged information. The models' inputs say who sees which
    columns of the table.

    Args:
        recipe: how the student learns; without `imitation` also what, l is then the weight of its kd.
        imitation: l, in place of the recipe's task weight and knowledge.
        temperature: T, with `imitation`.
        teacher_epochs: for how long the teacher first learns the task from its columns.
    """
    first = [recipe.alone("teacher", "teacher", epochs=teacher_epochs)] if teacher_epochs else []
    if imitation is None:
        return [*first, recipe.taught("student", "teacher", "privileged")]
    terms = recipe.task("student", 1.0 - imitation)
    if imitation:
        word = response_terms(
            "student", "teacher", recipe.heads, lambda head: (response_of(head, imitation, temperature),)
        )
        terms += word
    return [*first, recipe.phase("privileged", "student", terms)]
