"""teacher: train a network, or take a trained one. Also what `model:` at the top of a pipeline file becomes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import torch

from edgekd.distill.schemes.offline import supervised
from edgekd.errors import ConfigError
from edgekd.models.settings import ModelSettings
from edgekd.stages.context import Context
from edgekd.stages.networks import (
    example_inputs,
    fresh_model,
    make_world,
    save_curves,
    save_model,
    training_tables,
    warn_of_start,
)
from edgekd.stages.settings import ModelStage, Select, TeacherStage
from edgekd.stages.training import optim, run_phases, stage_train_settings, target_options, validation_scores
from edgekd.tasks.task import Score
from edgekd.train.world import Model, Phase, World


def run(context: Context) -> None:
    """Train the teacher for its epochs; with none, its weights are taken as they are."""
    options = context.options(TeacherStage)
    warn_of_start(context, options, trains=bool(options.passes()))
    settings = stage_train_settings(context)
    model = fresh_model(context.common, options, seed=context.common.seed, tell=context.tell)
    phases: list[Phase] = []
    if options.passes():
        if not any(head.target for head in context.common.heads):
            raise ConfigError("a teacher cannot be trained without targets", hint="give `weights`, or labelled data")
        keep = keep_name(options.select, "teacher")
        phases = supervised(
            "teacher", context.common.heads, optim(context), options.passes(), keep, **target_options(context)
        )
    world = make_world(context.common, tables=training_tables(context.common))
    world.models["teacher"] = model
    curves = run_phases(context, world, phases, settings, learner="teacher")
    save_trained(context, world, world.models["teacher"], "teacher", options, given=not phases)
    save_curves(context, curves)


def run_model(context: Context) -> None:
    """Take the given network as it is."""
    options = context.options(ModelStage)
    warn_of_start(context, options, trains=False)
    model = fresh_model(context.common, options, seed=context.common.seed, tell=context.tell)
    world = make_world(context.common, tables=training_tables(context.common))
    world.models["model"] = model
    save_trained(context, world, model, "model", options, given=True)


def save_trained(
    context: Context, world: World, model: Model, name: str, recipe: ModelSettings, *, given: bool = False
) -> None:
    """Score a network and write it into the draft; one that was given, and not trained here, is looked at closely."""
    scores, split = validation_scores(world, name, context.common.train)
    plain = ModelSettings(model=recipe.model, args=recipe.args, weights=recipe.weights)
    save_model(context, model, plain, scores, split)
    context.draft.facts["given"] = given
    for text in _doubts(context, world, model, scores, split) if given else ():
        context.warn(text)
        context.draft.facts["warnings"].append(text)


def _doubts(context: Context, world: World, model: Model, scores: Mapping[str, Score], split: str) -> Iterator[str]:
    """What a network's answers say against its weights, its inputs, or the data."""
    common, table = context.common, world.tables[split]
    example = example_inputs(common, model)
    with torch.no_grad():
        answers = model({name: x.to(next(model.network.parameters(), x).device) for name, x in example.items()})
    classes = common.data.classes()
    for head in common.heads:
        if head.task != "classification" or head.target is None or head.target not in table.targets:
            continue
        wanted, found = classes[head.target].count, answers[head.output].shape[1]
        if found > wanted:
            yield f"{head.output} has {found} classes and the data {wanted}: are these the classes of this data?"
        metric = scores.get("accuracy") or scores.get(f"{head.output}.accuracy")
        usual = float(torch.bincount(table.targets[head.target]).max()) / len(table)
        if metric is not None and metric.n and metric.value <= usual:
            yield (
                f"accuracy {metric.value:.4g} on {split}, no more than always naming one class ({usual:.4g}): "
                "are these the right weights, normalisation, and order of classes?"
            )


def keep_name(select: Select, model: str) -> str | None:
    """Where the trainer keeps the best state: over the model itself, or nowhere."""
    return model if select == "best" else None
