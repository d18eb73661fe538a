"""quantize: calibrate, and (with epochs) let the float network teach its own quantized self."""

from __future__ import annotations

from edgekd.quantize.phases import Quantize, quantization_aware
from edgekd.stages.context import Context
from edgekd.stages.networks import load_model, make_world, save_curves, training_tables
from edgekd.stages.quantized import save_quantized
from edgekd.stages.settings import QuantizeStage
from edgekd.stages.training import optim, run_phases, stage_train_settings, target_options, validation_scores

# Scales and folded weights start where calibration left them: a hundredth of a from-scratch rate moves them well.
_LR_SCALE = 0.01


def run(context: Context) -> None:
    """Quantize the network that goes to the device."""
    options = context.options(QuantizeStage)
    settings = stage_train_settings(context)
    _, source = context.shipped()
    world = make_world(context.common, tables=training_tables(context.common))
    world.models["original"] = load_model(context.common, source)
    edit = Quantize("original", "quantized", options)
    phases = quantization_aware(
        context.common.heads,
        edit,
        optim(context, scale=_LR_SCALE),
        options.passes(),
        temperature=options.temperature,
        task_weight=options.task_weight,
        distill=options.self_distillation,
        **target_options(context),
    )
    # float32 unless the stage asks for something else: bf16 has fewer bits than the rounding that is being learned.
    curves = run_phases(
        context,
        world,
        phases,
        settings,
        learner="quantized",
        precision=options.precision or "f32",
        frozen={"original": source},
    )
    scores, split = validation_scores(world, "quantized", settings)
    save_quantized(context, world.models["quantized"], scores, split)
    facts = context.draft.facts
    facts.update(model=source.facts["model"], parameters=source.facts["parameters"], macs=source.facts["macs"])
    save_curves(context, curves)
