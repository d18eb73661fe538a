"""What each stage would do: taken from the store, or run, and why (torch-free)."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

from edgekd.config.settings import did_you_mean
from edgekd.data.source import Data, open_data
from edgekd.errors import ConfigError
from edgekd.pipeline.devices import Devices
from edgekd.pipeline.keys import LastRuns, explain, ingredients, key_of
from edgekd.pipeline.schema import Pipeline, StageEntry, data_location, located, networks_of, stage_location
from edgekd.stages.context import Common
from edgekd.stages.guides import answers
from edgekd.stages.kinds import KINDS, StageKind
from edgekd.stages.precision import searched
from edgekd.stages.settings import DistillStage, QuantizeStage
from edgekd.store import Artifact, Store
from edgekd.tasks import HeadSettings, heads_of


@dataclass(frozen=True)
class Step:
    """One stage of a plan. `key` and `artifact` are None while an earlier stage has still to run.

    `seconds`: how long it took when it last ran, if that is known.
    """

    entry: StageEntry
    key: str | None
    found: dict[str, Any] | None
    artifact: Artifact | None
    why: str
    seconds: float | None = None

    @property
    def cached(self) -> bool:
        """Whether the store has it."""
        return self.artifact is not None


@dataclass
class Planner:
    """Looks stages up one after the other; the runner and `edgekd plan` use the same one.

    `fetch`: whether what lies in a remote or read-only store is copied from there, or only looked at.
    """

    pipeline: Pipeline
    store: Store
    data: Data
    heads: tuple[HeadSettings, ...]
    last: LastRuns
    devices: Devices
    fetch: bool = True

    @classmethod
    def open(cls, pipeline: Pipeline, store: Store, data: Data | None = None) -> Planner:
        """Open the pipeline's data, unless it is open already; raises ConfigError for paths that are not there."""
        settings = pipeline.settings
        try:
            data = data or open_data(
                settings.data, base=pipeline.base, seed=settings.seed, memo=store.memo, spool=store.root
            )
        except ConfigError as error:
            raise located(pipeline, data_location(pipeline, error), error) from None
        heads = _heads(pipeline, data.target_names)
        _check_weights(pipeline)
        _check_columns(pipeline, data.input_names)
        return cls(pipeline, store, data, heads, LastRuns(store, pipeline), Devices(pipeline, store))

    def common(self) -> Common:
        """What all stages share."""
        settings = self.pipeline.settings
        return Common(
            settings.name,
            settings.seed,
            self.pipeline.base,
            self.heads,
            settings.train,
            settings.targets,
            self.pipeline.roles,
            self.data,
            searched(settings.targets),
        )

    def step(self, entry: StageEntry, done: dict[str, Artifact], *, force: Collection[str]) -> Step:
        """Look one stage up, given the artefacts of those before it."""
        kind = KINDS[entry.name]
        before = [s.name for s in self.pipeline.stages[: self.pipeline.stages.index(entry)]]
        waits = [name for name in kind.takes if name in before and name not in done]
        if waits:
            return Step(entry, None, None, None, f"waits for {waits[0]}", self.last.seconds(entry.name))
        inputs = {name: done[name] for name in kind.takes if name in done}
        found = ingredients(self.pipeline, entry, self.heads, self.data, inputs, self.store, self.devices)
        key = key_of(found)
        if entry.name in force:
            return Step(entry, key, found, None, "forced", self.last.seconds(entry.name))
        # Another machine's latency is not this one's, however alike the two are.
        look = self.store.find if self.fetch else self.store.peek
        artifact = look(key, far=not kind.on_device)
        notes = self.devices.notes() if kind.on_targets else []
        if artifact is not None:
            return Step(entry, key, found, artifact, "; ".join(["unchanged", *notes]), artifact.record.get("seconds"))
        damage = self.store.damaged.get(key)
        places = self.last.changed_places(entry.name, self._files(kind))
        code = self.last.changed_code(entry.name, found)
        why = explain(self.last.get(entry.name), found, places, code)
        why = f"its artefact was damaged: {damage}" if damage else why
        return Step(entry, key, found, None, "; ".join([why, *notes]), self.last.seconds(entry.name))

    def remember(self, step: Step, artifact: Artifact) -> None:
        """Keep what a finished stage was made of, and how long it took: the next plan says what is other then."""
        assert step.found is not None
        files = self._files(KINDS[step.entry.name])
        self.last.put(step.entry.name, step.found, artifact.record.get("seconds"), files)

    def _files(self, kind: StageKind) -> Mapping[str, str]:
        """Digests of the data's files that a stage may see."""
        if not kind.reads_data:
            return {}
        return self.data.digests if kind.tests else self.data.learning_digests

    def all(self, *, force: Collection[str] = ()) -> list[Step]:
        """The whole plan as far as it can be known now."""
        done: dict[str, Artifact] = {}
        steps = []
        for entry in self.pipeline.stages:
            step = self.step(entry, done, force=force)
            if step.artifact is not None:
                done[entry.name] = step.artifact
            steps.append(step)
        return steps


def frozen_answers(pipeline: Pipeline, entry: StageEntry) -> str | None:
    """How a stage that learns from a frozen network gets its outputs, cached or live, in words; None for the others."""
    settings, augment = entry.settings, pipeline.settings.data.augment
    train = pipeline.settings.train
    if isinstance(settings, DistillStage) and settings.epochs and _asks_teacher(pipeline, settings):
        features = any(item.features for item in settings.knowledge or ())
        return f"teacher {answers(train, augment, reads_features=features)}"
    if isinstance(settings, QuantizeStage) and settings.self_distillation and settings.passes():
        return f"float original {answers(train, augment, reads_features=False)}"
    return None


def _asks_teacher(pipeline: Pipeline, settings: DistillStage) -> bool:
    """Whether the scheme learns from what an earlier stage made, as it is: what it trains itself, answers live."""
    return settings.reads_teacher and any(entry.name in ("model", "teacher") for entry in pipeline.stages)


def _heads(pipeline: Pipeline, targets: tuple[str, ...]) -> tuple[HeadSettings, ...]:
    try:
        return heads_of(pipeline.settings.task, targets)
    except ConfigError as error:
        raise located(pipeline, ("task",), error) from None


def _check_weights(pipeline: Pipeline) -> None:
    """Weight files that are named must be there: known before the first stage."""
    for entry in pipeline.stages:
        for place, network in networks_of(entry).items():
            if network.weights and not (pipeline.base / network.weights).is_file():
                missing = ConfigError(
                    f"{network.weights}: no such file", hint="paths are relative to the pipeline file"
                )
                raise located(pipeline, (*stage_location(pipeline, entry), *place, "weights"), missing)


def _check_columns(pipeline: Pipeline, columns: Collection[str]) -> None:
    """Inputs that networks take must be the data's: known before the first stage."""
    for entry in pipeline.stages:
        for place, network in networks_of(entry).items():
            for index, name in enumerate(network.inputs or ()):
                if name not in columns:
                    unknown = ConfigError(f"the data has no input {name!r}", hint=did_you_mean(name, columns))
                    raise located(pipeline, (*stage_location(pipeline, entry), *place, "inputs", index), unknown)
