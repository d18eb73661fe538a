"""multi_task: one student with several heads learns each from a specialist (Clark et al. 2019, BAM)."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

from edgekd.config.settings import did_you_mean
from edgekd.distill.schemes.recipe import Recipe
from edgekd.distill.schemes.soft import label_of
from edgekd.errors import ConfigError
from edgekd.train.world import Phase


def multi_task(recipe: Recipe, specialists: Mapping[str, str], epochs: Mapping[str, int] | None = None) -> list[Phase]:
    """A phase for each specialist that is trained, then one for the student.

    Args:
        specialists: for each output of the student the model that knows it, by an output of that name.
        epochs: for how long a specialist first learns its head from the true targets; by default not at all.

    Raises:
        ConfigError: heads and specialists are not the same, or a knowledge of layers is asked for.
    """
    layered = [item.name for item in recipe.knowledge or () if item.features]
    if layered:
        raise ConfigError(
            f"scheme multi_task teaches heads, and {layered[0]} compares layers", hint="use kd or another of outputs"
        )
    heads = {head.output: head for head in recipe.heads}
    unknown = [name for name in specialists if name not in heads]
    missing = [name for name in heads if name not in specialists]
    if unknown:
        raise ConfigError(f"the student has no head {unknown[0]!r}", hint=did_you_mean(unknown[0], heads))
    if missing:
        raise ConfigError(f"nobody teaches the head {missing[0]!r}", hint="give it a specialist")
    phases = []
    for name, passes in (epochs or {}).items():
        if passes:
            one = dataclasses.replace(recipe, heads=(heads[name],))
            one.needs_targets(f"the specialist of {name}")
            # Scores are those of all heads, which a specialist has not.
            phases.append(dataclasses.replace(one.alone(specialists[name], name, epochs=passes), watch=None))
    terms = recipe.task("student")
    for head in recipe.heads:
        model = specialists[head.output]
        found = dataclasses.replace(recipe, heads=(head,)).teaching("student", model)
        terms += tuple(dataclasses.replace(t, label=label_of(t.name, head, recipe.heads)) for t in found)
    return [*phases, recipe.phase("multi_task", "student", terms)]
