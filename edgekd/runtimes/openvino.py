"""OpenVINO: ONNX -> IR, pinned precision and threads, executed precision from the runtime graph."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgekd.errors import CompileError, UnavailableError
from edgekd.runtimes.protocol import Arrays, Build, Layer, TensorInfo, engine_message, executed_name, installed_version

# The plugins round inside: half precision is a hint to them, not another graph.
_FLAVOURS = {"f32": "f32", "f16": "f32", "bf16": "f32", "int8": "uint8"}
_HINTED = {"f16": "FP16", "bf16": "BF16"}  # our word and the devices'
_MANIFEST = "openvino.json"
# Kinds of the runtime graph that compute; the rest moves or reinterprets data.
_NOT_COMPUTE = {
    "Input",
    "Output",
    "Reorder",
    "Reshape",
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
    precisions = tuple(_FLAVOURS)

    def version(self) -> str:
        return installed_version("openvino", "pip install openvino")

    def flavour(self, precision: str) -> str:
        return _FLAVOURS[precision]

    def check(self, device: str, *, run: bool, precisions: Sequence[str] = ()) -> None:
        core = _core()
        found = core.available_devices
        if device.split(".", maxsplit=1)[0] not in {name.split(".")[0] for name in found}:
            raise UnavailableError(
                f"OpenVINO has no device {device} here (it has {', '.join(found)})",
                hint="choose one of these, or install the device's driver; `edgekd doctor` shows what is there",
            )
        wanted = {precision: _HINTED[precision] for precision in precisions if precision in _HINTED}
        able = core.get_property(device, "OPTIMIZATION_CAPABILITIES") if wanted else ()
        for precision, word in wanted.items():
            if word not in able:
                raise UnavailableError(
                    f"OpenVINO's {device} has no {precision} here (it has {', '.join(able)})",
                    hint=f"leave {precision} out of this target's `precision`",
                )

    def compile(self, onnx: Path, folder: Path, *, device: str, threads: int, options: Mapping[str, Any]) -> Build:
        core = _core()
        try:
            model = core.read_model(str(onnx))
            _module().save_model(model, str(folder / "model.xml"), compress_to_fp16=False)
            precision = options.get("precision", "f32")
            (folder / _MANIFEST).write_text(json.dumps({"precision": precision}))
            path = folder / "model.xml"
            compiled = core.compile_model(str(path), device, _properties(device, threads, _hint(path)))
        except RuntimeError as error:
            raise CompileError(
                f"OpenVINO {self.version()} refused {onnx.name} on {device}: {engine_message(error)}",
                hint="`edgekd doctor` shows devices and versions",
            ) from error
        inputs, outputs = _tensors(compiled.inputs), _tensors(compiled.outputs)
        return Build("model.xml", inputs, outputs, tuple(_layers(compiled)), {"openvino": self.version()})

    def load(self, path: Path, *, device: str, threads: int) -> _Session:
        return _Session(path, device, threads)


class _Session:
    """One infer request with tensors bound beforehand: `infer([x])` costs 20 us more."""

    def __init__(self, path: Path, device: str, threads: int) -> None:
        self._compiled = _core().compile_model(str(path), device, _properties(device, threads, _hint(path)))
        self._request = self._compiled.create_infer_request()
        self.inputs, self.outputs = _tensors(self._compiled.inputs), _tensors(self._compiled.outputs)
        self._bound: dict[str, Any] = {}

    def bind(self, feeds: Mapping[str, NDArray[Any]]) -> None:
        tensor = _module().Tensor
        for name, array in feeds.items():
            self._bound[name] = np.ascontiguousarray(array)
            self._request.set_tensor(name, tensor(self._bound[name], shared_memory=True))

    def run(self) -> None:
        self._request.infer()

    def fetch(self) -> Arrays:
        return {info.name: np.array(self._request.get_tensor(info.name).data) for info in self.outputs}

    def close(self) -> None:
        del self._request, self._compiled


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


def _hint(path: Path) -> str:
    """What a build's floats are rounded to, as it was built; float32 for a file that says nothing."""
    manifest = path.with_name(_MANIFEST)
    precision = json.loads(manifest.read_text())["precision"] if manifest.is_file() else "f32"
    return precision if precision in _HINTED else "f32"


def _properties(device: str, threads: int, hint: str) -> dict[str, Any]:
    """Latency of one request; float32 is float32 (the CPU plugin would run bf16 where the hardware has it)."""
    properties: dict[str, Any] = {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_PRECISION_HINT": hint}
    if device.startswith("CPU"):
        properties["NUM_STREAMS"] = "1"
        if threads:
            properties["INFERENCE_NUM_THREADS"] = threads
    return properties


def _tensors(ports: Any) -> tuple[TensorInfo, ...]:
    found = []
    for port in ports:
        shape = tuple(-1 if dimension.is_dynamic else dimension.get_length() for dimension in port.partial_shape)
        found.append(TensorInfo(port.any_name, np.dtype(port.element_type.to_dtype()).name, shape))
    return tuple(found)


def _layers(compiled: Any) -> list[Layer]:
    """Executed layers from the runtime graph: what ran, not what was asked for."""
    layers = []
    for node in compiled.get_runtime_model().get_ops():
        facts = node.get_rt_info()
        kind = _text(facts, "layerType")
        if kind and kind not in _NOT_COMPUTE:
            layers.append(Layer(node.friendly_name, kind, executed_name(_text(facts, "runtimePrecision"))))
    return layers


def _text(facts: Any, key: str) -> str:
    return str(facts[key].astype(str)) if key in facts else ""
