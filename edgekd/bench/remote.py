"""Builds made and evaluated on a device, as the host sees it: what is pushed, which job is run, what comes back."""

from __future__ import annotations

import shutil
import struct
import tempfile
import zipfile
import zlib
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
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
from edgekd.errors import BenchError, CompileError, StageError, first_line
from edgekd.files import write_atomic
from edgekd.runtimes.protocol import Arrays, Build, Layer, TensorInfo

MOST_BYTES = 8 * 2**30
_SUFFIXES = {".xml", ".bin", ".onnx", ".plan", ".engine", ".json", ".cache", ".blob"}
_HINT = "repeat it, or make the build on this machine: `compile_on: host`"
_MALFORMED = (
    AttributeError,
    EOFError,
    LookupError,
    NotImplementedError,
    OverflowError,
    RuntimeError,
    TypeError,
    ValueError,
    struct.error,
    zipfile.BadZipFile,
    zlib.error,
)


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
        build = Build(_plain(told["file"]), inputs, outputs, layers, dict(told["facts"]))
        return cls(build, str(told["arch"]), float(told["seconds"]))

    def as_dict(self) -> dict[str, Any]:
        """Plain values."""
        return {**asdict(self.build), "arch": self.arch, "seconds": self.seconds}


def compile_on(place: Place, wish: Wish, onnx: Path, folder: Path, *, limit_s: float) -> Made:
    """Compile an ONNX file on a device; the build's files come into `folder`.

    Raises:
        CompileError: the engine refused the graph, memory ran out, it took longer than `limit_s`, or what came back is
            no build.
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
        with _looked_at(wish.name, CompileError):
            _unpack(archive, folder, wish.timings)
            made = Made.of(result)
            if not (folder / made.build.file).is_file():
                raise CompileError(f"the device sent no {made.build.file!r}", hint=_HINT)
    return made


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
        BenchError: the engine failed, memory ran out, a part took too long, or what came back are no answers.
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
                with _looked_at("its answers", BenchError), np.load(outputs, allow_pickle=False) as stored:
                    found.append({name: stored[str(index)] for index, name in enumerate(result["outputs"])})
        except NoMemoryError as error:
            less = "lower `evaluate.batch`, or free memory there"
            raise BenchError(f"{model['name']}: {error.message}", hint=less) from None
        except BenchError as error:
            raise BenchError(f"{model['name']}: {error.message}", hint=error.hint) from None
        finally:
            place.forget(feeds.name, outputs.name, BUILD)
    return {name: np.concatenate([part[name] for part in found]) for name in found[0]}


@contextmanager
def _looked_at(name: str, kind: type[StageError]) -> Iterator[None]:
    """What a device sent may be anything: whatever is wrong with it becomes one line of `kind` that names the build."""
    try:
        yield
    except StageError as error:
        raise kind(f"{name}: {error.message}", hint=error.hint) from None
    except _MALFORMED as error:
        what = f"{type(error).__name__}: {first_line(error)}"
        raise kind(f"{name}: what the device sent is damaged, or not edgekd's ({what})", hint=_HINT) from error


def _tensors(rows: Iterable[Mapping[str, Any]]) -> tuple[TensorInfo, ...]:
    return tuple(TensorInfo(str(r["name"]), str(r["dtype"]), tuple(int(n) for n in r["shape"])) for r in rows)


def _unpack(archive: Path, folder: Path, timings: Path | None) -> None:
    """Write an archive's files: those of the build flat into `folder`, the timing cache to its place.

    Raises:
        CompileError: a name is not plain or of no kind that engines write, or it is larger than a build may be.
    """
    with zipfile.ZipFile(archive) as packed:
        entries = packed.infolist()
        size_bytes = sum(entry.file_size for entry in entries)  # zipfile reads no more of an entry than it claims
        if size_bytes > MOST_BYTES:
            message = f"the device sent a build of {size_bytes:,} bytes, more than {MOST_BYTES:,}"
            raise CompileError(message, hint="make the build on this machine: `compile_on: host`")
        if any(entry.compress_type != zipfile.ZIP_STORED for entry in entries):
            raise CompileError("the device sent a compressed archive, and edgekd's agent compresses none", hint=_HINT)
        for entry in entries:
            inside, _, name = entry.filename.rpartition("/")
            if inside == BUILD:
                with packed.open(entry) as source, (folder / _plain(name)).open("wb") as target:
                    shutil.copyfileobj(source, target)
            elif entry.filename == TIMINGS and timings is not None:
                write_atomic(timings, packed.read(entry))


def _plain(name: str) -> str:
    """A file's name as a device gives it: it names a file in the build's folder, of a kind that engines write."""
    if Path(name).suffix not in _SUFFIXES or name.startswith(".") or set(name) & {"/", "\\"} or not name.isprintable():
        raise CompileError(f"the device names a file of the build {name!r}", hint="see what its engine leaves")
    return name


def _lighter(wish: Wish) -> str:
    """What makes compiling need less memory."""
    if wish.runtime.startswith("tensorrt"):
        return "lower `workspace_bytes`, `max_batch` or `optimization_level`, or free memory there"
    return "make the build on this machine: `compile_on: host`; or free memory there, or add swap"


def _silent(text: str) -> None:
    """One line a build is enough."""
