"""The few calls of CUDA that running an engine takes, through the driver's library: no toolkit, no torch. Python 3.8.

Streams and pointers are plain integers, as TensorRT takes them. Everything is in the primary context, which TensorRT
and torch use, too.
"""

from __future__ import annotations

import ctypes
import functools
import threading
from collections.abc import Callable
from typing import Any

import numpy as np

from edgekd.errors import BenchError, UnavailableError

_PORTABLE, _THREAD_LOCAL = 1, 1  # CU_MEMHOSTALLOC_PORTABLE, CU_STREAM_CAPTURE_MODE_THREAD_LOCAL
_OUT_OF_MEMORY = 2


class Cuda:
    """The driver of the first GPU."""

    def __init__(self, library: Any) -> None:
        self._library, self._thread = library, threading.local()
        self._context = ctypes.c_void_p()
        device = ctypes.c_int()
        self._do("cuInit", 0)
        self._do("cuDeviceGet", ctypes.byref(device), 0)
        self._do("cuDevicePrimaryCtxRetain", ctypes.byref(self._context), device)

    def enter(self) -> None:
        """Make the calling thread one that may use the GPU; once for each thread does it."""
        if not getattr(self._thread, "inside", False):
            self._do("cuCtxSetCurrent", self._context)
            self._thread.inside = True

    def allocate(self, size: int) -> int:
        """Memory on the device, in bytes."""
        found = ctypes.c_void_p()
        self._do("cuMemAlloc_v2", ctypes.byref(found), ctypes.c_size_t(max(1, size)))
        return int(found.value or 0)

    def free(self, pointer: int) -> None:
        """Give memory of the device back."""
        self._do("cuMemFree_v2", ctypes.c_void_p(pointer))

    def host_array(self, shape: tuple[int, ...], dtype: Any) -> tuple[int, Any]:
        """Memory of this machine that the device reads directly: what to free, and a numpy array over it."""
        size, pointer = int(np.prod(shape)) * np.dtype(dtype).itemsize, ctypes.c_void_p()
        self._do("cuMemHostAlloc", ctypes.byref(pointer), ctypes.c_size_t(max(1, size)), _PORTABLE)
        buffer = (ctypes.c_char * max(1, size)).from_address(int(pointer.value or 0))
        return int(pointer.value or 0), np.frombuffer(buffer, dtype=np.uint8, count=size).view(dtype).reshape(shape)

    def free_host(self, pointer: int) -> None:
        """Give memory of `host_array` back."""
        self._do("cuMemFreeHost", ctypes.c_void_p(pointer))

    def stream(self) -> int:
        """A queue of work."""
        found = ctypes.c_void_p()
        self._do("cuStreamCreate", ctypes.byref(found), 1)  # CU_STREAM_NON_BLOCKING
        return int(found.value or 0)

    def synchronize(self, stream: int) -> None:
        """Wait until a stream has nothing left to do."""
        self._do("cuStreamSynchronize", ctypes.c_void_p(stream))

    def to_device(self, pointer: int, array: Any, stream: int) -> None:
        """Queue a copy of an array's bytes."""
        source = ctypes.c_void_p(array.ctypes.data)
        self._do(
            "cuMemcpyHtoDAsync_v2",
            ctypes.c_void_p(pointer),
            source,
            ctypes.c_size_t(array.nbytes),
            ctypes.c_void_p(stream),
        )

    def to_host(self, array: Any, pointer: int, stream: int) -> None:
        """Queue a copy into an array."""
        target = ctypes.c_void_p(array.ctypes.data)
        self._do(
            "cuMemcpyDtoHAsync_v2",
            target,
            ctypes.c_void_p(pointer),
            ctypes.c_size_t(array.nbytes),
            ctypes.c_void_p(stream),
        )

    def time_ms(self, work: Callable[[], None], stream: int) -> float:
        """How long work on a stream took by the device's own clock: two events around it."""
        events = [ctypes.c_void_p(), ctypes.c_void_p()]
        for event in events:
            self._do("cuEventCreate", ctypes.byref(event), 0)
        try:
            self._do("cuEventRecord", events[0], ctypes.c_void_p(stream))
            work()
            self._do("cuEventRecord", events[1], ctypes.c_void_p(stream))
            self._do("cuEventSynchronize", events[1])
            found = ctypes.c_float()
            self._do("cuEventElapsedTime", ctypes.byref(found), *events)
        finally:
            for event in events:
                self._do("cuEventDestroy_v2", event)
        return float(found.value)

    def record(self, work: Callable[[], None], stream: int) -> int | None:
        """What work queues on a stream, as a graph that can be launched; None where some of it cannot be recorded."""
        graph, ready = ctypes.c_void_p(), ctypes.c_void_p()
        self._do("cuStreamBeginCapture_v2", ctypes.c_void_p(stream), _THREAD_LOCAL)
        try:
            work()
        except BenchError:
            self._call("cuStreamEndCapture", ctypes.c_void_p(stream), ctypes.byref(graph))
            return None
        if self._call("cuStreamEndCapture", ctypes.c_void_p(stream), ctypes.byref(graph)) or not graph.value:
            return None
        failed = self._call("cuGraphInstantiateWithFlags", ctypes.byref(ready), graph, ctypes.c_ulonglong(0))
        self._do("cuGraphDestroy", graph)
        return None if failed else int(ready.value or 0)

    def launch(self, graph: int, stream: int) -> None:
        """Queue a graph."""
        self._do("cuGraphLaunch", ctypes.c_void_p(graph), ctypes.c_void_p(stream))

    def forget(self, graph: int) -> None:
        """Give a graph back."""
        self._do("cuGraphExecDestroy", ctypes.c_void_p(graph))

    def close_stream(self, stream: int) -> None:
        """Give a stream back."""
        self._do("cuStreamDestroy_v2", ctypes.c_void_p(stream))

    def _do(self, name: str, *arguments: Any) -> None:
        code = self._call(name, *arguments)
        if code == _OUT_OF_MEMORY:
            raise BenchError("the GPU has not enough free memory", hint="lower the batch, or end what else uses it")
        if code:
            raise BenchError(f"CUDA refused {name} with error {code}", hint="`nvidia-smi` shows the GPU and its driver")

    def _call(self, name: str, *arguments: Any) -> int:
        return int(getattr(self._library, name)(*arguments))


@functools.lru_cache(maxsize=1)
def cuda() -> Cuda:
    """The driver of this machine; raises UnavailableError where there is none."""
    try:
        return Cuda(ctypes.CDLL("libcuda.so.1"))
    except (OSError, BenchError) as error:
        raise UnavailableError(f"CUDA cannot be used here: {error}", hint="install NVIDIA's driver") from None
