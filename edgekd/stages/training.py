"""What the training stages share: device and precision by rule, progress lines, checkpoints, scores, curves."""

from __future__ import annotations

import platform
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from edgekd.data.views import Views
from edgekd.distill.teacher_cache import Head, TeacherCache, open_cache
from edgekd.stages.context import Context
from edgekd.stages.networks import example_inputs
from edgekd.store import Artifact
from edgekd.tasks.task import Score
from edgekd.train.evaluate import score
from edgekd.train.precision import choose_device, choose_precision
from edgekd.train.settings import TrainOverrides, TrainSettings
from edgekd.train.trainer import Epoch, Run, train
from edgekd.train.world import Optim, Phase, World

_LR = {"sgd": 0.1, "adamw": 2e-3}


def stage_train_settings(context: Context) -> TrainSettings:
    """The pipeline's training settings with the stage's own in their place."""
    return context.options(TrainOverrides).over(context.common.train)


def optim(context: Context, *, scale: float = 1.0) -> Optim:
    """The optimizer of a stage. `scale` fits the pipeline's learning rate to a stage that starts from trained weights.

    Without `lr` the rate is a default that grows with the batch for sgd. A stage's own `lr` is taken as it is.
    """
    settings = stage_train_settings(context)
    usual = settings.lr
    if usual is None:
        usual = _LR[settings.optimizer] * (settings.batch / 128 if settings.optimizer == "sgd" else 1.0)
    own = context.options(TrainOverrides).lr
    return Optim(
        settings.optimizer,
        lr=own if own is not None else usual * scale,
        schedule=settings.schedule,
        warmup=settings.warmup,
        weight_decay=settings.weight_decay,
        momentum=settings.momentum,
        clip=settings.clip,
    )


def run_phases(
    context: Context,
    world: World,
    phases: Sequence[Phase],
    settings: TrainSettings,
    *,
    precision: str | None = None,
    frozen: Mapping[str, Artifact] | None = None,
) -> list[dict[str, Any]]:
    """Run phases with the stage's settings; progress goes to the log, checkpoints to the stage's work folder.

    `frozen` names models that no phase changes, with the artefacts they came from: their outputs are cached.
    """
    device = choose_device(settings)
    precision = precision or choose_precision(settings, device)
    views = Views(context.common.data.settings.augment, context.common.seed)
    caches = {}
    if any(phase.epochs for phase in phases) and settings.teacher_cache != "off":
        for name, artifact in (frozen or {}).items():
            cache = _cache(context, world, name, artifact, settings, views, precision)
            if cache is not None:
                caches[name] = cache
    run = Run(
        seed=context.common.seed,
        batch=settings.batch,
        device=device,
        precision=precision,
        views=views,
        folder=context.work,
        tell=lambda epoch: context.tell(progress_line(context.stage, epoch)),
        caches=caches,
    )
    return train(world, phases, run)


def _cache(
    context: Context,
    world: World,
    name: str,
    artifact: Artifact,
    settings: TrainSettings,
    views: Views,
    precision: str,
) -> TeacherCache | None:
    """The cache of a frozen model's outputs over the training split, or None; the log says which."""
    data, train_table = context.common.data, world.tables["train"]
    augment = data.settings.augment
    about = {
        "teacher": artifact.digest,
        "data": data.fingerprint,
        "augment": augment.canonical() if augment else None,
        "precision": precision,
        "torch": torch.__version__,
        "device": choose_device(settings).type,
        # Kernels, and with them the last bits, depend on the batch and on the processor.
        "batch": settings.batch,
        "processor": [platform.machine(), torch.backends.cpu.get_cpu_capability(), torch.get_num_threads()],
    }
    top_k = settings.teacher_cache_top_k
    with torch.no_grad():
        example = world.models[name](example_inputs(context.common, world.models[name]))
    heads = [
        Head(output, tuple(value.shape[1:]), top_k if value.dim() == 2 and 0 < top_k < value.shape[1] else 0)
        for output, value in example.items()
    ]
    cache, words = open_cache(
        context.store,
        about,
        heads,
        dtype=settings.teacher_cache,
        samples=int(train_table.ids.max()) + 1,
        views=views.per_sample,
        max_bytes=settings.teacher_cache_bytes,
    )
    context.tell(f"{context.stage}: outputs of the {name} are {words}")
    return cache


def progress_line(stage: str, epoch: Epoch) -> str:
    """One line about an epoch."""
    metrics = "".join(f"  {name} {value:.4f}" for name, value in epoch.metrics.items())
    return (
        f"{stage}: {epoch.phase} {epoch.epoch}/{epoch.epochs}  loss {epoch.loss:.3g}{metrics}"
        f"  {epoch.samples_per_s:,.0f} samples/s  {epoch.seconds_left:.0f} s left"
    )


def validation_scores(world: World, model: str, settings: TrainSettings) -> tuple[dict[str, Score], str]:
    """Scores on the validation split (the training split where there is none), and that split's name."""
    split = "validation" if "validation" in world.tables else "train"
    return score(world, model, world.tables[split], choose_device(settings)), split
