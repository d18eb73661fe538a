"""A TensorRT engine at work: buffers on the GPU, the profiler's times, the inspector's layers. Python 3.8."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgekd.errors import BenchError, UnavailableError
from edgekd.runtimes.cuda import cuda
from edgekd.runtimes.protocol import (
    Arrays,
    DeviceTimes,
    Layer,
    LayerTime,
    Phases,
    Stopwatch,
    TensorInfo,
    executed_name,
    median_ms,
    run_for,
)

_NO_CUDA_NOISE = "cudaError"  # the last log line of a build without a GPU says nothing about the build


class TensorRtSession:
    """One execution context on a stream of its own; host arrays are copied in by `bind` and out by `fetch`."""

    def __init__(self, trt: Any, path: Path, *, version_compatible: bool = False) -> None:
        watch = Stopwatch()
        plan = path.read_bytes()
        read_ms = watch.lap_ms()
        self._log = Log(trt)
        self._cuda = cuda()
        self._cuda.enter()
        self._runtime = trt.Runtime(self._log.native)
        if version_compatible:
            # Such an engine carries the runtime that it needs, as host code.
            self._runtime.engine_host_code_allowed = True
        self._engine = self._runtime.deserialize_cuda_engine(plan)
        if self._engine is None:
            raise UnavailableError(
                f"this GPU cannot load {path.name}: {self._log.last()}", hint="build it again on this device"
            )
        self._trt = trt
        self._begin()
        self.phases = Phases(read_ms, watch.lap_ms())

    def beside(self) -> TensorRtSession:
        """Another context over the same engine, with a stream and buffers of its own."""
        other = object.__new__(TensorRtSession)
        other._log, other._cuda, other._runtime = self._log, self._cuda, self._runtime
        other._engine, other._trt, other.phases = self._engine, self._trt, self.phases
        other._begin()
        return other

    def _begin(self) -> None:
        self._context = self._engine.create_execution_context()
        self._stream = self._cuda.stream()
        self._device: dict[str, int] = {}
        self._host: dict[str, tuple[int, NDArray[Any]]] = {}
        names = [self._engine.get_tensor_name(i) for i in range(self._engine.num_io_tensors)]
        self.inputs = tuple(self._tensor(n) for n in names if self._is_input(n))
        self.outputs = tuple(self._tensor(n) for n in names if not self._is_input(n))

    def bind(self, feeds: Mapping[str, NDArray[Any]]) -> None:
        self._cuda.enter()
        for name, array in feeds.items():
            if not self._context.set_input_shape(name, tuple(array.shape)):
                raise BenchError(
                    f"the engine takes no input {tuple(array.shape)}", hint="raise the target's `max_batch`"
                )
            self._buffer(name, tuple(array.shape), array.dtype)[...] = array
        for info in self.outputs:
            self._buffer(info.name, tuple(self._context.get_tensor_shape(info.name)), np.dtype(info.dtype))
        self._copy_in()
        self._cuda.synchronize(self._stream)

    def run(self) -> None:
        self._cuda.enter()
        self._queue()
        self._cuda.synchronize(self._stream)

    def fetch(self) -> Arrays:
        self._cuda.enter()
        self._copy_out()
        self._cuda.synchronize(self._stream)
        return {info.name: np.array(self._host[info.name][1]) for info in self.outputs}

    def device_times(self, runs: int) -> DeviceTimes:
        """Copies and kernels apart, by CUDA events; copies are from and to pinned memory."""
        self._cuda.enter()
        self.run()  # TensorRT records no graph of a context that never ran with these shapes
        graph = self._cuda.record(self._queue, self._stream)
        steps: dict[str, Callable[[], None]] = {"h2d": self._copy_in, "compute": self._queue, "d2h": self._copy_out}
        if graph is not None:
            steps["graph"] = lambda: self._cuda.launch(graph, self._stream)
        times: dict[str, list[float]] = {name: [] for name in steps}
        for _ in range(runs):
            for name, step in steps.items():
                times[name].append(self._cuda.time_ms(step, self._stream))
        if graph is not None:
            self._cuda.forget(graph)
        found = {name: median_ms(each) for name, each in times.items()}
        return DeviceTimes(found["compute"], found.get("graph"), found["h2d"], found["d2h"])

    def _queue(self) -> None:
        if not self._context.execute_async_v3(self._stream):
            raise BenchError(f"the engine did not run: {self._log.last()}", hint="build it again on this device")

    def _copy_in(self) -> None:
        for info in self.inputs:
            self._cuda.to_device(self._device[info.name], self._host[info.name][1], self._stream)

    def _copy_out(self) -> None:
        for info in self.outputs:
            self._cuda.to_host(self._host[info.name][1], self._device[info.name], self._stream)

    def _buffer(self, name: str, shape: tuple[int, ...], dtype: Any) -> NDArray[Any]:
        """The host side of a tensor's two buffers, which are made anew when its shape changes."""
        there = self._host.get(name)
        if there is None or there[1].shape != shape or there[1].dtype != dtype:
            self._free(name)
            self._host[name] = self._cuda.host_array(shape, dtype)
            self._device[name] = self._cuda.allocate(self._host[name][1].nbytes)
            self._context.set_tensor_address(name, self._device[name])
        return self._host[name][1]

    def _free(self, name: str) -> None:
        if name in self._device:
            self._cuda.free(self._device.pop(name))
        if name in self._host:
            self._cuda.free_host(self._host.pop(name)[0])

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
        self._cuda.enter()
        self._cuda.synchronize(self._stream)
        for name in [*self._host]:
            self._free(name)
        self._cuda.close_stream(self._stream)
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
