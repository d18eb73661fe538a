"""A TensorRT engine at work: buffers on the GPU, the profiler's times, the inspector's layers. Python 3.8."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgekd.errors import BenchError, UnavailableError
from edgekd.runtimes.protocol import Arrays, Layer, LayerTime, TensorInfo, executed_name, median_ms, run_for

_NO_CUDA_NOISE = "cudaError"  # the last log line of a build without a GPU says nothing about the build


class TensorRtSession:
    """One execution context on a stream of its own; host arrays are copied in by `bind` and out by `fetch`."""

    def __init__(self, trt: Any, path: Path, *, version_compatible: bool = False) -> None:
        self._cuda = _cuda()
        self._log = Log(trt)
        self._runtime = trt.Runtime(self._log.native)
        if version_compatible:
            # Such an engine carries the runtime that it needs, as host code.
            self._runtime.engine_host_code_allowed = True
        self._engine = self._runtime.deserialize_cuda_engine(path.read_bytes())
        if self._engine is None:
            raise UnavailableError(
                f"this GPU cannot load {path.name}: {self._log.last()}", hint="build it again on this device"
            )
        self._context = self._engine.create_execution_context()
        self._stream = self._cuda.cuda.Stream()
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
            raise BenchError(f"the engine did not run: {self._log.last()}", hint="build it again on this device")
        self._stream.synchronize()

    def fetch(self) -> Arrays:
        return {info.name: self._device[info.name].cpu().numpy() for info in self.outputs}

    def profile(self, runs: int, max_s: float) -> tuple[LayerTime, ...]:
        """Times from TensorRT's own profiler, precisions from its inspector."""
        times = _profiler(self._trt)
        self._context.profiler = times
        done = run_for(self.run, runs=runs, max_s=max_s)
        known = {layer.name: layer for layer in inspect(self._trt, self._engine)}
        found = []
        for name, each in times.ms.items():
            layer = known.get(name, Layer(name, "unknown", "unknown"))
            found.append(LayerTime(name, layer.kind, layer.precision, median_ms(each[-done:])))
        return tuple(found)

    def memory_bytes(self) -> int | None:
        """Scratch memory of the activations; weights lie beside it."""
        for name in ("device_memory_size_v2", "device_memory_size"):  # the second is gone since TensorRT 11
            size = getattr(self._engine, name, None)
            if size is not None:
                return int(size)
        return None

    def close(self) -> None:
        del self._context, self._engine, self._runtime

    def _is_input(self, name: str) -> bool:
        return bool(self._engine.get_tensor_mode(name) == self._trt.TensorIOMode.INPUT)

    def _tensor(self, name: str) -> TensorInfo:
        dtype = np.dtype(self._trt.nptype(self._engine.get_tensor_dtype(name))).name
        return TensorInfo(name, dtype, tuple(self._engine.get_tensor_shape(name)))


class Log:
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
        """The last error, or that there was none."""
        return self.lines[-1][:300] if self.lines else "it gave no reason"


def inspect(trt: Any, engine: Any) -> list[Layer]:
    """Layers of a built engine with the format of their first input, from the engine inspector."""
    inspector = engine.create_engine_inspector()
    document = json.loads(inspector.get_engine_information(trt.LayerInformationFormat.JSON))
    layers = []
    for layer in document.get("Layers", []):
        if isinstance(layer, dict):
            # A layer computes in the precision of what it reads: an int8 convolution may well write float16.
            tensors = layer.get("Inputs") or layer.get("Outputs") or [{}]
            words = [str(value) for key, value in tensors[0].items() if "datatype" in key.lower()]
            layers.append(Layer(str(layer.get("Name")), str(layer.get("LayerType")), tensor_precision(" ".join(words))))
    return layers


def tensor_precision(text: str) -> str:
    """The precision in the inspector's description of a tensor, such as `Thirty-two wide channel .. Int8 format`."""
    for word in text.replace(".", " ").replace(":", " ").split():
        name = executed_name(word)
        if name in ("f32", "f16", "bf16", "int8"):
            return name
    return "unknown"


def _profiler(trt: Any) -> Any:
    class Times(trt.IProfiler):
        def __init__(self) -> None:
            trt.IProfiler.__init__(self)
            self.ms: dict[str, list[float]] = {}

        def report_layer_time(self, layer_name: str, ms: float) -> None:
            self.ms.setdefault(layer_name, []).append(ms)

    return Times()


def _cuda() -> Any:
    """CUDA buffers and streams by torch: it is there wherever edgekd is installed."""
    try:
        import torch
    except ImportError:
        raise UnavailableError("running TensorRT needs torch with CUDA here", hint="pip install torch") from None
    if not torch.cuda.is_available():
        raise UnavailableError("the installed torch has no CUDA", hint="install a CUDA build of torch on this machine")
    return torch
