"""Quantization-aware training as phases: the float network teaches its own quantized self, or the targets do."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch.nn import functional

from edgekd.data.table import Rows, Table
from edgekd.data.views import permutation
from edgekd.distill.schemes.terms import response_terms, task_terms
from edgekd.distill.settings import KdSettings, KnowledgeSettings, MseLogitsSettings
from edgekd.quantize.calibration import Divergence, Outputs
from edgekd.quantize.post_training import calibrated
from edgekd.quantize.settings import QuantizationSettings
from edgekd.tasks import HeadSettings
from edgekd.tasks.task import task_named
from edgekd.train.feed import to_input
from edgekd.train.world import Model, Move, Optim, Phase, Watch, World, named_outputs

_CALIBRATION_BATCH = 64


@dataclass(frozen=True)
class Quantize:
    """Edit: the target becomes the source, calibrated and with learnable scales. The source stays as it is."""

    source: str
    target: str
    settings: QuantizationSettings
    table: str = "train"

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
            outputs=lambda result: named_outputs(result, model.outputs),
            divergence=divergence_of(world.heads),
        )
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


def quantization_aware(
    heads: Sequence[HeadSettings],
    quantize: Quantize,
    optim: Optim,
    epochs: int,
    *,
    temperature: float,
    task_weight: float,
    distill: bool,
    mixed: bool = False,
    label_smoothing: float = 0.0,
) -> list[Phase]:
    """Calibrate, then (with `epochs`) learn: KL to the float original, no labels needed, and/or the task.

    Self-distillation with KL alone follows SQAKD (Zhao and Zhao 2024): cross-entropy beside it is optional.
    """
    if epochs == 0:
        return [Phase("calibration", start=(quantize,))]
    terms = task_terms(quantize.target, heads, task_weight, mixed=mixed, label_smoothing=label_smoothing)
    if distill:
        terms += response_terms(quantize.target, quantize.source, heads, lambda h: (_self_knowledge(h, temperature),))
    name = "self_distillation" if distill else "quantization_aware"
    move = Move({quantize.target: optim}, terms)
    return [Phase(name, (move,), epochs, start=(quantize,), watch=Watch(quantize.target))]


def _self_knowledge(head: HeadSettings, temperature: float) -> KnowledgeSettings:
    if task_named(head.task).response == "kd":
        return KnowledgeSettings(kd=KdSettings(temperature=temperature, weight=1.0))
    return KnowledgeSettings(mse_logits=MseLogitsSettings(weight=1.0))
