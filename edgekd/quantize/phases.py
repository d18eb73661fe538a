"""Quantization-aware training as phases: the float network teaches its own quantized self, or the targets do."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch.nn import functional

from edgekd.data.table import Rows, Table
from edgekd.data.views import permutation
from edgekd.distill.schemes.recipe import Recipe, owned, shared
from edgekd.quantize.calibration import Divergence, Outputs
from edgekd.quantize.places import add_places
from edgekd.quantize.post_training import calibrated
from edgekd.quantize.quantizer import prepare
from edgekd.quantize.settings import QuantizationSettings
from edgekd.tasks import HeadSettings
from edgekd.train.feed import to_input
from edgekd.train.world import Copy, Model, Phase, World

_CALIBRATION_BATCH = 64
TUTOR = "tutor"


@dataclass(frozen=True)
class Quantize:
    """Edit: the target becomes the source, calibrated and with learnable scales. The source stays as it is.

    `taps` are layers of the source that terms read of the target.
    """

    source: str
    target: str
    settings: QuantizationSettings
    table: str = "train"
    taps: tuple[str, ...] = ()

    @property
    def touches(self) -> tuple[str, ...]:
        return (self.target,)

    def __call__(self, world: World, seed: int) -> None:
        model = world.models[self.source]
        device = next(model.network.parameters()).device
        rows = calibration_rows(world.tables[self.table], self.settings.calibration, seed)
        inputs = [to_input(world, name, rows.inputs[name], device) for name in model.inputs]
        # Captured from contiguous tensors: a graph must not fix the memory layout of training.
        example = tuple(x[:2].contiguous() for x in inputs)
        batches = [*zip(*(x.split(_CALIBRATION_BATCH) for x in inputs), strict=True)]
        network = calibrated(
            model.network,
            example,
            batches,
            self.settings,
            outputs=model.outputs,
            divergence=divergence_of(world.heads),
        )
        add_places(network, network.graph_module, self.taps)
        world.models[self.target] = Model(network, model.inputs, model.outputs)


@dataclass(frozen=True)
class Rehearse(Quantize):
    """Edit of a rehearsal: captured and given its layers, but not calibrated; names that are not there show."""

    def __call__(self, world: World, seed: int) -> None:
        model, rows = world.models[self.source], world.tables[self.table]
        two = rows.take(torch.arange(2) % len(rows))
        example = tuple(to_input(world, name, two.inputs[name], torch.device("cpu")) for name in model.inputs)
        network = prepare(model.network, tuple(x.contiguous() for x in example), self.settings, model.outputs)
        add_places(network, network.graph_module, self.taps)
        world.models[self.target] = Model(network, model.inputs, model.outputs)


def divergence_of(heads: Sequence[HeadSettings]) -> Divergence:
    """How far answers are from the float network's: KL of classes' probabilities, squared error over its variance."""

    def of(found: Outputs, reference: Outputs) -> float:
        parts = []
        for head in heads:
            q, p = found[head.output].double(), reference[head.output].double()
            if head.task == "classification":
                parts.append(
                    functional.kl_div(q.log_softmax(1), p.log_softmax(1), log_target=True, reduction="sum") / len(p)
                )
            else:
                parts.append((q - p).square().mean() / p.var(0, correction=0).mean().clamp_min(1e-12))
        return float(torch.stack(parts).sum())

    return of


def calibration_rows(table: Rows, count: int, seed: int) -> Table:
    """A seeded sample of a table, without repetition, for calibration."""
    order = permutation(seed, "calibration", 0, len(table))
    return table.take(torch.sort(order[:count]).values)


def quantization_aware(recipe: Recipe, quantize: Quantize, guides: Sequence[str]) -> list[Phase]:
    """Calibrate, then learn from frozen float networks, and from the targets where the recipe gives the task a weight.

    With the network's own float self as the only guide and no task, this is self-distillation by answers alone, for
    which no labels are needed (SQAKD, Zhao and Zhao 2024).

    Args:
        recipe: its knowledge is what the guides teach; 0 epochs are calibration alone.
        quantize: how the learner is made.
        guides: names of frozen models; each has its share of the weight. None: the targets alone.
    """
    if not recipe.epochs:
        return [Phase("calibration", start=(quantize,))]
    learner = quantize.target
    terms = recipe.task(learner) + shared(guides, lambda guide: recipe.teaching(learner, guide))
    name = "self_distillation" if guides else "quantization_aware"
    return [recipe.phase(name, learner, terms, start=(quantize,))]


def qkd(recipe: Recipe, quantize: Quantize, teacher: str, epochs: tuple[int, int, int]) -> list[Phase]:
    """Quantization-aware knowledge distillation in three phases (QKD, Kim et al. 2019).

    Self-study: the quantized network learns the task alone, for a teacher too early hurts. Co-study: it and a copy of
    the teacher learn from the targets and from each other. Tutoring: the teacher, frozen, teaches it.

    Args:
        recipe: its knowledge is what is taught both ways.
        teacher: the float model that becomes the tutor; it stays as it is.
        epochs: of each phase.

    Raises:
        ConfigError: the data has no targets.
    """
    recipe.needs_targets("quantize.qkd")
    learner, (first, second, third) = quantize.target, epochs
    together = (
        *owned(learner, recipe.task(learner, 1.0) + recipe.teaching(learner, TUTOR, like=teacher)),
        *owned(TUTOR, recipe.task(TUTOR, 1.0) + recipe.teaching(TUTOR, learner, like=quantize.source)),
    )
    co_study = recipe.together("co-study", (learner, TUTOR), together, start=(Copy(teacher, TUTOR),))
    return [
        recipe.alone(learner, "self-study", epochs=first, start=(quantize,)),
        dataclasses.replace(co_study, epochs=second),
        recipe.taught(learner, TUTOR, "tutoring", epochs=third, like=teacher),
    ]
