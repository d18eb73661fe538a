"""OpenVINO: ONNX -> IR and its compiled form, pinned threads, executed precision from the runtime graph."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgekd.errors import CompileError, UnavailableError
from edgekd.runtimes import openvino_blob
from edgekd.runtimes.protocol import (
    Arrays,
    Build,
    Device,
    Layer,
    LayerTime,
    Phases,
    Stopwatch,
    Support,
    TensorInfo,
    engine_message,
    executed_name,
    installed_version,
    median_ms,
    noise,
    run_for,
)
from edgekd.runtimes.registry import FLAVOURS

_HINTED = ("f16", "bf16")
HINT = "openvino.json"
# Kinds of the runtime graph that compute; the rest moves or reinterprets data.
_NOT_COMPUTE = {
    "Input",
    "Output",
    "Reorder",
    "Reshape",
    "Transpose",
    "Const",
    "Constant",
    "Convert",
    "Result",
    "Parameter",
    "Memory",
}


class OpenVino:
    """The adapter of OpenVINO's CPU, GPU and NPU plugins."""

    name = "openvino"
    precisions = tuple(FLAVOURS[name])

    def version(self) -> str:
        return installed_version("openvino", "pip install openvino")

    def flavour(self, precision: str) -> str:
        return FLAVOURS[self.name][precision]

    def check(self, device: str, *, run: bool, precisions: Sequence[str] = ()) -> None:
        core, device = _core(), _in_its_words(device)
        found = list(core.available_devices)
        missing = [name for name in named_devices(device) if not _is_there(name, found)]
        if missing:
            raise UnavailableError(
                f"OpenVINO has no device {missing[0]} here (it has {', '.join(found)})",
                hint="choose one of these, or install the device's driver; `edgekd doctor` shows what is there",
            )
        able = [word for name in named_devices(device) or found for word in _device(core, name).precisions]
        for precision in precisions:
            if precision in _HINTED and precision not in able:
                raise UnavailableError(
                    f"OpenVINO's {device} has no {precision} here (it has {', '.join(dict.fromkeys(able))})",
                    hint=f"leave {precision} out of this target's `precision`",
                )

    def compile(self, onnx: Path, folder: Path, *, device: str, threads: int, options: Mapping[str, Any]) -> Build:
        core, device = _core(), _in_its_words(device)
        try:
            model = core.read_model(str(onnx))
            _module().save_model(model, str(folder / "model.xml"), compress_to_fp16=False)
            if options.get("precision") in _HINTED:
                (folder / HINT).write_text(json.dumps({"precision": options["precision"]}))
            path = folder / "model.xml"
            properties = _properties(device, threads, _hint(path))
            compiled = core.compile_model(str(path), device, properties)
        except RuntimeError as error:
            raise CompileError(
                f"OpenVINO {self.version()} refused {onnx.name} on {device}: {engine_message(error)}",
                hint="`edgekd doctor` shows devices and versions",
            ) from error
        inputs, outputs = _tensors(compiled.inputs), _tensors(compiled.outputs)
        openvino_blob.keep(
            core,
            compiled,
            folder,
            device=device,
            properties=properties,
            same=lambda a, b: (
                openvino_blob.same_layers(_layers(a), _layers(b)) and openvino_blob.same_answers(a, b, noise(inputs))
            ),
        )
        return Build("model.xml", inputs, outputs, tuple(_layers(compiled)), {"openvino": self.version()})

    def load(self, path: Path, *, device: str, threads: int) -> _Session:
        return _Session(path, device, threads)

    def load_streams(self, path: Path, *, device: str, threads: int, streams: int) -> list[_Session]:
        first = _Session(path, device, threads, streams=streams)
        return [first, *(first.beside() for _ in range(streams - 1))]

    def profile(
        self, path: Path, feeds: Mapping[str, NDArray[Any]], *, device: str, threads: int, runs: int, max_s: float
    ) -> tuple[LayerTime, ...]:
        session = _Session(path, device, threads, {"PERF_COUNT": True})
        try:
            session.bind(feeds)
            return session.profile(runs, max_s)
        finally:
            session.close()

    def supports(self) -> Support:
        core = _core()
        return Support(tuple(_device(core, name) for name in core.available_devices))


class _Session:
    """One infer request with tensors bound beforehand: `infer([x])` costs 20 us more."""

    def __init__(
        self,
        path: Path,
        device: str,
        threads: int,
        extra: Mapping[str, Any] = MappingProxyType({}),
        streams: int = 1,
    ) -> None:
        core, device = _core(), _in_its_words(device)
        properties = {**_properties(device, threads, _hint(path), streams), **extra}
        watch = Stopwatch()
        # A profile is of the model that is compiled here: what was imported cannot be asked for every counter.
        found = None if extra else openvino_blob.find(core, path, device=device, properties=properties)
        read_ms = None  # what was compiled before is checked, read and made ready in one
        if found is None:
            model = core.read_model(str(path))
            read_ms = watch.lap_ms()
            found = core.compile_model(model, device, properties)
        self._compiled = found
        self.phases = Phases(read_ms, watch.lap_ms())
        self._begin()

    def beside(self) -> _Session:
        """Another request of the same compiled model."""
        other = object.__new__(_Session)
        other._compiled, other.phases = self._compiled, self.phases
        other._begin()
        return other

    def _begin(self) -> None:
        self._request = self._compiled.create_infer_request()
        self._infer = _bare(self._request)
        self.inputs, self.outputs = _tensors(self._compiled.inputs), _tensors(self._compiled.outputs)
        self._bound: dict[str, Any] = {}

    def bind(self, feeds: Mapping[str, NDArray[Any]]) -> None:
        tensor = _module().Tensor
        for name, array in feeds.items():
            self._bound[name] = np.ascontiguousarray(array)
            self._request.set_tensor(name, tensor(self._bound[name], shared_memory=True))

    def run(self) -> None:
        self._infer()

    def fetch(self) -> Arrays:
        return {info.name: np.array(self._request.get_tensor(info.name).data) for info in self.outputs}

    def profile(self, runs: int, max_s: float) -> tuple[LayerTime, ...]:
        """Layers that ran, with their times; the session was opened with PERF_COUNT."""
        taken: list[Any] = []

        def run() -> None:
            self.run()
            taken.append(self._request.profiling_info)

        done = run_for(run, runs=runs, max_s=max_s)
        precisions = {layer.name: layer.precision for layer in _every_layer(self._compiled)}
        of_cpu = list(self._compiled.get_property("EXECUTION_DEVICES")) == ["CPU"]
        found = []
        for i, node in enumerate(taken[0]):
            if "EXECUTED" not in str(node.status):  # fused into another, or folded away
                continue
            times = [info[i].real_time.total_seconds() * 1e3 for info in taken]
            precision = precisions.get(node.node_name, executed_name(node.exec_type.rsplit("_", 1)[-1]))
            ms = _since(times, len(taken) - done) if of_cpu else median_ms(times[-done:])
            found.append(LayerTime(node.node_name, node.node_type, precision, ms))
        return tuple(found)

    def memory_bytes(self) -> int | None:
        return None  # OpenVINO does not say

    def close(self) -> None:
        del self._infer, self._request, self._compiled


def _bare(request: Any) -> Callable[[], object]:
    """One inference on what is bound, without a copy of the outputs, and without the Python method over the engine's:
    it looks for inputs to set, which takes 4 us of a call."""
    for kind in type(request).__mro__:
        infer: Any = getattr(kind, "infer", None) if kind.__module__.endswith("_pyopenvino") else None
        if infer and "share_outputs: bool, decode_strings: bool" in (infer.__doc__ or ""):
            return partial(infer, request, {}, True, False)
    return partial(request.infer, share_outputs=True)  # a version that has another


def _module() -> Any:
    """OpenVINO without its telemetry: importing it would report the import, and we never send anything."""
    sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]
    try:
        import openvino
    except ImportError:
        raise UnavailableError("OpenVINO is not installed", hint="pip install openvino") from None
    return openvino


def _core() -> Any:
    return _module().Core()


def _since(means_ms: Sequence[float], warm: int) -> float:
    """The mean time of the inferences after the first `warm`, in milliseconds.

    The CPU plugin counts the mean since it was loaded, slow first inference included, in whole microseconds rounded
    down: half of one is given back. What remains is right to about a microsecond, and never below half of one.
    """
    half = 0.0005
    total = len(means_ms) * (means_ms[-1] + half) - warm * (means_ms[warm - 1] + half)
    return round(max(half, total / (len(means_ms) - warm)), 4)


def _in_its_words(device: str) -> str:
    """A device as OpenVINO writes it, who knows capitals alone."""
    return device.upper()


def named_devices(device: str) -> list[str]:
    """The real devices in a device's name: `HETERO:GPU.1,CPU` names two, `AUTO` none, `AUTO:-GPU,CPU` CPU alone."""
    kind, _, rest = device.partition(":")
    if kind not in openvino_blob.VIRTUAL:
        return [device]
    return [name.partition("(")[0].strip() for name in rest.split(",") if name and not name.startswith("-")]


def _is_there(device: str, found: Sequence[str]) -> bool:
    """`GPU` stands for `GPU.0`, in both directions; any other number must be there."""
    alone = {name.partition(".")[0] for name in found}
    return device in found or device in alone or (device.endswith(".0") and device[:-2] in found and device != "CPU.0")


def _device(core: Any, name: str) -> Device:
    words = [executed_name(word) for word in core.get_property(name, "OPTIMIZATION_CAPABILITIES")]
    precisions = tuple(word for word in ("f32", "f16", "bf16", "int8") if word in words)
    return Device(name, str(core.get_property(name, "FULL_DEVICE_NAME")), precisions)


def _hint(path: Path) -> str:
    """What a build's floats are rounded to, as it was built; float32 for a model that has no file that says so."""
    manifest = path.with_name(HINT)
    if not manifest.is_file():
        return "f32"
    try:
        precision = json.loads(manifest.read_text())["precision"]
    except (ValueError, KeyError, TypeError):
        precision = None
    if precision not in _HINTED:
        raise UnavailableError(f"{manifest.name} beside {path.name} is damaged", hint="build it again")
    return str(precision)


def _properties(device: str, threads: int, hint: str, streams: int = 1) -> dict[str, Any]:
    """Latency of one request; float32 is float32 (the CPU plugin would run bf16 where the hardware has it).

    With several streams the engine is laid out for as many requests at once, `threads` of the CPU for each.
    """
    goal = "LATENCY" if streams == 1 else "THROUGHPUT"
    properties: dict[str, Any] = {"PERFORMANCE_HINT": goal, "INFERENCE_PRECISION_HINT": hint}
    if streams > 1:
        properties["PERFORMANCE_HINT_NUM_REQUESTS"] = streams
    cpu: dict[str, Any] = {"NUM_STREAMS": str(streams)}
    if threads:
        cpu["INFERENCE_NUM_THREADS"] = threads * streams
    if device.startswith(("CPU", "BATCH:CPU")):
        properties.update(cpu)
    elif device.partition(":")[0] in openvino_blob.VIRTUAL and not device.startswith("BATCH"):
        properties["DEVICE_PROPERTIES"] = {"CPU": cpu}  # for the CPU, if it is the one that is chosen
    return properties


def _tensors(ports: Any) -> tuple[TensorInfo, ...]:
    found = []
    for port in ports:
        shape = tuple(-1 if dimension.is_dynamic else dimension.get_length() for dimension in port.partial_shape)
        found.append(TensorInfo(port.any_name, np.dtype(port.element_type.to_dtype()).name, shape))
    return tuple(found)


def _layers(compiled: Any) -> list[Layer]:
    """Executed layers that compute: what runs, not what was asked for."""
    return [layer for layer in _every_layer(compiled) if layer.kind not in _NOT_COMPUTE]


def _every_layer(compiled: Any) -> list[Layer]:
    """All nodes of the runtime graph."""
    layers = []
    for node in compiled.get_runtime_model().get_ops():
        facts = node.get_rt_info()
        kind = _text(facts, "layerType")
        if kind:
            layers.append(Layer(node.friendly_name, kind, executed_name(_text(facts, "runtimePrecision"))))
    return layers


def _text(facts: Any, key: str) -> str:
    return str(facts[key].astype(str)) if key in facts else ""
