"""distill: train a student from the teacher by a scheme."""

from __future__ import annotations

from collections.abc import Sequence

from edgekd.distill.knowledge_settings import KnowledgeSettings, Pair
from edgekd.distill.pairing import Stages, pair, stages_of
from edgekd.distill.schemes.offline import offline
from edgekd.distill.schemes.terms import PairOf
from edgekd.stages.context import Context
from edgekd.stages.networks import (
    example_inputs,
    fresh_model,
    load_model,
    make_world,
    save_curves,
    training_tables,
)
from edgekd.stages.settings import DistillStage
from edgekd.stages.teacher import keep_name, save_trained
from edgekd.stages.training import optim, run_phases, stage_train_settings, target_options
from edgekd.train.world import World


def run(context: Context) -> None:
    """Train the student; the teacher is frozen and stays in evaluation mode."""
    options = context.options(DistillStage)
    settings = stage_train_settings(context)
    source = context.inputs.get("teacher") or context.inputs["model"]
    world = make_world(context.common, tables=training_tables(context.common))
    world.models["teacher"] = load_model(context.common, source)
    # Another seed than the teacher's, which may be a network of the same kind.
    world.models["student"] = fresh_model(context.common, options.network(), seed=context.common.seed + 1)
    keep = keep_name(options.select, "student")
    phases = offline(
        context.common.heads,
        options,
        optim(context),
        options.epochs,
        keep,
        pairs=_pairs(context, world),
        **target_options(context),
    )
    curves = run_phases(context, world, phases, settings, learner="student", frozen={"teacher": source})
    save_trained(context, world, world.models["student"], "student", options.network())
    save_curves(context, curves)


def _pairs(context: Context, world: World) -> PairOf:
    """Layers that a knowledge compares: those that the file names, else stages of one size; the log says which."""
    found: dict[str, Stages] = {}

    def of(item: KnowledgeSettings) -> Sequence[Pair]:
        if item.layers is not None:
            return item.layers
        for name in ("student", "teacher") if not found else ():
            model = world.models[name]
            found[name] = stages_of(model, example_inputs(context.common, model))
        pairs = pair(found["student"], found["teacher"], item.name)
        context.tell(f"{context.stage}: {item.name} compares " + ", ".join(f"{s} with {t}" for s, t in pairs))
        return pairs

    return of
