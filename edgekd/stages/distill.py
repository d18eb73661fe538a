"""distill: train a student from the teacher by a scheme."""

from __future__ import annotations

from edgekd.distill.schemes.offline import offline
from edgekd.stages.context import Context
from edgekd.stages.networks import fresh_model, load_model, make_world, save_curves, training_tables
from edgekd.stages.settings import DistillStage
from edgekd.stages.teacher import keep_name, save_trained
from edgekd.stages.training import optim, run_phases, stage_train_settings, target_options


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
    phases = offline(context.common.heads, options, optim(context), options.epochs, keep, **target_options(context))
    curves = run_phases(context, world, phases, settings, learner="student", frozen={"teacher": source})
    save_trained(context, world, world.models["student"], "student", options.network())
    save_curves(context, curves)
