"""Latency of several builds against each other: agents launched, samples kept, rows of report.json returned."""

from __future__ import annotations

import json
import re
import tempfile
import zipfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import combinations
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgekd.bench import under_load
from edgekd.bench.process import NoMemoryError
from edgekd.bench.rows import Measured, comparison_row, latency_row
from edgekd.bench.settings import BenchSettings
from edgekd.bench.targets.local import Local
from edgekd.bench.targets.protocol import Place, Target
from edgekd.errors import BenchError
from edgekd.files import replace_atomic, write_atomic

LAYERS, SUSTAINED = "layers.json", "sustain.json"


@dataclass(frozen=True)
class Subject:
    """One build to measure: whose it is (`model`: a role such as student), for which target, and the file to load."""

    model: str
    target: str
    runtime: str
    device: str
    precision: str
    path: Path
    threads: int = 1

    @property
    def name(self) -> str:
        """What comparisons call it: model.precision@target."""
        return f"{self.model}.{self.precision}@{self.target}"


@dataclass(frozen=True)
class Rows:
    """Rows of report.json by the name of their part; `sustain`: that of the long run, or None."""

    latency: list[dict[str, Any]]
    comparisons: list[dict[str, Any]]
    throughput: list[dict[str, Any]]
    load: list[dict[str, Any]]
    sustain: dict[str, Any] | None


def measure_rows(
    subjects: Sequence[Subject],
    feeds: Mapping[str, NDArray[Any]],
    *,
    settings: BenchSettings,
    folder: Path,
    seed: int,
    progress: Callable[[str], None],
    on: Target | None = None,
    host: str | None = None,
) -> Rows:
    """Measure all subjects interleaved in one process, over `settings.launches` such processes; then all else.

    Args:
        subjects: the builds; their names must differ. On another device a build is its folder with all files in it.
        feeds: one batch of real data for every input, by name; `settings.batch` rows.
        folder: gets `<name>.npz` per subject (raw samples: keys "<launch>/wall_ns" of shape (visits, calls), and the
            counters of `loop.Record`), `launches.json` (machine, order, warm-up and 1 Hz monitor of every launch), and
            with `settings.profile` LAYERS: {"rows": [..]}, see `layer_rows`; after a long run SUSTAINED.
        seed: of the order of the models in each launch, and of the bootstrap.
        progress: told in one line what happens.
        on: the device that measures; by default this machine.
        host: what the rows call it; null for this machine.

    Returns:
        Latency is one row per subject, comparisons one per pair; see `under_load` for the others.

    Raises:
        UnavailableError: an engine or a device is missing.
        BenchError: an engine refused a build, a measuring process died or took too long, or the arguments are wrong.
        TryAgainError: the device cannot be reached, or the connection was lost several times.
    """
    _check(subjects, feeds, settings)
    folder.mkdir(parents=True, exist_ok=True)
    measured = [Measured(s.name, s.device) for s in subjects]
    target, runtimes = on or Local(), sorted({subject.runtime for subject in subjects})
    with tempfile.TemporaryDirectory(prefix="edgekd-bench-") as temporary, target.open(runtimes) as place:
        scratch = Path(temporary)
        save_arrays(scratch / "feeds.npz", feeds)
        given = place.push(scratch / "feeds.npz", "feeds.npz")
        models = {subject.name: _push(place, index, subject) for index, subject in enumerate(subjects)}
        launcher = _Launcher(subjects, models, given, settings, scratch, place, seed, progress)
        for subject, one in zip(subjects, measured, strict=True):
            one.memory = launcher.memory(subject)
        launches = [launcher.latency(index, measured) for index in range(settings.launches)]
        layers = [row for subject in subjects for row in launcher.profile(subject)] if settings.profile else None
        throughput = [row for subject in subjects for row in launcher.throughput(subject, host)]
        load = [row for subject in subjects for row in launcher.load(subject, host)]
        long_run = launcher.sustained(host)
    latency = []
    for subject, one in zip(subjects, measured, strict=True):
        about = {**_facts(subject, host), "batch": settings.batch, "threads": subject.threads}
        about |= {"cpu": settings.cpu, "quick": settings.quick}
        samples_path = _keep_samples(folder, one)
        latency.append(latency_row(about, one, measured, seed=seed, samples_path=samples_path))
    write_atomic(folder / "launches.json", json.dumps(launches, indent=1))
    if layers is not None:
        write_atomic(folder / LAYERS, json.dumps({"rows": layers}, indent=1))
    if long_run is not None:
        write_atomic(folder / SUSTAINED, json.dumps({"rows": [long_run]}, indent=1))
    pairs = [comparison_row(a, b, seed=seed) for a, b in combinations(measured, 2)]
    return Rows(latency, pairs, throughput, load, long_run)


@dataclass(frozen=True)
class _Launcher:
    """Starts the agent on jobs about the same subjects."""

    subjects: Sequence[Subject]
    models: Mapping[str, dict[str, Any]]
    feeds: str
    settings: BenchSettings
    temporary: Path
    place: Place
    seed: int
    progress: Callable[[str], None]

    def memory(self, subject: Subject) -> dict[str, Any]:
        """Memory of one subject, alone in a process, and what else only such a process tells."""
        effort = self.settings.effort()
        job = {"mode": "memory", "models": [self.models[subject.name]], "leak_s": effort.leak_s}
        return self._run({**job, "energy_s": effort.energy_s}, f"memory of {subject.name}")

    def latency(self, launch: int, measured: Sequence[Measured]) -> dict[str, Any]:
        """One launch over all subjects: its samples are added to `measured`, its other facts returned."""
        name = f"launch-{launch}.npz"
        job = {
            "mode": "latency",
            "models": list(self.models.values()),
            "seed": self.seed,
            "launch": launch,
            "samples": self.place.where(name),
            **asdict(self.settings.effort()),
        }
        path = self.temporary / name
        result = self._run(job, f"launch {launch + 1}/{self.settings.launches}", {name: path})
        with np.load(path, allow_pickle=False) as stored:
            for one in measured:
                prefix = f"{result['models'][one.name]['index']}/"
                arrays = {key[len(prefix) :]: stored[key] for key in stored.files if key.startswith(prefix)}
                one.add(result, arrays)
        path.unlink()
        del result["samples"]
        return result

    def profile(self, subject: Subject) -> list[dict[str, Any]]:
        """Time per layer of one subject, alone in a process."""
        effort = self.settings.effort()
        job = {"mode": "profile", "models": [self.models[subject.name]], "runs": effort.profile_runs}
        result = self._run({**job, "max_s": effort.profile_max_s}, f"layers of {subject.name}")
        return layer_rows(subject, result["layers"])

    def throughput(self, subject: Subject, host: str | None) -> list[dict[str, Any]]:
        """Rows of `throughput` of one subject, if they are asked for."""
        if self.settings.throughput is None:
            return []
        path, model = self.temporary / "throughput.npz", self.models[subject.name]
        about = _facts(subject, host)
        return under_load.throughput(self._run, about, model, self.settings, path, self.place.where(path.name))

    def load(self, subject: Subject, host: str | None) -> list[dict[str, Any]]:
        """Rows of `load` of one subject, if they are asked for."""
        if self.settings.load is None:
            return []
        path, model = self.temporary / "load.npz", self.models[subject.name]
        about, where = _facts(subject, host), self.place.where(path.name)
        return under_load.load(self._run, about, model, self.settings, path, where, seed=self.seed)

    def sustained(self, host: str | None) -> dict[str, Any] | None:
        """The long run of the first subject beside the last one, if it is asked for."""
        if not self.settings.sustain_s:
            return None
        first, *others = self.subjects
        pair = [first, *others[-1:]]
        models = [self.models[subject.name] for subject in pair]
        on_cpu = all(Measured(one.name, one.device).on_cpu for one in pair)
        return under_load.sustained(self._run, _facts(first, host), models, self.settings, on_cpu=on_cpu)

    def _run(
        self,
        job: dict[str, Any],
        title: str,
        leaves: Mapping[str, Path] = MappingProxyType({}),
        more_s: float = 0.0,
    ) -> dict[str, Any]:
        self.progress(title)
        try:
            return self.place.run(
                {**job, "feeds": self.feeds, "cpu": self.settings.cpu},
                limit_s=self.settings.time_limit_s + more_s,
                progress=lambda text: self.progress(f"{title}: {text}"),
                leaves=leaves,
            )
        except NoMemoryError as error:  # the memory of each build is taken first, alone: it names the one
            raise BenchError(f"{title}: {error.message}", hint=error.hint) from None


def save_arrays(path: Path, arrays: Mapping[str, NDArray[Any]]) -> None:
    """Write an .npz whose names may be anything (`numpy.savez` takes them as keyword arguments: "file" is not free)."""

    def write(temporary: Path) -> None:
        with zipfile.ZipFile(temporary, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
            for name, array in arrays.items():
                with archive.open(f"{name}.npy", "w", force_zip64=True) as stream:
                    np.lib.format.write_array(stream, np.asanyarray(array), allow_pickle=False)

    replace_atomic(path, write)


def _check(subjects: Sequence[Subject], feeds: Mapping[str, NDArray[Any]], settings: BenchSettings) -> None:
    if not subjects:
        raise BenchError("there is nothing to measure", hint="give at least one build")
    names = [subject.name for subject in subjects]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise BenchError(f"{twice[0]} is given twice", hint="every build needs a name of its own")
    rows = [len(array) for array in feeds.values() if array.ndim]
    if settings.batch not in rows:
        raise BenchError(
            f"the data to measure with has {max(rows, default=0)} rows, not {settings.batch}", hint="set `bench.batch`"
        )
    if settings.cpu is not None and any(subject.threads != 1 for subject in subjects):
        raise BenchError("`bench.cpu` pins all threads to one core", hint="leave it out, or measure with one thread")


def _facts(subject: Subject, host: str | None) -> dict[str, Any]:
    facts = {key: getattr(subject, key) for key in ("target", "runtime", "device", "model", "precision")}
    return {**facts, "host": host}


def _push(place: Place, index: int, subject: Subject) -> dict[str, Any]:
    """What a job says of a build, after its files were brought to where it is measured."""
    about = {"name": subject.name, "runtime": subject.runtime, "device": subject.device, "threads": subject.threads}
    return {**about, "path": place.push_build(subject.path, f"model-{index}")}


def _keep_samples(folder: Path, one: Measured) -> str:
    name = re.sub(r"[^\w.@-]", "_", one.name) + ".npz"
    save_arrays(
        folder / name, {f"{i}/{key}": array for i, part in enumerate(one.arrays) for key, array in part.items()}
    )
    return name


def layer_rows(subject: Subject, layers: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Rows of a profile: a build's layers, the slowest first, with the precision that ran and their share of the sum.

    Both 8-bit signs are int8, as in `executed_precision`.
    """
    whole_ms = sum(layer["ms"] for layer in layers)
    ordered = sorted(layers, key=lambda layer: -float(layer["ms"]))
    return [
        {
            "target": subject.target,
            "model": subject.model,
            "precision": subject.precision,
            "layer": layer["name"],
            "kind": layer["kind"],
            "executed": "int8" if layer["precision"] == "uint8" else layer["precision"],
            "ms": layer["ms"],
            "share": round(layer["ms"] / whole_ms, 4) if whole_ms else None,
        }
        for layer in ordered
    ]
