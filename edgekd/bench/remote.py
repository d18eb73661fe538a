"""Builds made and evaluated on a device, as the host sees it: what is pushed, which job is run, what comes back."""

from __future__ import annotations

import shutil
import tempfile
import zipfile
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgekd.bench.builds import BUILD, TIMINGS
from edgekd.bench.measure import save_arrays
from edgekd.bench.process import NoMemoryError
from edgekd.bench.targets.protocol import Place
from edgekd.errors import BenchError, CompileError
from edgekd.files import write_atomic
from edgekd.runtimes.protocol import Arrays, Build, Layer, TensorInfo


@dataclass(frozen=True)
class Wish:
    """A build that a device is to make. `timings`: the file here that keeps TensorRT's timing cache, if it has one."""

    name: str
    runtime: str
    device: str
    precision: str
    options: Mapping[str, Any] = field(default_factory=lambda: MappingProxyType({}))
    timings: Path | None = None


@dataclass(frozen=True)
class Made:
    """A build that came back: as an adapter describes it, the device's kind of processor, seconds without transfer."""

    build: Build
    arch: str
    seconds: float

    @classmethod
    def of(cls, told: Mapping[str, Any]) -> Made:
        """From the result of `builds.compile_build`, or from `as_dict`."""
        layers = tuple(Layer(**layer) for layer in told["layers"])
        inputs, outputs = _tensors(told["inputs"]), _tensors(told["outputs"])
        build = Build(_plain(told["file"]), inputs, outputs, layers, told["facts"])
        return cls(build, told["arch"], told["seconds"])

    def as_dict(self) -> dict[str, Any]:
        """Plain values."""
        return {**asdict(self.build), "arch": self.arch, "seconds": self.seconds}


def compile_on(place: Place, wish: Wish, onnx: Path, folder: Path, *, limit_s: float) -> Made:
    """Compile an ONNX file on a device; the build's files come into `folder`.

    Raises:
        CompileError: the engine refused the graph, memory ran out, or it took longer than `limit_s`.
        UnavailableError: the engine or the device of the engine is missing there.
        TryAgainError: the connection was lost several times.
    """
    with tempfile.TemporaryDirectory(prefix="edgekd-compile-") as name:
        scratch = Path(name)
        archive = scratch / "build.zip"
        if wish.timings is not None and wish.timings.is_file():
            shutil.copyfile(wish.timings, scratch / TIMINGS)  # another build may replace it meanwhile
            place.push(scratch / TIMINGS, TIMINGS)
        job = {
            "mode": "compile",
            "runtime": wish.runtime,
            "device": wish.device,
            "precision": wish.precision,
            "options": dict(wish.options),
            "onnx": place.push(onnx, "model.onnx"),
            "folder": place.where(BUILD),
            "timings": None if wish.timings is None else place.where(TIMINGS),
            "archive": place.where(archive.name),
        }
        try:
            result = place.run(job, limit_s=limit_s, progress=_silent, leaves={archive.name: archive})
        except NoMemoryError as error:
            raise CompileError(f"{wish.name}: {error.message}", hint=_lighter(wish)) from None
        except BenchError as error:
            raise CompileError(f"{wish.name}: {error.message}", hint=error.hint) from None
        finally:
            place.forget(TIMINGS, "model.onnx", archive.name, BUILD)
        _unpack(archive, folder, wish.timings)
    return Made.of(result)


def answers_on(
    place: Place,
    model: Mapping[str, Any],
    path: Path,
    parts: Iterable[Mapping[str, NDArray[Any]]],
    *,
    batch: int,
    limit_s: float,
) -> Arrays:
    """What a build answers on a device: its outputs over all rows of the parts, of which one at a time is pushed.

    Args:
        model: "name", "runtime", "device" of the build at `path`.
        batch: samples in one inference.
        limit_s: seconds for each part.

    Raises:
        BenchError: the engine failed, memory ran out, or a part took too long.
        UnavailableError, TryAgainError: as `compile_on`.
    """
    found: list[Arrays] = []
    about = {**model, "threads": 1, "path": place.push_build(path, BUILD)}
    with tempfile.TemporaryDirectory(prefix="edgekd-evaluate-") as name:
        feeds, outputs = Path(name) / "feeds.npz", Path(name) / "outputs.npz"
        try:
            for arrays in parts:
                save_arrays(feeds, arrays)
                given, left = place.push(feeds, feeds.name), place.where(outputs.name)
                job = {"mode": "evaluate", "models": [about], "feeds": given, "batch": batch, "outputs": left}
                result = place.run(job, limit_s=limit_s, progress=_silent, leaves={outputs.name: outputs})
                with np.load(outputs, allow_pickle=False) as stored:
                    found.append({name: stored[str(index)] for index, name in enumerate(result["outputs"])})
        except NoMemoryError as error:
            less = "lower `evaluate.batch`, or free memory there"
            raise BenchError(f"{model['name']}: {error.message}", hint=less) from None
        except BenchError as error:
            raise BenchError(f"{model['name']}: {error.message}", hint=error.hint) from None
        finally:
            place.forget(feeds.name, outputs.name, BUILD)
    return {name: np.concatenate([part[name] for part in found]) for name in found[0]}


def _tensors(rows: Iterable[Mapping[str, Any]]) -> tuple[TensorInfo, ...]:
    return tuple(TensorInfo(row["name"], row["dtype"], tuple(row["shape"])) for row in rows)


def _unpack(archive: Path, folder: Path, timings: Path | None) -> None:
    """Write an archive's files: those of the build flat into `folder`, the timing cache to its place."""
    with zipfile.ZipFile(archive) as packed:
        for entry in packed.infolist():
            inside, _, name = entry.filename.rpartition("/")
            if inside == BUILD:
                with packed.open(entry) as source, (folder / _plain(name)).open("wb") as target:
                    shutil.copyfileobj(source, target)
            elif entry.filename == TIMINGS and timings is not None:
                write_atomic(timings, packed.read(entry))


def _plain(name: str) -> str:
    """A file's name as a device gives it: it names a file in the build's folder and nothing else."""
    if not name or name in (".", "..") or set(name) & {"/", "\\", "\0"}:
        raise CompileError(f"the device names a file of the build {name!r}", hint="see what its engine leaves")
    return name


def _lighter(wish: Wish) -> str:
    """What makes compiling need less memory."""
    if wish.runtime.startswith("tensorrt"):
        return "lower `workspace_bytes`, `max_batch` or `optimization_level`, or free memory there"
    return "make the build on this machine: `compile_on: host`; or free memory there, or add swap"


def _silent(text: str) -> None:
    """One line a build is enough."""
