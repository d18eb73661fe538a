"""What every inference engine offers: compile, load, infer, profile, and the proof of what it executes.

This file and the adapters beside it also run inside the measuring agent on a device: Python 3.8, the standard library,
numpy and the engine; no other room but `errors`.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Dict, Protocol, runtime_checkable  # noqa: UP035  see Arrays

import numpy as np
from numpy.typing import NDArray

from edgekd.errors import UnavailableError

Arrays = Dict[str, NDArray[Any]]  # noqa: UP006  evaluated when Python 3.8 imports this
WARM_UP_RUNS = 5


@dataclass(frozen=True)
class TensorInfo:
    """Name, numpy type name and shape of one input or output; -1 stands for the batch axis."""

    name: str
    dtype: str
    shape: tuple[int, ...]

    def as_dict(self) -> dict[str, Any]:
        """Plain values, as they stand in report.json."""
        return {"name": self.name, "dtype": self.dtype, "shape": list(self.shape)}


@dataclass(frozen=True)
class Layer:
    """One executed layer: its name, its kind in the engine's words, and the precision that really ran."""

    name: str
    kind: str
    precision: str


@dataclass(frozen=True)
class LayerTime:
    """One layer of a profile: the precision that ran, and the median of its time in one inference in milliseconds.

    OpenVINO's CPU plugin counts nothing but means: there it is the mean of the inferences after the warm-up.
    """

    name: str
    kind: str
    precision: str
    ms: float


@dataclass(frozen=True)
class Device:
    """A device that an engine found: what to write in `device:`, its full name, the precisions it computes in.

    `compute_capability` of a GPU of NVIDIA's, e.g. "8.6". No precisions: the engine does not say.
    """

    name: str
    full_name: str | None = None
    precisions: tuple[str, ...] = ()
    compute_capability: str | None = None


@dataclass(frozen=True)
class Support:
    """What an engine offers here. `compute_capabilities` are those that it can build for without having them."""

    devices: tuple[Device, ...]
    compute_capabilities: tuple[str, ...] = ()


@dataclass(frozen=True)
class Build:
    """What `compile` left in a folder: the file to load and the facts that loading must check."""

    file: str
    inputs: tuple[TensorInfo, ...]
    outputs: tuple[TensorInfo, ...]
    layers: tuple[Layer, ...]
    facts: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Phases:
    """How long loading took, in milliseconds: reading the file, and making it ready. None: not apart from the other."""

    read_ms: float | None
    compile_ms: float | None


class Session(Protocol):
    """A loaded build. Tensors are bound once and `run` is called many times: a call is the engine's work alone."""

    inputs: tuple[TensorInfo, ...]
    outputs: tuple[TensorInfo, ...]
    phases: Phases

    def bind(self, feeds: Mapping[str, NDArray[Any]]) -> None:
        """Bind one array to every input; shapes may differ from the last call in the batch axis."""

    def run(self) -> None:
        """One inference on the bound arrays; returns when it has finished."""

    def fetch(self) -> Arrays:
        """The outputs of the last run, as arrays of their own."""

    def memory_bytes(self) -> int | None:
        """Memory that the engine says this session takes on its device; None where it does not say."""

    def close(self) -> None:
        """Free the engine's memory."""


@runtime_checkable
class TimedByDevice(Protocol):
    """A session whose device has a clock of its own."""

    def device_times(self, runs: int) -> DeviceTimes:
        """Times of the steps of an inference on the bound arrays, by the device's clock."""


@dataclass(frozen=True)
class DeviceTimes:
    """Medians in milliseconds by the device's clock: the network alone, the same as a recorded graph of kernels (None:
    it cannot be recorded), inputs to the device, outputs back."""

    compute_ms: float
    graph_ms: float | None
    h2d_ms: float
    d2h_ms: float


class Runtime(Protocol):
    """One inference engine. Methods raise `UnavailableError` when the engine or device is missing."""

    name: str
    precisions: tuple[str, ...]

    def version(self) -> str:
        """Version of the installed engine; raises UnavailableError with the install command when there is none."""

    def flavour(self, precision: str) -> str:
        """Which ONNX flavour serves a precision: f32, f16, bf16, int8, uint8 or int8_f16 (export/ writes them)."""

    def check(self, device: str, *, run: bool, precisions: Sequence[str] = ()) -> None:
        """Raise UnavailableError if this device cannot compile (or, with `run`, cannot run) these precisions here."""

    def compile(self, onnx: Path, folder: Path, *, device: str, threads: int, options: Mapping[str, Any]) -> Build:
        """Turn an ONNX file into a build inside `folder`. Raises CompileError when the engine refuses the graph.

        `options["precision"]` is what the build is asked for; by default f32.
        """

    def load(self, path: Path, *, device: str, threads: int) -> Session:
        """Load the file that `compile` left, pinned to `threads` threads (0: the engine's choice)."""

    def load_streams(self, path: Path, *, device: str, threads: int, streams: int) -> Sequence[Session]:
        """Sessions over one loaded build that may run at the same time, each in a thread of its own.

        `threads` are those of each stream.
        """

    def profile(
        self, path: Path, feeds: Mapping[str, NDArray[Any]], *, device: str, threads: int, runs: int, max_s: float
    ) -> tuple[LayerTime, ...]:
        """Time of every layer that ran, in the engine's order, over at most `runs` inferences and `max_s` seconds.

        In a session of its own: profiling makes a network slower, so these times say where the time goes, not how
        much there is of it.
        """

    def supports(self) -> Support:
        """The devices that the engine finds here and what it can build for."""


def check_capabilities(engine: Runtime, wanted: Sequence[str]) -> None:
    """See that an engine builds for these compute capabilities, e.g. "8.6".

    Raises:
        UnavailableError: the installed version does not; the hint names those that it builds for.
    """
    known = engine.supports().compute_capabilities if wanted else ()
    unknown = [capability for capability in wanted if capability not in known]
    if unknown:
        raise UnavailableError(
            f"{engine.name} {engine.version()} does not build for compute capability {unknown[0]}",
            hint=f"compute_capabilities may hold: {', '.join(known)}",
        )


class Stopwatch:
    """Milliseconds since it was made or last asked."""

    def __init__(self) -> None:
        self._at = time.perf_counter()

    def lap_ms(self) -> float:
        """Time since the last lap."""
        before, self._at = self._at, time.perf_counter()
        return (self._at - before) * 1e3


def infer(session: Session, feeds: Mapping[str, NDArray[Any]]) -> Arrays:
    """Bind, run, fetch."""
    session.bind(feeds)
    session.run()
    return session.fetch()


def infer_batched(session: Session, feeds: Mapping[str, NDArray[Any]], batch: int) -> Arrays:
    """`infer` over all rows of the feeds in batches; outputs are concatenated."""
    rows = len(next(iter(feeds.values())))
    parts = [infer(session, {k: v[i : i + batch] for k, v in feeds.items()}) for i in range(0, rows, batch)]
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def run_for(run: Callable[[], None], *, runs: int, max_s: float) -> int:
    """Warm up, then call at most `runs` times and for at most `max_s` seconds; returns how often, at least once."""
    begin = time.perf_counter()
    for _ in range(WARM_UP_RUNS):
        run()
        if time.perf_counter() - begin > max_s:  # a network this slow is warm after one call
            break
    begin, done = time.perf_counter(), 0
    while not done or (done < runs and time.perf_counter() - begin < max_s):
        run()
        done += 1
    return done


def median_ms(times: Sequence[float]) -> float:
    """The median, to a tenth of a microsecond: no engine's counter is finer."""
    return round(float(np.median(times)), 4)


def noise(inputs: Iterable[TensorInfo], batch: int = 1, seed: int = 0) -> Arrays:
    """Noise for inputs, each of its own type; open axes become `batch` or 1.

    What a network computes does not change how long it takes: noise of the right shape needs no data set. Floats are
    normal, raw frames (uint8) all of their levels, other integers 0 and 1, which every table of embeddings has.
    """
    rng = np.random.default_rng(seed)
    found = {}
    for info in inputs:
        shape, dtype = (batch, *(max(size, 1) for size in info.shape[1:])), np.dtype(info.dtype)
        if dtype.kind == "f":
            found[info.name] = rng.standard_normal(shape).astype(dtype)
        else:
            found[info.name] = rng.integers(0, 256 if dtype == np.uint8 else 2, shape).astype(dtype)
    return found


_EXECUTED = {
    "f32": "f32", "fp32": "f32", "float": "f32", "float32": "f32",
    "f16": "f16", "fp16": "f16", "half": "f16", "float16": "f16",
    "bf16": "bf16", "bfloat16": "bf16",
    "i8": "int8", "s8": "int8", "int8": "int8", "u8": "uint8", "uint8": "uint8",
}  # fmt: skip


def executed_name(text: str) -> str:
    """An engine's word for a precision in ours: f32, f16, bf16, int8, uint8; unknown words stay as they are."""
    return _EXECUTED.get(text.strip().lower(), text.strip().lower() or "unknown")


def engine_message(error: BaseException) -> str:
    """The most telling line of an engine's error text: the last one that is not empty."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1][:300] if lines else type(error).__name__


def installed_version(package: str, command: str) -> str:
    """Version of an installed package without importing it; raises UnavailableError with the install command."""
    from importlib import metadata

    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        raise UnavailableError(f"{package} is not installed", hint=command) from None
