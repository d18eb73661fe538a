"""multi_teacher: several teachers, given or trained on bootstraps, teach the student by what they say on average."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Literal

from edgekd.distill.knowledge_settings import KnowledgeSettings
from edgekd.distill.schemes.recipe import Recipe, shared
from edgekd.distill.schemes.terms import knowledge_of
from edgekd.errors import ConfigError
from edgekd.tasks import HeadSettings
from edgekd.train.edits import Bootstrap
from edgekd.train.world import Phase, Term

STUDENT = "student"


def multi_teacher(
    recipe: Recipe,
    teachers: Mapping[str, int],
    *,
    weights: Literal["mean", "confidence"] = "mean",
    bootstrap: bool = True,
) -> list[Phase]:
    """Train the teachers that have epochs, each on a bootstrap of its own; then the student from all of them.

    `kd` and `mse_logits` compare the student with the mean of the teachers (You et al. 2017); any other knowledge is a
    term for each teacher, with its share of the weight.

    Args:
        teachers: models by name, and for how many epochs each is trained; 0 takes it as it is.
        weights: mean, or confidence: sample by sample by the teachers' cross-entropy (CA-MKD, Zhang et al. 2022).
        bootstrap: whether teachers are trained on rows drawn with replacement (Breiman 1996), or on all.
    """
    if weights == "confidence" and not all(head.task == "classification" and head.target for head in recipe.heads):
        raise ConfigError("teachers are weighed by their cross-entropy, and a head has none", hint="use mean")
    if weights == "confidence":
        recipe.needs_whole_samples("teachers are weighed by the true class of a sample", "use mean, or mix nothing")
    phases = []
    for name in [name for name, epochs in teachers.items() if epochs]:
        recipe.needs_targets(name)
        start = (Bootstrap("train", f"rows of {name}"),) if bootstrap else ()
        data = f"rows of {name}" if bootstrap else "train"
        phases.append(recipe.alone(name, name, epochs=teachers[name], start=start, data=data))
    terms = recipe.task(STUDENT) + _answers(recipe, tuple(teachers), weights)
    own = [item for item in recipe.knowledge or () if item.features or item.name not in _MEANS]
    if own:
        separate, names = dataclasses.replace(recipe, knowledge=tuple(own)), {item.name for item in own}
        terms += shared(
            tuple(teachers), lambda name: [t for t in separate.teaching(STUDENT, name) if t.knowledge in names]
        )
    return [*phases, recipe.phase("multi_teacher", STUDENT, terms)]


_MEANS = {"kd": "mean_kd", "mse_logits": "mean_mse"}


def _answers(recipe: Recipe, teachers: Sequence[str], weights: str) -> tuple[Term, ...]:
    """Terms with the mean of the teachers' outputs, of each head."""
    found = []
    for head in recipe.heads:
        for item in [item for item in knowledge_of(head, recipe.knowledge) if item.name in _MEANS]:
            name = _mean_of(item, head, weights)
            also = {"target": head.target} if name == "confidence_kd" and head.target is not None else {}
            sides = f"{STUDENT}[{head.output}]", tuple(f"{teacher}[{head.output}]" for teacher in teachers)
            ramp = (0.0, item.ramp) if item.ramp else None
            label = name if len(recipe.heads) == 1 else f"{head.output}.{name}"
            found.append(Term(name, *sides, item.weight, item.arguments, also, ramp, label=label))
    return tuple(found)


def _mean_of(item: KnowledgeSettings, head: HeadSettings, weights: str) -> str:
    return "confidence_kd" if weights == "confidence" and item.name == "kd" else _MEANS[item.name]
