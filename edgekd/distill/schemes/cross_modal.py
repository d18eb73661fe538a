"""cross_modal: a teacher of one modality teaches a student of another on pairs of both (Gupta et al. 2016)."""

from __future__ import annotations

from collections.abc import Collection

from edgekd.distill.schemes.recipe import Recipe
from edgekd.errors import ConfigError
from edgekd.train.world import Phase


def cross_modal(recipe: Recipe, *, pairs: str = "train", columns: Collection[str] | None = None) -> list[Phase]:
    """One phase on a table whose rows hold both modalities; the models' inputs say who sees which columns.

    A recipe without task weight needs no labels.

    Args:
        columns: targets that the table has; the task's loss of others falls away. None: all of them.

    Raises:
        ConfigError: a knowledge needs true classes, and the table has none, or nothing is left to learn from.
    """
    if columns is not None:
        missing = {head.target for head in recipe.heads if head.target} - {*columns}
        recipe = recipe.without_targets((f"the table {pairs} has none", "use kd, or pairs with labels"), missing)
    terms = recipe.task("student") + recipe.teaching("student", "teacher")
    if not terms:
        raise ConfigError(f"there is nothing to learn from on the table {pairs}", hint="give a knowledge, e.g. kd")
    return [recipe.phase("cross_modal", "student", terms, data=pairs)]
