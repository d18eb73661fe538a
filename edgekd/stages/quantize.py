"""quantize: calibrate, and (with epochs) let the float network teach its own quantized self."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from edgekd.data.views import Views
from edgekd.distill.knowledge_settings import KdSettings, KnowledgeSettings, MseLogitsSettings
from edgekd.distill.pairing import Stages, pair, stages_of
from edgekd.distill.schemes.recipe import Recipe
from edgekd.distill.term_settings import Pair
from edgekd.files import write_atomic
from edgekd.models.settings import ModelSettings
from edgekd.quantize.phases import Quantize, Rehearse, qkd, quantization_aware
from edgekd.quantize.quantizer import QuantizedNetwork
from edgekd.stages.context import Common, Context
from edgekd.stages.networks import (
    example_inputs,
    fresh_model,
    load_model,
    make_world,
    metrics,
    save_curves,
    training_tables,
)
from edgekd.stages.quantized import save_quantized
from edgekd.stages.settings import QuantizeStage, tables_of
from edgekd.stages.training import optim, run_phases, stage_train_settings, target_options, validation_scores
from edgekd.store import Artifact, Draft, Store
from edgekd.train.mirrored import mirrored
from edgekd.train.rehearsal import rehearse_phases
from edgekd.train.world import Copy, Model, Phase, World

ORIGINAL, QUANTIZED, TEACHER = "original", "quantized", "teacher"
_MIRRORED = "mirrored_"  # before the name of a guide that answers about mirror images as well
# Scales and folded weights start where calibration left them: a hundredth of a from-scratch rate moves them well.
_LR_SCALE = 0.01


def run(context: Context) -> None:
    """Quantize the network that goes to the device."""
    options = context.options(QuantizeStage)
    work = _Work(context, options)
    world, curves = work.trained(work.asked())
    network = world.models[QUANTIZED].network
    assert isinstance(network, QuantizedNetwork)
    _tell(context, network)
    scores, split = validation_scores(world, QUANTIZED, stage_train_settings(context))
    save_quantized(context, world.models[QUANTIZED], scores, split)
    facts, source = context.draft.facts, work.source
    facts.update(model=source.facts["model"], parameters=source.facts["parameters"], macs=source.facts["macs"])
    save_curves(context, curves)
    _save_details(context, network, {"as asked": metrics(scores, split)} | work.arms() if options.arms else {})


class _Lesson:
    """What the options ask for, as phases; `teachers` are the models that guide."""

    edit = Quantize

    def __init__(self, context: Context, options: QuantizeStage) -> None:
        self.context, self.options = context, options
        self.teachers = _teachers(options)

    def asked(self) -> list[Phase]:
        """The phases that the options ask for."""
        options = self.options
        recipe = self._recipe(options.task_weight if options.qkd is None else 1.0)
        if options.arms:
            recipe.needs_targets("quantize.arms")
        if options.qkd is not None and options.passes():
            tutor = self.teachers[0]
            return qkd(recipe, self._edit(recipe), tutor, options.qkd.epochs(options.passes()))
        if options.task_weight and options.passes():
            recipe.needs_targets("quantize.task_weight")
        return quantization_aware(recipe, self._edit(recipe), self.teachers)

    def _recipe(self, task_weight: float, *, epochs: int | None = None) -> Recipe:
        context, options = self.context, self.options
        return Recipe(
            context.common.heads,
            optim(context, scale=_LR_SCALE),
            options.passes() if epochs is None else epochs,
            task_weight=task_weight,
            knowledge=options.knowledge or _answers(context, options.temperature),
            pairs=self._pairs,
            **target_options(context),
        )

    def _edit(self, recipe: Recipe) -> Quantize:
        taps = [
            place
            for item in recipe.knowledge or ()
            if item.features and recipe.epochs
            for guide in self.teachers
            for place, _ in self._pairs(item, QUANTIZED, guide)
        ]
        table = self.options.calibration_table or "train"
        return self.edit(ORIGINAL, QUANTIZED, self.options, table, tuple(dict.fromkeys(taps)))

    def _pairs(self, item: KnowledgeSettings, student: str, teacher: str) -> Sequence[Pair]:
        """Layers that a knowledge compares: the quantized network has those of its original."""
        if item.layers is not None:
            return item.layers
        return pair(self._stages_of(student), self._stages_of(teacher), item.name)

    def _stages_of(self, name: str) -> Stages:
        """What a network offers for pairing."""
        raise NotImplementedError


class _Work(_Lesson):
    """The world of the stage and the ways to train in it."""

    def __init__(self, context: Context, options: QuantizeStage) -> None:
        super().__init__(context, options)
        _, self.source = context.shipped()
        self.guides = {name: self._guide(name) for name in self.teachers}
        self._stages: dict[str, Stages] = {}

    def _guide(self, name: str) -> Artifact:
        inputs = self.context.inputs
        own = name.removeprefix(_MIRRORED) == ORIGINAL
        artifact = self.source if own else inputs.get("teacher") or inputs.get("model")
        assert artifact is not None  # the schema asks for a teacher
        return artifact

    def trained(
        self, phases: Sequence[Phase], *, arm: str = "", learner: str = QUANTIZED
    ) -> tuple[World, list[dict[str, Any]]]:
        """Run phases in a world of their own; `arm` names the folder of their checkpoints."""
        context = self.context
        world = make_world(context.common, tables=training_tables(context.common, tables_of(self.options)))
        world.models[ORIGINAL] = load_model(context.common, self.source)
        for name, artifact in self.guides.items():
            if name != ORIGINAL:
                model = load_model(context.common, artifact)
                world.models[name] = mirrored(model, world.heads) if self.options.mirrored else model
        work = context.work / arm if arm else context.work
        # float32 unless the stage asks for something else: bf16 has fewer bits than the rounding that is being learned.
        curves = run_phases(
            dataclasses.replace(context, work=work),
            world,
            phases,
            stage_train_settings(context),
            learner=learner,
            precision=self.options.precision or "f32",
            frozen={ORIGINAL: self.source, **self.guides},
        )
        return world, curves

    def arms(self) -> dict[str, list[dict[str, Any]]]:
        """Scores on the validation split of what else could have been done in the same time."""
        epochs = self.options.passes()
        still = self._recipe(0.0, epochs=0)
        ways = {"calibration alone": (quantization_aware(still, self._edit(still), []), QUANTIZED)}
        if epochs:
            alone, taught = self._recipe(1.0), self._recipe(0.0)
            ways["targets alone"] = (quantization_aware(alone, self._edit(alone), []), QUANTIZED)
            longer = alone.alone("longer", "float", start=(Copy(ORIGINAL, "longer"),))
            ways["float, as much longer"] = ([longer], "longer")
            ways["self-distillation"] = (quantization_aware(taught, self._edit(taught), [ORIGINAL]), QUANTIZED)
        else:
            self.context.tell(f"{self.context.stage}: note: with 0 epochs no arm is trained")
        found = {}
        for name, (phases, learner) in ways.items():
            self.context.tell(f"{self.context.stage}: arm {name}")
            world, _ = self.trained(phases, arm=name.replace(" ", "_"), learner=learner)
            scores, split = validation_scores(world, learner, stage_train_settings(self.context))
            found[name] = metrics(scores, split)
        return found

    def _stages_of(self, name: str) -> Stages:
        """Each artefact is opened once."""
        artifact = self.guides.get(name, self.source)
        if artifact.key not in self._stages:
            model = load_model(self.context.common, artifact)
            self._stages[artifact.key] = stages_of(model, example_inputs(self.context.common, model))
        return self._stages[artifact.key]


class _Rehearsal(_Lesson):
    """The same with untrained networks."""

    edit = Rehearse

    def __init__(self, context: Context, options: QuantizeStage, models: Mapping[str, Model]) -> None:
        super().__init__(context, options)
        self._models = models

    def _stages_of(self, name: str) -> Stages:
        model = self._models.get(name, self._models[ORIGINAL])
        return stages_of(model, example_inputs(self.context.common, model))


def rehearse(
    common: Common, options: QuantizeStage, shipped: ModelSettings, teacher: ModelSettings | None, store: Store
) -> None:
    """Capture the network untrained and ask for each loss once: names that fit nothing are known before training.

    Args:
        shipped: the network that will be quantized.

    Raises:
        ConfigError: a layer, an output or a knowledge does not fit the networks.
        ExportError: the network cannot be captured, or has nothing to quantize.
    """
    context = Context("quantize", options, common, {}, Draft(Path()), Path(), store, tell=lambda text: None)
    world = make_world(common, tables=training_tables(common, tables_of(options)))
    guides = _teachers(options)
    for name, network in ((ORIGINAL, shipped), (TEACHER, teacher)):
        if network is not None and {name, _MIRRORED + name} & {ORIGINAL, *guides}:
            model = fresh_model(common, network.model_copy(update={"weights": None}), seed=common.seed)
            model.network.eval()
            world.models[name] = model
            world.models[_MIRRORED + name] = mirrored(model, world.heads)
    phases = _Rehearsal(context, options, dict(world.models)).asked()
    rehearse_phases(world, phases, Views(common.data.settings.augment, common.seed), common.seed)


def _teachers(options: QuantizeStage) -> list[str]:
    """The frozen networks that teach, by the names that phases give them."""
    if not options.self_distillation or not options.passes():
        return []
    prefix = _MIRRORED if options.mirrored else ""
    return [prefix + (ORIGINAL if name == "original" else TEACHER) for name in options.guides]


def _answers(context: Context, temperature: float) -> tuple[KnowledgeSettings, ...]:
    """What is taught unless the options say otherwise: the answers of each head, each whole."""
    if any(head.task == "classification" for head in context.common.heads):
        return (KnowledgeSettings(kd=KdSettings(weight=1.0, temperature=temperature)),)
    return (KnowledgeSettings(mse_logits=MseLogitsSettings(weight=1.0)),)


def _tell(context: Context, network: QuantizedNetwork) -> None:
    calibration = network.calibration
    assert calibration is not None
    # Ranges are chosen in two steps: the last that was kept says it all.
    kept = [str(trial["what"]) for trial in calibration.tried if trial["kept"]]
    ranges = [what for what in kept if what.startswith("activations ")]
    kept = [what for what in kept if what not in ranges[:-1]]
    options = context.options(QuantizeStage)
    context.tell(f"{context.stage}: calibrated on {calibration.samples:,} samples with " + ", ".join(kept))
    if calibration.samples < options.calibration:
        where = f"the table {options.calibration_table}" if options.calibration_table else "the training split"
        context.tell(
            f"{context.stage}: note: {where} has no more samples, calibration asks for {options.calibration:,}"
        )
    if network.mixture is not None:
        floats = [layer for layer, choice in network.mixture.chosen.items() if choice == "float"]
        limit = options.stays_float_above
        if limit is not None:
            context.tell(f"{context.stage}: layers above {limit:g} stay float: " + (", ".join(floats) or "none"))


def _save_details(context: Context, network: QuantizedNetwork, arms: Mapping[str, Sequence[Any]]) -> None:
    """What calibration saw and tried, what the bits of layers were chosen by, and what other ways would have given."""
    assert network.calibration is not None
    calibration = dict(vars(network.calibration))
    details: dict[str, Any] = {"calibration": {"rows": calibration.pop("tried"), **calibration}}
    if network.mixture is not None:
        steps = [vars(step) for step in network.mixture.steps]
        details["sensitivity"] = {"rows": network.mixture.rows(), "steps": steps}
    if arms:
        found = [(name, row) for name, rows in arms.items() for row in rows]
        shown = ("name", "value", "ci95", "unit", "split", "n")
        details["arms"] = {"rows": [{"arm": name} | {key: row[key] for key in shown} for name, row in found]}
    for kind, content in details.items():
        write_atomic(context.draft.folder / f"{kind}.json", json.dumps(content, indent=1))
