"""ONNX Runtime: the file as it is, IO binding, executed precision from the optimized graph and from a profile."""

from __future__ import annotations

import importlib.util
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgekd.errors import CompileError, UnavailableError
from edgekd.runtimes import onnxruntime_profile as profiles
from edgekd.runtimes.onnxruntime_providers import CPU, PACKAGES, provider_named, short
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
    infer,
    installed_version,
    noise,
    run_for,
)
from edgekd.runtimes.registry import FLAVOURS

_NUMPY = {"tensor(float)": "float32", "tensor(float16)": "float16", "tensor(uint8)": "uint8", "tensor(int8)": "int8",
          "tensor(int64)": "int64", "tensor(double)": "float64", "tensor(int32)": "int32"}  # fmt: skip
# Integer kernels of ONNX Runtime; everything else that computes runs in float.
_INTEGER = ("QLinear", "QGemm", "MatMulInteger", "ConvInteger", "DynamicQuantize", "QAttention")
_NOT_COMPUTE = {"QuantizeLinear", "DequantizeLinear", "Reshape", "Flatten", "Transpose", "Squeeze", "Unsqueeze",
                "Identity", "Cast", "ReorderInput", "ReorderOutput", "Shape", "Constant"}  # fmt: skip
# Integer kernels exist for these too: on 8-bit tensors they run in 8 bits without another name.
_SAME_NAME = {"MaxPool", "NhwcMaxPool", "Concat", "Split", "Slice", "Gather", "Pad", "Resize"}


# Without VNNI an x64 processor adds products of uint8 and int8 up in 16 bits, which overflow; so they do not.
EXACT = ("session.x64quantprecision", "1")


class OnnxRuntime:
    """The adapter of ONNX Runtime; a device is a provider: CPU, CUDA, OpenVINO, .., or a provider's own name."""

    name = "onnxruntime"
    precisions = tuple(FLAVOURS[name])

    def version(self) -> str:
        for package in PACKAGES[1:]:
            try:
                return installed_version(package, "")
            except UnavailableError:
                continue
        return installed_version(PACKAGES[0], "pip install onnxruntime")

    def flavour(self, precision: str) -> str:
        return FLAVOURS[self.name][precision]

    def check(self, device: str, *, run: bool, precisions: Sequence[str] = ()) -> None:
        provider_named(device, _module().get_available_providers())

    def compile(self, onnx: Path, folder: Path, *, device: str, threads: int, options: Mapping[str, Any]) -> Build:
        path = folder / "model.onnx"
        shutil.copyfile(onnx, path)
        try:
            inputs, outputs, layers, fallen = _tried(path, device, threads)
        except UnavailableError:
            raise
        except Exception as error:  # ONNX Runtime's errors share no base class but Exception
            raise CompileError(
                f"ONNX Runtime {self.version()} refused {onnx.name} on {device}: {engine_message(error)}",
                hint="`edgekd doctor` shows providers and versions",
            ) from error
        facts = {"onnxruntime": self.version(), **({"nodes-on-CPU": fallen} if fallen else {})}
        return Build(path.name, inputs, outputs, tuple(layers), facts)

    def load(self, path: Path, *, device: str, threads: int) -> _Session:
        return _Session(path, device, threads)

    def load_streams(self, path: Path, *, device: str, threads: int, streams: int) -> list[_Session]:
        first = _Session(path, device, threads)
        return [first, *(first.beside() for _ in range(streams - 1))]

    def profile(
        self, path: Path, feeds: Mapping[str, NDArray[Any]], *, device: str, threads: int, runs: int, max_s: float
    ) -> tuple[LayerTime, ...]:
        with tempfile.TemporaryDirectory() as scratch:
            session = _Session(path, device, threads, profile=Path(scratch) / "profile")
            session.bind(feeds)
            done = run_for(session.run, runs=runs, max_s=max_s)
            nodes = session.nodes()
            session.close()
        return profiles.layer_times(nodes, session.provider, done)

    def supports(self) -> Support:
        names = [short(provider) for provider in _module().get_available_providers()]
        return Support(tuple(Device(name, precisions=self.precisions if name == "CPU" else ()) for name in names))


def _tried(path: Path, device: str, threads: int) -> tuple[Any, Any, list[Layer], int]:
    """Inputs, outputs, executed layers, and how many nodes fell back to the CPU though another provider was asked for.

    On the CPU the optimized graph says what runs. Elsewhere, and where the package onnx is missing, which reads graphs,
    only a run does: the profile of one inference on noise.
    """
    with tempfile.TemporaryDirectory() as scratch:
        if provider_named(device, _module().get_available_providers()) == CPU and importlib.util.find_spec("onnx"):
            optimized = Path(scratch) / "optimized.onnx"
            session = _open(path, device, threads, optimized=optimized)
            layers = _layers(optimized) if optimized.exists() else []
            return _tensors(session.get_inputs()), _tensors(session.get_outputs()), layers, 0
        tried = _Session(path, device, threads, profile=Path(scratch) / "profile")
        infer(tried, noise(tried.inputs))
        nodes = tried.nodes()
        tried.close()
    fallen = profiles.fallen_back(nodes, tried.provider)
    if fallen and len(fallen) == len(nodes):
        raise UnavailableError(
            f"ONNX Runtime ran no node of this network on {device}, all {len(nodes)} fell back to the CPU",
            hint="use device: CPU, or check the driver and the libraries of that provider",
        )
    layers = [
        Layer(node.name, profiles.kind(node, tried.provider), node.precision)
        for node in nodes
        if node.kind not in _NOT_COMPUTE
    ]
    return tried.inputs, tried.outputs, layers, len(fallen)


class _Session:
    """A session with IO binding: inputs stay bound, outputs stay where ONNX Runtime puts them."""

    def __init__(self, path: Path, device: str, threads: int, profile: Path | None = None) -> None:
        watch = Stopwatch()
        self._session = _open(path, device, threads, profile=profile)
        self.phases = Phases(None, watch.lap_ms())  # one call does both
        self._begin()

    def _begin(self) -> None:
        self.provider = str(self._session.get_providers()[0])
        self._binding = self._session.io_binding()
        self.inputs, self.outputs = _tensors(self._session.get_inputs()), _tensors(self._session.get_outputs())
        self._bound: dict[str, Any] = {}
        self._rows = -1

    def beside(self) -> _Session:
        """Another binding over the same loaded network."""
        other = object.__new__(_Session)
        other._session, other.phases = self._session, self.phases
        other._begin()
        return other

    def bind(self, feeds: Mapping[str, NDArray[Any]]) -> None:
        rows = len(next(iter(feeds.values())))
        for name, array in feeds.items():
            self._bound[name] = np.ascontiguousarray(array)
            self._binding.bind_cpu_input(name, self._bound[name])
        if rows != self._rows:  # another batch size needs outputs of another size
            self._rows = rows
            self._binding.clear_binding_outputs()
            for info in self.outputs:
                self._binding.bind_output(info.name, "cpu")

    def run(self) -> None:
        self._session.run_with_iobinding(self._binding)

    def fetch(self) -> Arrays:
        arrays = self._binding.copy_outputs_to_cpu()
        return {info.name: np.array(array) for info, array in zip(self.outputs, arrays)}  # noqa: B905  3.8 has no strict=

    def nodes(self) -> list[profiles.Node]:
        """What the profile of this session says; it is then at its end."""
        return profiles.read_nodes(Path(self._session.end_profiling()))

    def memory_bytes(self) -> int | None:
        return None  # ONNX Runtime does not say

    def close(self) -> None:
        del self._binding, self._session


def _module() -> Any:
    try:
        import onnxruntime
    except ImportError:
        raise UnavailableError("ONNX Runtime is not installed", hint="pip install onnxruntime") from None
    return onnxruntime


def _open(path: Path, device: str, threads: int, *, optimized: Path | None = None, profile: Path | None = None) -> Any:
    """A session on exactly the provider that was asked for: a silent fall-back to the CPU is an error."""
    module = _module()
    provider = provider_named(device, module.get_available_providers())
    options = module.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.execution_mode = module.ExecutionMode.ORT_SEQUENTIAL
    options.log_severity_level = 3
    options.add_session_config_entry(*EXACT)
    if optimized is not None:
        options.optimized_model_filepath = str(optimized)
    if profile is not None:
        options.enable_profiling, options.profile_file_prefix = True, str(profile)
    session = module.InferenceSession(str(path), options, providers=[provider])
    if session.get_providers()[0] != provider:
        raise UnavailableError(
            f"ONNX Runtime fell back from {provider} to {session.get_providers()[0]}",
            hint="check the driver and the provider's libraries; `edgekd doctor` shows them",
        )
    return session


def _tensors(arguments: Any) -> tuple[TensorInfo, ...]:
    return tuple(
        TensorInfo(a.name, _NUMPY.get(a.type, a.type), tuple(d if isinstance(d, int) else -1 for d in a.shape))
        for a in arguments
    )


def _layers(path: Path) -> list[Layer]:
    """Executed layers from the graph that ONNX Runtime optimized: integer kernels have names of their own."""
    import onnx

    graph = onnx.load(str(path)).graph
    floats = _float_types(graph)
    eight_bit = {n.output[0] for n in graph.node if n.op_type == "QuantizeLinear"}
    layers = []
    for node in graph.node:
        # What a ReLU6 cuts in 8 bits (export/flavours.py) is the end of the layer before it.
        if node.op_type in _NOT_COMPUTE or (node.op_type == "Clip" and node.input[0] in eight_bit):
            eight_bit |= (
                set(node.output)
                if node.input and node.input[0] in eight_bit and node.op_type != "DequantizeLinear"
                else set()
            )
            continue
        integer = node.op_type.startswith(_INTEGER)
        if node.op_type in _SAME_NAME and node.input[0] in eight_bit:
            integer = True
        if integer:
            eight_bit |= set(node.output)
        # A layer computes in the precision of what it reads.
        precision = "int8" if integer else next((floats[name] for name in node.input if name in floats), "f32")
        layers.append(Layer(node.name or node.output[0], node.op_type, precision))
    return layers


def _float_types(graph: Any) -> dict[str, str]:
    """f32 or f16 of every float tensor of an optimized graph; it may hold ONNX Runtime's own operations, which know no
    shape inference: what no Cast says has the type of the first float that its node reads."""
    names = {1: "f32", 10: "f16"}  # TensorProto.FLOAT, FLOAT16
    found = {t.name: names[t.data_type] for t in graph.initializer if t.data_type in names}
    for value in (*graph.input, *graph.output, *graph.value_info):
        if value.type.tensor_type.elem_type in names:
            found[value.name] = names[value.type.tensor_type.elem_type]
    for node in graph.node:
        if node.op_type == "Cast":
            kind = names.get(next(a.i for a in node.attribute if a.name == "to"))
        else:
            kind = next((found[name] for name in node.input if name in found), None)
        if kind is not None:
            found.update((name, kind) for name in node.output if name not in found)
    return found
