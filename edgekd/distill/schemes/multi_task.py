"""multi_task: one student with several heads learns each from a specialist (Clark et al. 2019, BAM)."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

from edgekd.distill.schemes.recipe import Recipe
from edgekd.distill.schemes.soft import label_of
from edgekd.distill.schemes.terms import knowledge_of, response_terms
from edgekd.train.world import Phase


def multi_task(recipe: Recipe, specialists: Mapping[str, str]) -> list[Phase]:
    """One phase. `specialists`: for each output of the student the model that knows it, by an output of that name."""
    terms = recipe.task("student")
    for head in recipe.heads:
        model = specialists[head.output]
        found = response_terms("student", model, (head,), lambda one: knowledge_of(one, recipe.knowledge))
        terms += tuple(dataclasses.replace(t, label=label_of(t.name, head, recipe.heads)) for t in found)
    return [recipe.phase("multi_task", "student", terms)]
