"""What can be known before the first stage runs: networks build, weights fit, engines and devices are there."""

from __future__ import annotations

import shutil
from collections.abc import Collection
from pathlib import Path

from edgekd.errors import ConfigError, ExportError, StageError, UnavailableError
from edgekd.files import from_here
from edgekd.models.settings import ModelSettings
from edgekd.pipeline.plan import Planner
from edgekd.pipeline.schema import (
    Pipeline,
    StageEntry,
    data_location,
    located,
    network_location,
    networks_of,
    stage_location,
)
from edgekd.stages.context import shipped_by
from edgekd.stages.kinds import KINDS, works_there
from edgekd.stages.settings import DistillStage, EvaluateStage, ExportStage, QuantizeStage, TeacherStage, tables_of

_FREE_BYTES = 50_000_000


def preflight(pipeline: Pipeline, planner: Planner, first: StageEntry, stages: list[StageEntry]) -> None:
    """Check everything that the stages from `first` on will need, so that nothing fails after an hour of training.

    Raises:
        ConfigError: a factory, its arguments or its weights do not work.
        UnavailableError: an engine or a device is missing.
        TryAgainError: a device that is to measure cannot be reached.
        DataError: the training data cannot be read.
        StageError: the disk is full.
    """
    remaining = stages[stages.index(first) :] if first in stages else []
    check_targets(pipeline, planner, first, stages)
    free = shutil.disk_usage(planner.store.root if planner.store.root.exists() else pipeline.base).free
    if free < _FREE_BYTES:
        raise StageError(
            f"{planner.store.root}: no space left on the disk ({free // 1_000_000} MB free)",
            hint="free some space (`edgekd store gc --keep 20`) and run the same command again",
        )
    _data(pipeline, planner, remaining)
    _splits(pipeline, planner, remaining)
    check_networks(pipeline, planner, first, stages)
    _lessons(pipeline, planner, remaining)
    _frames(pipeline, planner, remaining)


def check_targets(pipeline: Pipeline, planner: Planner, first: StageEntry, stages: list[StageEntry]) -> None:
    """Check the engines and devices that the stages from `first` on work with: `edgekd plan` says so, too.

    Raises:
        UnavailableError: an engine or a device is missing.
        TryAgainError: a device that is to measure cannot be reached.
    """
    names = {entry.name for entry in (stages[stages.index(first) :] if first in stages else ())}
    builds = any(s.name == "compile" for s in stages)
    _engines(pipeline, names, run=builds and bool(names & {"evaluate", "bench"}))
    targets = pipeline.settings.targets
    planner.devices.require(n for n, target in targets.items() if any(works_there(name, target) for name in names))
    _device(pipeline)


def _frames(pipeline: Pipeline, planner: Planner, stages: list[StageEntry]) -> None:
    """Files that take raw frames need images."""
    for entry in stages:
        if isinstance(entry.settings, ExportStage) and entry.settings.raw_input:
            from edgekd.stages.feeds import raw_images

            try:
                raw_images(planner.common())
            except ConfigError as error:
                raise located(pipeline, (*stage_location(pipeline, entry), "raw_input"), error) from None


def _lessons(pipeline: Pipeline, planner: Planner, stages: list[StageEntry]) -> None:
    """Augmentation must fit the data, and what is taught must fit the networks."""
    training = [entry for entry in stages if KINDS[entry.name].trains and entry.name != "model"]
    if not training:
        return
    from edgekd.data.views import Views
    from edgekd.stages.distill import rehearse

    common = planner.common()
    try:
        Views(pipeline.settings.data.augment, common.seed).check(common.data.load("train").inputs)
    except ConfigError as error:
        raise located(pipeline, ("data", "augment"), error) from None
    earlier = [entry for entry in pipeline.stages if entry.name in ("model", "teacher")]
    teacher = networks_of(earlier[0]).get(()) if earlier else None
    for entry in training:
        if isinstance(entry.settings, DistillStage):
            try:
                rehearse(common, entry.settings, teacher, planner.store)
            except ConfigError as error:
                raise located(pipeline, stage_location(pipeline, entry), error) from None
        elif isinstance(entry.settings, QuantizeStage):
            _quantized(pipeline, planner, entry, teacher)


def _quantized(pipeline: Pipeline, planner: Planner, entry: StageEntry, teacher: ModelSettings | None) -> None:
    """Layers and knowledge that `quantize` names must fit the network that will be quantized."""
    maker = next(stage for stage in pipeline.stages if stage.name == shipped_by(pipeline.roles))
    if isinstance(maker.settings, DistillStage) and maker.settings.goes_on == "best":
        return  # which of the peers will be quantized only training can tell
    from edgekd.stages.quantize import rehearse

    assert isinstance(entry.settings, QuantizeStage)
    try:
        rehearse(planner.common(), entry.settings, networks_of(maker)[()], teacher, planner.store)
    except ConfigError as error:
        raise located(pipeline, stage_location(pipeline, entry), error) from None
    except ExportError:
        return  # the stage itself says so, beside what was trained


def _device(pipeline: Pipeline) -> None:
    """CUDA that is asked for must be there."""
    if pipeline.settings.train.device == "cuda":
        import torch

        if not torch.cuda.is_available():
            missing = UnavailableError(
                "torch finds no CUDA device here",
                hint="use `device: auto`, or install a CUDA build of torch and a driver",
            )
            raise located(pipeline, ("train", "device"), missing)


def _data(pipeline: Pipeline, planner: Planner, stages: list[StageEntry]) -> None:
    """Labels that are kept must leave others, and tables that stages train on must fit the data."""
    try:
        if pipeline.settings.data.labelled is not None:
            planner.data.counts()
        for name in dict.fromkeys(name for entry in stages for name in tables_of(entry.settings)):
            planner.data.table(name)
    except ConfigError as error:
        raise located(pipeline, data_location(pipeline, error), error) from None


def _splits(pipeline: Pipeline, planner: Planner, stages: list[StageEntry]) -> None:
    """Splits that stages ask for must have samples."""
    for entry in stages:
        wanted = None
        if isinstance(entry.settings, EvaluateStage):
            wanted = entry.settings.split
        elif isinstance(entry.settings, (TeacherStage, DistillStage)):
            chosen = {entry.settings.select, entry.settings.goes_on if isinstance(entry.settings, DistillStage) else ""}
            wanted = "validation" if "best" in chosen or pipeline.settings.train.patience else None
        if wanted is not None and not planner.data.counts().get(wanted):
            empty = ConfigError(f"the {wanted} split has no samples", hint=f"give `data.{wanted}` a share above 0")
            raise located(pipeline, stage_location(pipeline, entry), empty)


def _engines(pipeline: Pipeline, stages: Collection[str], *, run: bool) -> None:
    """Engines that these stages need here; what a device needs it says itself."""
    from edgekd.runtimes.protocol import check_capabilities
    from edgekd.runtimes.registry import runtime

    working = {name for name in stages if KINDS[name].on_targets}
    for name, target in pipeline.settings.targets.items():
        here = {stage for stage in working if not works_there(stage, target)}
        if not here:
            continue
        engine = runtime(target.runtime)
        key = "runtime"
        try:
            engine.version()
            key = "device" if "device" in target.model_fields_set else "runtime"
            runs = run and target.host is None
            engine.check(target.device_name, run=runs)
            key = "precision"
            engine.check(target.device_name, run=runs, precisions=target.precisions)
            key = "compute_capabilities"
            check_capabilities(engine, target.compute_capabilities)
        except UnavailableError as error:
            raise located(pipeline, ("targets", name, key), error) from None


def check_networks(pipeline: Pipeline, planner: Planner, first: StageEntry, stages: list[StageEntry]) -> None:
    """Build every network that a stage from `first` on will train or take, and try it on two samples.

    Raises:
        ConfigError: a factory, its arguments or its weights do not work.
    """
    remaining = stages[stages.index(first) :] if first in stages else []
    named = [(entry, place, network) for entry in remaining for place, network in networks_of(entry).items()]
    if not named:
        return
    from edgekd.models.resolve import load_factory

    for entry, place, network in named:  # factories first: they need no data
        try:
            load_factory(network.model, pipeline.base)
        except ConfigError as error:
            raise located(pipeline, network_location(pipeline, entry, place), error) from error.__cause__
    from edgekd.stages.networks import fresh_model

    common = planner.common()
    for entry, place, network in named:
        try:
            head = str(place[-1]) if place[:2] == ("multi_task", "teachers") else None
            fresh_model(common.of(head), network, seed=common.seed)
        except ConfigError as error:
            # A message about a file of weights begins with its path.
            path = pipeline.base / str(network.weights)
            weights = bool(network.weights) and error.message.startswith(str(path))
            shown = error.message.replace(str(path), from_here(path), 1) if weights else error.message
            key = "weights" if weights else "args" if network.args else None
            inside = (*stage_location(pipeline, entry), *place)
            where = (*inside, key) if key else network_location(pipeline, entry, place)
            hint = error.hint and error.hint.replace(f"{path.parent}/", f"{Path(from_here(path)).parent}/")
            raise located(pipeline, where, ConfigError(shown, hint=hint)) from error.__cause__
