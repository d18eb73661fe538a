"""TensorRT 10, TensorRT 11 and TensorRT for RTX: one adapter with a small branch for each (ENGINES.md).

All three are used strongly typed: precision is in the graph (float16 tensors, explicit Q/DQ), never in a builder flag.
"""

from __future__ import annotations

import importlib
import importlib.util
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgekd.errors import BenchError, CompileError, UnavailableError
from edgekd.runtimes.protocol import Arrays, Build, Layer, TensorInfo, executed_name, installed_version

_FLAVOURS = {"f32": "f32", "f16": "f16", "bf16": "bf16", "int8": "int8_f16"}
_MANIFEST = "engine.json"
_NO_CUDA_NOISE = "cudaError"  # the last log line of a build without a GPU says nothing about the build


class TensorRt:
    """TensorRT 10 and 11: builds and runs on the GPU that it will be used on."""

    name = "tensorrt"
    module_name = "tensorrt"
    install = "pip install 'edgekd[tensorrt]'"
    precisions = tuple(_FLAVOURS)

    def version(self) -> str:
        if importlib.util.find_spec(self.module_name) is None:
            raise UnavailableError(f"{self.module_name} is not installed", hint=self.install)
        return installed_version(self.module_name, self.install)

    def flavour(self, precision: str) -> str:
        return _FLAVOURS[precision]

    def check(self, device: str, *, run: bool, precisions: Sequence[str] = ()) -> None:
        self.version()
        if not has_gpu():
            raise UnavailableError(
                f"{self.name} needs an NVIDIA GPU, and none is here",
                hint="run this on the device, or build with runtime: tensorrt_rtx, which needs no GPU",
            )

    def compile(self, onnx: Path, folder: Path, *, device: str, threads: int, options: Mapping[str, Any]) -> Build:
        trt = self._module()
        logger = _Log(trt)
        builder = trt.Builder(logger.native)
        network = builder.create_network(self._network_flags(trt))
        parser = trt.OnnxParser(network, logger.native)
        if not parser.parse(onnx.read_bytes()):
            reasons = [str(parser.get_error(i).desc()) for i in range(parser.num_errors)]
            raise CompileError(
                f"{self.name} {self.version()} refused {onnx.name}: {'; '.join(reasons)[:300]}",
                hint="this engine takes int8 Q/DQ with zero points 0 only, and standard ONNX operations",
            )
        config = builder.create_builder_config()
        self._configure(trt, builder, network, config, options)
        engine = builder.build_serialized_network(network, config)
        if engine is None:
            raise CompileError(
                f"{self.name} {self.version()} built no engine from {onnx.name}: {logger.last()}",
                hint="lower `max_batch`, raise `workspace_bytes`, or run with --log-format json to see its log",
            )
        (folder / "engine.plan").write_bytes(bytes(engine))
        return self._describe(trt, logger, network, folder, options)

    def load(self, path: Path, *, device: str, threads: int) -> _Session:
        facts = json.loads((path.parent / _MANIFEST).read_text())
        if facts["version"] != self.version():
            raise UnavailableError(
                f"{path.name} was built by {self.name} {facts['version']}, here is {self.version()}",
                hint="build it again here: an engine belongs to one version",
            )
        gpu = _gpu_name()
        if gpu is not None and facts.get("gpu") not in (None, gpu) and not facts.get("compute_capabilities"):
            raise UnavailableError(
                f"{path.name} was built on {facts['gpu']}, here is {gpu}", hint="build it again here"
            )
        if not has_gpu():
            raise UnavailableError(
                f"{self.name} engines run on an NVIDIA GPU, and none is here",
                hint="run this target on the device; it was built, not measured",
            )
        return _Session(self._module(), path, self.install)

    def _module(self) -> Any:
        self.version()
        return importlib.import_module(self.module_name)

    def _network_flags(self, trt: Any) -> int:
        """TensorRT 11 is always strongly typed; 10 (Jetson) has to be told."""
        if int(trt.__version__.split(".")[0]) >= 11:
            return 0
        return 1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED)

    def _configure(self, trt: Any, builder: Any, network: Any, config: Any, options: Mapping[str, Any]) -> None:
        config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, int(options.get("workspace_bytes", 1 << 30)))
        config.builder_optimization_level = int(options.get("optimization_level", 3))
        config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED
        largest = int(options.get("max_batch", 64))
        profile = builder.create_optimization_profile()
        for i in range(network.num_inputs):
            tensor = network.get_input(i)
            rest = tuple(tensor.shape)[1:]
            profile.set_shape(tensor.name, (1, *rest), (min(8, largest), *rest), (largest, *rest))
        config.add_optimization_profile(profile)

    def _describe(self, trt: Any, logger: _Log, network: Any, folder: Path, options: Mapping[str, Any]) -> Build:
        """Inputs, outputs, layers (where a GPU lets the engine be opened), and the manifest that loading checks."""
        facts: dict[str, Any] = {"runtime": self.name, "version": self.version(), "gpu": _gpu_name()}
        facts["compute_capabilities"] = [str(c) for c in options.get("compute_capabilities", ())]
        (folder / _MANIFEST).write_text(json.dumps(facts, sort_keys=True, indent=1))
        inputs = tuple(_info(trt, network.get_input(i)) for i in range(network.num_inputs))
        outputs = tuple(_info(trt, network.get_output(i)) for i in range(network.num_outputs))
        layers: tuple[Layer, ...] = ()
        if has_gpu():
            engine = trt.Runtime(logger.native).deserialize_cuda_engine((folder / "engine.plan").read_bytes())
            layers = tuple(_inspect(trt, engine)) if engine is not None else ()
        return Build("engine.plan", inputs, outputs, layers, facts)


class TensorRtRtx(TensorRt):
    """TensorRT for RTX: builds for named GPU architectures on a machine without a GPU."""

    name = "tensorrt_rtx"
    module_name = "tensorrt_rtx"
    install = "pip install 'edgekd[tensorrt-rtx]'"

    def check(self, device: str, *, run: bool, precisions: Sequence[str] = ()) -> None:
        self.version()
        if run and not has_gpu():
            raise UnavailableError(
                "tensorrt_rtx engines run on an NVIDIA GPU, and none is here",
                hint="leave `evaluate` and `bench` to the device: the build itself needs no GPU",
            )

    def _network_flags(self, trt: Any) -> int:
        return 0

    def _configure(self, trt: Any, builder: Any, network: Any, config: Any, options: Mapping[str, Any]) -> None:
        super()._configure(trt, builder, network, config, options)
        names = [
            f"SM{str(c).replace('.', '').upper().replace('SM', '')}" for c in options.get("compute_capabilities", ())
        ]
        known = [n for n in dir(trt.ComputeCapability) if n.startswith("SM")]
        for name in names:
            if name not in known:
                raise CompileError(
                    f"tensorrt_rtx cannot build for {name}",
                    hint=f"compute_capabilities may hold: {', '.join(sorted(_dotted(n) for n in known))}",
                )
        if names:
            config.num_compute_capabilities = len(names)
            for i, name in enumerate(names):
                config.set_compute_capability(getattr(trt.ComputeCapability, name), i)


class _Session:
    """One execution context on a stream of its own; host arrays are copied in by `bind` and out by `fetch`."""

    def __init__(self, trt: Any, path: Path, install: str) -> None:
        self._cuda = _cuda()
        self._logger = _Log(trt)
        self._runtime = trt.Runtime(self._logger.native)
        self._engine = self._runtime.deserialize_cuda_engine(path.read_bytes())
        if self._engine is None:
            raise UnavailableError(
                f"this GPU cannot load {path.name}: {self._logger.last()}", hint="build it again on this device"
            )
        self._context = self._engine.create_execution_context()
        self._stream = self._cuda.Stream()
        self._trt = trt
        self._device: dict[str, Any] = {}
        names = [self._engine.get_tensor_name(i) for i in range(self._engine.num_io_tensors)]
        self.inputs = tuple(self._tensor(n) for n in names if self._is_input(n))
        self.outputs = tuple(self._tensor(n) for n in names if not self._is_input(n))

    def bind(self, feeds: Mapping[str, NDArray[Any]]) -> None:
        for name, array in feeds.items():
            self._device[name] = self._cuda.as_tensor(np.ascontiguousarray(array), device="cuda")
            if not self._context.set_input_shape(name, tuple(array.shape)):
                raise BenchError(
                    f"the engine takes no input {tuple(array.shape)}", hint="raise the target's `max_batch`"
                )
            self._context.set_tensor_address(name, self._device[name].data_ptr())
        for info in self.outputs:
            shape = tuple(self._context.get_tensor_shape(info.name))
            self._device[info.name] = self._cuda.empty(shape, dtype=getattr(self._cuda, info.dtype), device="cuda")
            self._context.set_tensor_address(info.name, self._device[info.name].data_ptr())

    def run(self) -> None:
        if not self._context.execute_async_v3(self._stream.cuda_stream):
            raise BenchError(f"the engine did not run: {self._logger.last()}", hint="build it again on this device")
        self._stream.synchronize()

    def fetch(self) -> Arrays:
        return {info.name: self._device[info.name].cpu().numpy() for info in self.outputs}

    def close(self) -> None:
        del self._context, self._engine, self._runtime

    def _is_input(self, name: str) -> bool:
        return bool(self._engine.get_tensor_mode(name) == self._trt.TensorIOMode.INPUT)

    def _tensor(self, name: str) -> TensorInfo:
        dtype = np.dtype(self._trt.nptype(self._engine.get_tensor_dtype(name))).name
        return TensorInfo(name, dtype, tuple(self._engine.get_tensor_shape(name)))


class _Log:
    """TensorRT's logger, kept quiet; remembers the last error for our message."""

    def __init__(self, trt: Any) -> None:
        lines: list[str] = []
        self.lines = lines

        class Native(trt.ILogger):
            def __init__(self) -> None:
                trt.ILogger.__init__(self)

            def log(self, severity: Any, text: str) -> None:
                if severity <= trt.ILogger.Severity.ERROR and _NO_CUDA_NOISE not in text:
                    lines.append(text)

        self.native = Native()

    def last(self) -> str:
        return self.lines[-1][:300] if self.lines else "it gave no reason"


def _dotted(name: str) -> str:
    """SM86 as a pipeline file writes it: "8.6"."""
    digits = name[len("SM") :]
    return f"{digits[:-1]}.{digits[-1]}"


def has_gpu() -> bool:
    """Whether an NVIDIA GPU and its driver are here, without loading any CUDA library."""
    return Path("/dev/nvidia0").exists() or Path("/dev/nvhost-gpu").exists() or Path("/dev/nvgpu").exists()


def _gpu_name() -> Any:
    for folder in sorted(Path("/proc/driver/nvidia/gpus").glob("*/information")):
        for line in folder.read_text().splitlines():
            if line.startswith("Model:"):
                return line.split(":", 1)[1].strip()
    return None


def _cuda() -> Any:
    """CUDA buffers and streams by torch: it is there wherever edgekd is installed."""
    try:
        import torch
    except ImportError:
        raise UnavailableError("running TensorRT needs torch with CUDA here", hint="pip install torch") from None
    if not torch.cuda.is_available():
        raise UnavailableError("the installed torch has no CUDA", hint="install a CUDA build of torch on this machine")
    return torch


def _info(trt: Any, tensor: Any) -> TensorInfo:
    return TensorInfo(tensor.name, np.dtype(trt.nptype(tensor.dtype)).name, tuple(int(d) for d in tensor.shape))


def _inspect(trt: Any, engine: Any) -> list[Layer]:
    """Layers of a built engine with the format of their first output, from the engine inspector."""
    inspector = engine.create_engine_inspector()
    document = json.loads(inspector.get_engine_information(trt.LayerInformationFormat.JSON))
    layers = []
    for layer in document.get("Layers", []):
        if isinstance(layer, dict):
            # A layer computes in the precision of what it reads: an int8 convolution may well write float16.
            tensors = layer.get("Inputs") or layer.get("Outputs") or [{}]
            precision = tensor_precision(str(tensors[0].get("Format/Datatype", "")))
            layers.append(Layer(str(layer.get("Name")), str(layer.get("LayerType")), precision))
    return layers


def tensor_precision(text: str) -> str:
    """The precision in the inspector's description of a tensor, such as `Thirty-two wide channel .. Int8 format`."""
    for word in text.replace(".", " ").replace(":", " ").split():
        name = executed_name(word)
        if name in ("f32", "f16", "bf16", "int8"):
            return name
    return "unknown"
