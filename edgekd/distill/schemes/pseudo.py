"""Pseudo-labels of all heads: the edits that write them, and the terms that learn from them."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from edgekd.distill.schemes.recipe import Recipe
from edgekd.distill.schemes.soft import soft_terms
from edgekd.errors import ConfigError
from edgekd.tasks import HeadSettings
from edgekd.train.edits import Relabel
from edgekd.train.world import Term


def pseudo_labels(
    model: str,
    heads: Sequence[HeadSettings],
    table: str,
    target: str,
    *,
    confident: float | None = None,
    soft: bool = False,
) -> tuple[Relabel, ...]:
    """Edits after which the table `target` has what the model says of each head; the most probable class, or all.

    Raises:
        ConfigError: no head has classes to be sure of.
    """
    if confident is not None and not any(head.task == "classification" for head in heads):
        raise ConfigError("there is no class to be sure of: no head is a classification", hint="set confident: null")
    return tuple(
        Relabel(
            f"{model}[{head.output}]",
            target if number else table,
            target,
            column_of(head),
            confident if head.task == "classification" else None,
            soft or head.task != "classification",
        )
        for number, head in enumerate(heads)
    )


def pseudo_terms(student: str, recipe: Recipe, *, soft: bool = False) -> tuple[Term, ...]:
    """The task's loss of each head with pseudo-labels as targets; with `soft`, the response knowledge at T = 1."""
    if soft:
        return soft_terms(student, column_of, recipe.heads, 1.0)
    heads = tuple(head.model_copy(update={"target": column_of(head)}) for head in recipe.heads)
    return dataclasses.replace(recipe, heads=heads).task(student, 1.0)


def column_of(head: HeadSettings) -> str:
    """The column of a head's pseudo-labels."""
    return f"pseudo_{head.output}"
