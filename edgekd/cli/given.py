"""Files that somebody names to be measured: ONNX, an engine's own file, or the folder of a build."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgekd.bench.measure import Subject
from edgekd.bench.targets.local import Local
from edgekd.bench.targets.protocol import Target
from edgekd.errors import ConfigError, UnavailableError
from edgekd.models.onnx_safety import check_onnx
from edgekd.runtimes import tensorrt_manifest
from edgekd.runtimes.protocol import TensorInfo
from edgekd.runtimes.registry import RUNTIMES, runtime

_BUILDS = ("model.xml", "model.onnx", "engine.plan")
_PLANS = (".plan", ".engine", ".trt")
_DESCRIBE_S = 120.0


@dataclass(frozen=True)
class Given:
    """A file and the engine that it is for; `name` is what its rows call it."""

    path: Path
    runtime: str
    name: str

    @property
    def is_onnx(self) -> bool:
        """Whether it has to be compiled first."""
        return self.path.suffix == ".onnx"

    @property
    def files(self) -> list[Path]:
        """All files that it consists of."""
        beside = [self.path.with_suffix(".bin"), self.path.with_name("openvino.json")]
        if self.path.suffix != ".xml":
            beside = [self.path.with_name(tensorrt_manifest.MANIFEST)]
        return [self.path, *(path for path in beside if path.is_file())]


def look_at(paths: Sequence[Path], runtime_name: str | None) -> list[Given]:
    """What each file is; the engine is the one that it was built by, for ONNX the named one or ONNX Runtime.

    Raises:
        ConfigError: a file that is not there, that no engine loads, or that is for another engine than the named one.
    """
    found = [_look_at(path, runtime_name) for path in paths]
    names = [one.name for one in found]
    # The same file may be named twice: comparing a model with itself is how a measure is tested.
    return [
        one if names.count(one.name) == 1 else Given(one.path, one.runtime, f"{one.name}#{index + 1}")
        for index, one in enumerate(found)
    ]


def _look_at(path: Path, runtime_name: str | None) -> Given:
    file = path
    if path.is_dir():
        inside = [path / name for name in _BUILDS if (path / name).is_file()]
        if len(inside) != 1:
            raise ConfigError(
                f"{path}: not the folder of one build", hint=f"it should have one of {', '.join(_BUILDS)}"
            )
        file = inside[0]
    elif not path.is_file():
        raise ConfigError(f"{path}: no such file", hint="give paths of ONNX files, engine files or folders of builds")
    built_by = _built_by(file)
    if built_by and runtime_name and runtime_name != built_by:
        raise ConfigError(
            f"{path}: is for {built_by}, not for {runtime_name}", hint=f"leave out --runtime {runtime_name}"
        )
    # In the folder of a build every file has the same name.
    name = file.resolve().parent.name if file.name in _BUILDS else file.stem
    return Given(file, built_by or runtime_name or "onnxruntime", name)


def _built_by(file: Path) -> str | None:
    """The engine of an engine's own file; None for ONNX."""
    if file.suffix == ".onnx":
        return None
    if file.suffix == ".xml":
        with file.open("rb") as stream:
            if b"<net" not in stream.read(4096):
                raise ConfigError(f"{file}: not a network of OpenVINO", hint="give the model.xml of a build")
        return "openvino"
    if file.suffix in _PLANS:
        try:
            name = str(tensorrt_manifest.read(file).get("runtime", "tensorrt"))
        except UnavailableError as error:
            raise ConfigError(f"{file}: {error.message}", hint=error.hint) from None
        if name not in RUNTIMES:  # the agent imports "module:Class": nothing that a file may ask for
            known = ", ".join(sorted(RUNTIMES))
            message = f"{file}: {tensorrt_manifest.MANIFEST} beside it names an unknown runtime {name!r}"
            raise ConfigError(message, hint=f"build it again; known are: {known}")
        return name
    raise ConfigError(
        f"{file}: not an ONNX file, nor one of an engine",
        hint=f"known are: .onnx, .xml (OpenVINO), {', '.join(_PLANS)} (TensorRT)",
    )


def subjects_of(
    given: Sequence[Given], *, device: str | None, threads: int, place: str, on: Target | None, scratch: Path
) -> tuple[list[Subject], tuple[TensorInfo, ...]]:
    """What to measure, ONNX compiled into `scratch`, and the inputs that all of them take.

    Args:
        place: the target that rows name.
        on: the device that measures; None is this machine.

    Raises:
        ConfigError: they take different inputs.
        CompileError, UnavailableError, BenchError: an engine refused one, or is missing.
    """
    subjects: list[Subject] = []
    first: tuple[TensorInfo, ...] = ()
    for index, one in enumerate(given):
        folder = scratch / f"build-{index}"
        folder.mkdir()
        where = device or ("GPU" if one.runtime.startswith("tensorrt") else "CPU")
        path, inputs = one.path, None
        if one.is_onnx:
            check_onnx(one.path)
            engine = runtime(one.runtime)
            engine.version()
            engine.check(where, run=on is None)
            build = engine.compile(one.path, folder, device=where, threads=threads, options={})
            path, inputs = folder / build.file, build.inputs
        elif on is not None:  # a device is sent the folder of a build: here with nothing but the build in it
            path = [Path(shutil.copy(file, folder)) for file in one.files][0]  # noqa: RUF015 (all are copied)
        subject = Subject(one.name, place, one.runtime, where, "given", path, threads)
        inputs = inputs or _inputs(subject, on or Local())
        if index and _kinds(inputs) != _kinds(first):
            raise ConfigError(
                f"{one.path} takes other inputs than {given[0].path}", hint="compare models with the same inputs"
            )
        subjects.append(subject)
        first = first or inputs
    return subjects, first


def _inputs(subject: Subject, on: Target) -> tuple[TensorInfo, ...]:
    """What an engine's own file takes, asked where it will be measured."""
    model: dict[str, Any] = {key: getattr(subject, key) for key in ("name", "runtime", "device", "threads")}
    with on.open([subject.runtime]) as place:
        model["path"] = place.push_build(subject.path, "model")
        job = {"mode": "describe", "models": [model]}
        result = place.run(job, limit_s=_DESCRIBE_S, progress=lambda line: None)
    return tuple(TensorInfo(one["name"], one["dtype"], tuple(one["shape"])) for one in result["inputs"])


def _kinds(inputs: Sequence[TensorInfo]) -> dict[str, tuple[tuple[int, ...], str]]:
    """Shape (but for the batch) and type of each input: raw frames are another input than normalised images."""
    return {info.name: (info.shape[1:], info.dtype) for info in inputs}
