"""Keys of stages: sha256 of all that could change a result, and what changed since last time (torch-free)."""

from __future__ import annotations

import json
import platform
from collections.abc import Mapping, Sequence
from typing import Any

import edgekd
from edgekd.bench import machine
from edgekd.bench.machine import package_version
from edgekd.bench.pack import agent_digest
from edgekd.data.source import Data
from edgekd.distill.own import digests_of
from edgekd.errors import ConfigError
from edgekd.files import sha256_bytes, sha256_file, sha256_json, write_atomic
from edgekd.models.resolve import code_digest
from edgekd.models.source import parts_of
from edgekd.pipeline.devices import Devices
from edgekd.pipeline.schema import Pipeline, StageEntry, located, network_location, networks_of
from edgekd.pipeline.sources import sources_of
from edgekd.runtimes.registry import ENGINE_PACKAGES
from edgekd.stages.kinds import KINDS, StageKind, works_there
from edgekd.stages.precision import searched
from edgekd.stages.settings import DistillStage, QuantizeStage, tables_of
from edgekd.store import Artifact, Store
from edgekd.tasks import HeadSettings
from edgekd.train.settings import TrainSettings

NEVER = "never ran before"
_SHOWN = 3


def ingredients(
    pipeline: Pipeline,
    entry: StageEntry,
    heads: tuple[HeadSettings, ...],
    data: Data,
    inputs: Mapping[str, Artifact],
    store: Store,
    devices: Devices,
) -> dict[str, Any]:
    """Everything that enters a stage's key, as plain values: `plan` compares them to say why a stage runs again."""
    kind = KINDS[entry.name]
    found: dict[str, Any] = {
        "stage": entry.name,
        "seed": pipeline.settings.seed,
        "settings": _effective(entry),
        "inputs": {name: artifact.digest for name, artifact in sorted(inputs.items())},
        "source": sources_of(kind, store),
        "packages": {name: package_version(name) for name in kind.packages},
        "python": platform.python_version(),
    }
    if kind.reads_data:
        found["data"] = data.fingerprint if kind.tests else data.learning_fingerprint
        found["heads"] = [head.canonical() for head in heads]
    used = tables_of(entry.settings)
    if used:
        found["tables"] = {name: data.table_fingerprint(name) for name in sorted(used)}
    if entry.name == "export":  # what its files say of themselves, and what has to be known of them
        found["name"], found["edgekd"] = pipeline.settings.name, edgekd.__version__
        found["keys"] = {name: artifact.key for name, artifact in sorted(inputs.items())}
        found["searched"] = list(searched(pipeline.settings.targets))
    if kind.trains and entry.name != "model":
        augment = pipeline.settings.data.augment
        found["train"] = _acting(pipeline.settings.train, asks=entry.name != "teacher")
        found["augment"] = augment.canonical() if augment else None
    if kind.on_targets:
        found |= _targets(pipeline, kind, devices, found["packages"])
    if kind.on_device:
        found["agent"] = agent_digest()
        found |= devices.measured_on()
    return found | _weights(pipeline, entry) | _networks(pipeline, kind) | _own_code(pipeline, entry)


def key_of(found: Mapping[str, Any]) -> str:
    """The key: sha256 of the ingredients' canonical JSON."""
    return sha256_json(found)


def _targets(
    pipeline: Pipeline, kind: StageKind, devices: Devices, packages: Mapping[str, str | None]
) -> dict[str, Any]:
    """What enters a key of targets, of the engines and processors here, and of the devices that work for a stage."""
    targets = pipeline.settings.targets
    there = {name for name, target in targets.items() if works_there(kind.name, target)}
    engines = {package for name, t in targets.items() if name not in there for package in ENGINE_PACKAGES[t.runtime]}
    # Where timings are kept changes how long a build takes, not what is asked for; and builds are the same on every
    # device of one kind.
    idle = {"timing_cache": None, "compile_on": None} | ({} if kind.on_device else {"host": None})
    asked = {name: {**target.canonical(), **idle, "there": name in there} for name, target in targets.items()}
    found: dict[str, Any] = {
        "packages": {**packages, **{name: package_version(name) for name in sorted(engines)}},
        "targets": asked,
        "machine": _processors() if kind.reads_data or len(there) < len(targets) else None,
    }
    return found if kind.on_device else found | devices.built_for(sorted(there))


def changes(before: Any, after: Any, path: str = "") -> list[str]:
    """What differs between two sets of ingredients, as `path old -> new`."""
    if isinstance(before, dict) and isinstance(after, dict):
        found = []
        for key in sorted({*before, *after}):
            found += changes(before.get(key), after.get(key), f"{path}.{key}" if path else str(key))
        return found
    if isinstance(before, list) and isinstance(after, list) and len(before) == len(after):
        pairs = enumerate(zip(before, after, strict=True))
        return [change for i, (b, a) in pairs for change in changes(b, a, f"{path}.{i}" if path else str(i))]
    return [] if before == after else [f"{path} {_short(before)} -> {_short(after)}"]


def explain(
    last: Mapping[str, Any] | None, now: Mapping[str, Any], places: Sequence[str] = (), code: Sequence[str] = ()
) -> str:
    """Why a stage is not in the store: what changed since this pipeline last ran it.

    Args:
        places: where the data changed.
        code: files of the user's, and libraries that they import, that changed.
    """
    if last is None:
        return NEVER
    found = changes(last, now)
    if not found:
        return "its artefact is gone from the store"
    for start, changed in (("data ", places), ("networks.", code), ("own.", code)):
        if changed:
            more = f" and {len(changed) - _SHOWN} more" if len(changed) > _SHOWN else ""
            where = f" (in {', '.join(changed[:_SHOWN])}{more})"
            found = [change + where if change.startswith(start) else change for change in found]
    more = f" and {len(found) - _SHOWN} more" if len(found) > _SHOWN else ""
    return "changed: " + "; ".join(found[:_SHOWN]) + more


def identity(pipeline: Pipeline) -> str:
    """What tells one pipeline file from others in a store: its name, and where it lies."""
    return f"{pipeline.settings.name}.{sha256_bytes(str(pipeline.path.resolve()).encode())[:8]}"


class LastRuns:
    """The ingredients that each stage of a pipeline had last time, and how long it took when it last ran."""

    def __init__(self, store: Store, pipeline: Pipeline) -> None:
        self._path = store.root / "last" / f"{identity(pipeline)}.json"
        try:
            self._known: dict[str, Any] = json.loads(self._path.read_text())
        except (OSError, ValueError):
            self._known = {}

    def get(self, stage: str) -> Mapping[str, Any] | None:
        """Last time's ingredients of a stage."""
        known = self._of(stage).get("made_of")
        return known if isinstance(known, dict) else None

    @property
    def first(self) -> bool:
        """Whether no stage of this pipeline ever ran."""
        return not self._known

    def seconds(self, stage: str) -> float | None:
        """How long a stage took when it last ran."""
        known = self._of(stage).get("seconds")
        return known if isinstance(known, float) else None

    def changed_places(self, stage: str, files: Mapping[str, str]) -> list[str]:
        """Files of the data that are not what they were last time; of images the folders. `files`: `Data.digests`."""
        changed = _differing(self._of(stage).get("files"), files)
        return list(dict.fromkeys(name.rpartition("/")[0] or name for name in changed))

    def changed_code(self, stage: str, found: Mapping[str, Any]) -> list[str]:
        """Files of the user's code, and libraries that it imports, that are not what they were last time."""
        return _differing(self._of(stage).get("code"), _code(found))

    def put(self, stage: str, found: Mapping[str, Any], seconds: float | None, files: Mapping[str, str]) -> None:
        """Remember a stage's ingredients, how long it took, and the digests of the data's files and of the user's."""
        row = {"made_of": dict(found), "seconds": seconds, "files": dict(files), "code": _code(found)}
        if self._known.get(stage) != row:
            self._known[stage] = row
            write_atomic(self._path, json.dumps(self._known, indent=1, sort_keys=True), durable=False)

    def _of(self, stage: str) -> dict[str, Any]:
        known = self._known.get(stage)
        return known if isinstance(known, dict) else {}


def _differing(before: Mapping[str, str] | None, now: Mapping[str, str]) -> list[str]:
    """Names that are new, gone, or stand for something else; none where nothing was remembered."""
    return [name for name in sorted({*before, *now}) if before.get(name) != now.get(name)] if before else []


def _code(found: Mapping[str, Any]) -> dict[str, str]:
    """Digests of the user's files that a stage depends on, and versions of the libraries that these import."""
    digests = [*found.get("networks", {}).values(), *found.get("own", {}).values()]
    return {name: part for digest in digests for name, part in parts_of(digest).items()}


def _effective(entry: StageEntry) -> dict[str, Any]:
    """A stage's settings as they act: weights count by their content, not by where they lie."""
    settings = entry.settings.canonical()
    for place in networks_of(entry):
        block: Any = settings
        for part in place:
            block = block[part]
        block.pop("weights")
    return settings


def _acting(train: TrainSettings, *, asks: bool) -> dict[str, Any]:
    """Training settings as they act: what only shows them does not, nor does an exact cache.

    A cache that rounds does where a teacher is asked.
    """
    settings = train.canonical()
    settings.pop("tensorboard")
    if not asks or (train.teacher_cache != "f16" and not train.teacher_cache_top_k):
        for name in ("teacher_cache", "teacher_cache_top_k", "teacher_cache_bytes"):
            settings.pop(name)
    return settings


def _weights(pipeline: Pipeline, entry: StageEntry) -> dict[str, Any]:
    """Digests of the weights that a stage's networks start from: its own, and those beside it."""
    found = {}
    for place, network in networks_of(entry).items():
        path = pipeline.base / network.weights if network.weights else None
        digest = sha256_file(path) if path is not None and path.is_file() else None
        if digest is not None or not place:
            found[weights_name(place)] = digest
    return found


def weights_name(place: Sequence[Any]) -> str:
    """What the digest of a network's weights is called among a key's ingredients, by the network's place in a stage."""
    return ".".join(["weights", *map(str, place)])


def _networks(pipeline: Pipeline, kind: StageKind) -> dict[str, Any]:
    """Digests of the code of every network that a stage builds: its own, and those of the artefacts that it loads.

    An artefact holds weights; what is computed with them is in the code, which may change under the same weights.
    """
    found = {}
    for entry in pipeline.stages:
        for place, network in networks_of(entry).items() if entry.name in (kind.name, *kind.takes) else ():
            try:
                found[".".join([entry.name, *map(str, place)])] = code_digest(network.model, pipeline.base)
            except ConfigError as error:
                raise located(pipeline, network_location(pipeline, entry, place), error) from None
    return {"networks": found} if found else {}


def _own_code(pipeline: Pipeline, entry: StageEntry) -> dict[str, Any]:
    """Digests of the code of schemes and knowledges of the user's own."""
    options = entry.settings
    found = digests_of(options, pipeline.base) if isinstance(options, (DistillStage, QuantizeStage)) else {}
    return {"own": found} if found else {}


def _processors() -> dict[str, Any]:
    """What an engine is built for: another processor, GPU or driver gets another build."""
    gpu = {"gpu": machine.gpu_model(), "driver": machine.gpu_driver()}
    return {"machine": platform.machine(), "system": platform.system(), "cpu": machine.cpu_model(), **gpu}


def _short(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value, default=str)
    return f"{text[:12]}.." if len(text) > 40 else text
