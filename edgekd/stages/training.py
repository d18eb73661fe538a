"""What the training stages share: device and precision by rule, progress lines, checkpoints, scores, curves."""

from __future__ import annotations

import dataclasses
import platform
from collections.abc import Mapping, Sequence
from typing import Any, TypedDict

import torch

from edgekd.data.views import Views
from edgekd.distill.teacher_cache import Head, TeacherCache, open_cache
from edgekd.stages.context import Context
from edgekd.stages.guides import why_live
from edgekd.stages.networks import example_inputs
from edgekd.stages.settings import DistillStage, QuantizeStage, tables_of
from edgekd.store import Artifact
from edgekd.tasks.task import Score
from edgekd.train.distributed import Shares, current
from edgekd.train.evaluate import score
from edgekd.train.mirrored import Mirrored
from edgekd.train.phase import reads_inside, references_of
from edgekd.train.practice import averaged, patient
from edgekd.train.precision import choose_device, choose_precision
from edgekd.train.settings import TrainOverrides, TrainSettings
from edgekd.train.trainer import Epoch, Run, train
from edgekd.train.world import Optim, Phase, World

_LR = {"sgd": 0.1, "lion": 3e-4}
_ADAPTIVE_LR = 2e-3


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
        usual = _LR.get(settings.optimizer, _ADAPTIVE_LR)
        batch = min(settings.batch, _rows(context))
        usual *= batch / 128 if settings.optimizer == "sgd" else 1.0
    own = context.options(TrainOverrides).lr
    return Optim(
        settings.optimizer,
        lr=own if own is not None else usual * scale,
        schedule=settings.schedule,
        milestones=settings.milestones,
        gamma=settings.gamma,
        warmup=settings.warmup,
        weight_decay=settings.weight_decay,
        momentum=settings.momentum,
        clip=settings.clip,
    )


def _rows(context: Context) -> int:
    """Rows of the largest table that a stage learns on."""
    data, options = context.common.data, context.settings
    if isinstance(options, DistillStage) and options.scheme == "data_free":
        return options.data_free.rows
    learned = () if isinstance(options, QuantizeStage) else tables_of(options)  # it only calibrates on another
    return max(data.counts()["train"], *(len(data.table(name)) for name in learned), 0)


class TargetOptions(TypedDict):
    """What the true targets are made into before the task's loss sees them."""

    mixed: bool
    label_smoothing: float


def target_options(context: Context) -> TargetOptions:
    """Mixed samples and smoothed labels, as the pipeline file says."""
    augment = context.common.data.settings.augment
    return TargetOptions(
        mixed=augment is not None and augment.mixes, label_smoothing=context.common.train.label_smoothing
    )


def run_phases(
    context: Context,
    world: World,
    phases: Sequence[Phase],
    settings: TrainSettings,
    *,
    learner: str,
    precision: str | None = None,
    frozen: Mapping[str, Artifact] | None = None,
) -> list[dict[str, Any]]:
    """Run phases with the stage's settings; progress goes to the log, checkpoints to the stage's work folder.

    `learner` is the model that goes on. `frozen` names models that no phase changes, with the artefacts they came from:
    their outputs are cached.
    """
    if settings.average is not None and any(phase.epochs for phase in phases):
        phases = averaged(phases, learner, settings.average)
    if settings.patience is not None:
        phases = patient(phases, settings.patience)
    device, progress = choose_device(settings), _Progress(context)
    run = Run(
        seed=context.common.seed,
        batch=settings.batch,
        device=device,
        precision=precision or choose_precision(settings, device),
        views=Views(context.common.data.settings.augment, context.common.seed),
        folder=context.work,
        tell=progress.epoch,
        show=progress.moment if context.moment is not None else None,
        ranks=current(),
        accumulate=settings.accumulate,
        compile=settings.compile,
        sync_batchnorm=settings.sync_batchnorm,
        memory=context.common.data.settings.memory,
        warn=context.warn,
        curves=context.curves,
    )
    if settings.compile in ("default", "graphs") and any(phase.epochs for phase in phases):
        context.tell(f"{context.stage}: compiling; the first steps take minutes")
    if settings.sync_batchnorm and (device.type == "cpu" or run.ranks.count == 1):
        context.tell(f"{context.stage}: note: sync_batchnorm is for several processes on GPUs and does nothing here")
    tables = _asked_about(phases, ("train", *tables_of(context.settings)))
    caches = {}
    read = {reference.name for phase in phases if phase.epochs for reference in references_of(phase)}
    for name, artifact in (frozen or {}).items():
        if name not in read:
            continue
        cache = _cache(context, world, name, artifact, settings, run, tables, reads_inside(phases, name))
        if cache is not None:
            caches[name] = cache
    return train(world, phases, dataclasses.replace(run, caches=caches, cached=tables))


def _asked_about(phases: Sequence[Phase], given: tuple[str, ...]) -> tuple[str, ...]:
    """Tables whose samples a frozen model may be asked about: those of the phases; all, where edits make others."""
    named = {phase.data for phase in phases if phase.epochs}
    return tuple(name for name in given if name in named or not named <= {*given})


def _cache(
    context: Context,
    world: World,
    name: str,
    artifact: Artifact,
    settings: TrainSettings,
    run: Run,
    tables: Sequence[str],
    reads_features: bool,
) -> TeacherCache | None:
    """The cache of a frozen model's outputs over the rows of some tables, or None; the log says which."""
    data, rows = context.common.data, [world.tables[table] for table in tables]
    augment = data.settings.augment
    reason = why_live(settings, augment, reads_features=reads_features)
    if reason is not None:
        context.tell(f"{context.stage}: outputs of the {name} are live: {reason}")
        return None
    about = {
        "teacher": artifact.digest,
        "mirrored": isinstance(world.models[name].network, Mirrored),
        "made_by": _made_by(context, artifact),
        "data": data.learning_fingerprint,
        "tables": {table: data.table_fingerprint(table) for table in tables if table != "train"},
        "augment": augment.canonical() if augment else None,
        "precision": run.precision,
        "device": _device_name(run.device),
        # Kernels, and with them the last bits, depend on the rows of a batch and on the processor.
        "batch": [Shares(len(t), min(run.batch, len(t)), run.accumulate, run.ranks).largest for t in rows],
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
        dtype="f16" if settings.teacher_cache == "f16" else "f32",
        ids=torch.cat([table.ids for table in rows]),
        views=run.views.per_sample,
        max_bytes=settings.teacher_cache_bytes,
    )
    context.tell(f"{context.stage}: outputs of the {name} are {words}")
    return cache


_LOOK = ("data", "models", "train")  # rooms that decide what a teacher sees and says


def _made_by(context: Context, artifact: Artifact) -> dict[str, Any]:
    """What besides weights and data decides a frozen network's outputs: its code, the rooms between, the libraries."""
    made_by = context.made_by
    stage = next(name for name, found in context.inputs.items() if found.key == artifact.key)
    rooms = {name: digest for name, digest in made_by.get("source", {}).items() if name in _LOOK}
    network = (made_by.get("networks") or {}).get(stage)
    return {"rooms": rooms, "network": network, "packages": made_by.get("packages")}


def _device_name(device: torch.device) -> str:
    """Device and, of a GPU, model and libraries: another one has other kernels."""
    if device.type != "cuda":
        return device.type
    return f"{torch.cuda.get_device_name(device)}, CUDA {torch.version.cuda}, cuDNN {torch.backends.cudnn.version()}"  # type: ignore[no-untyped-call]


class _Progress:
    """Tells how far training is; within an epoch with the scores of the one before."""

    def __init__(self, context: Context) -> None:
        self._context = context
        self._metrics: Mapping[str, float] = {}

    def epoch(self, epoch: Epoch) -> None:
        self._metrics = epoch.metrics
        stage = self._context.stage
        self._context.epoch(progress_line(stage, epoch), bar_line(stage, epoch), epoch.epoch / epoch.epochs)

    def moment(self, epoch: Epoch) -> None:
        assert self._context.moment is not None
        now = dataclasses.replace(epoch, metrics=self._metrics)
        share = (epoch.epoch - 1 + epoch.done) / epoch.epochs
        self._context.moment(bar_line(self._context.stage, now), share)


def progress_line(stage: str, epoch: Epoch) -> str:
    """One line about an epoch."""
    metrics = "".join(f"  {name} {value:.4f}" for name, value in epoch.metrics.items())
    return (
        f"{stage}: {epoch.phase} {epoch.epoch}/{epoch.epochs}  loss {epoch.loss:.3g}{metrics}"
        f"  {epoch.samples_per_s:,.0f} samples/s  {duration(epoch.seconds_left)} left"
    )


def bar_line(stage: str, epoch: Epoch) -> str:
    """The same for beside a bar: what is looked for first comes first, for a terminal may be narrow."""
    metrics = "".join(f"  {name} {value:.4f}" for name, value in epoch.metrics.items())
    return (
        f"{stage} {epoch.epoch}/{epoch.epochs}  {duration(epoch.seconds_left)} left"
        f"  {epoch.samples_per_s:,.0f}/s  loss {epoch.loss:.3g}{metrics}"
    )


def duration(seconds: float) -> str:
    """Seconds as a person reads them: 42 s, 3:20 min, 1:05 h."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{seconds // 60:.0f}:{seconds % 60:02.0f} min" if minutes < 100 else f"{minutes // 60}:{minutes % 60:02d} h"


def validation_scores(world: World, model: str, settings: TrainSettings) -> tuple[dict[str, Score], str]:
    """Scores on the validation split (the training split where there is none), and that split's name."""
    split = "validation" if "validation" in world.tables else "train"
    return score(world, model, world.tables[split], choose_device(settings), current()), split
