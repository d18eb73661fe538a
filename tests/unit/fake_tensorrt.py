"""TensorRT without TensorRT: what the adapter may use of versions 10 and 11, and nothing else.

Reading or setting any other name fails. Every call that matters is noted in `calls`. An engine is JSON.
"""

from __future__ import annotations

import enum
import json
import sys
from importlib.machinery import ModuleSpec
from types import ModuleType, SimpleNamespace

import numpy as np

VERSIONS = {10: "10.13.2.6", 11: "11.1.0.5"}
LAYERS = [
    {"Name": "stem", "LayerType": "CaskConvolution", "Inputs": [{"Format/Datatype": "Thirty-two wide .. Int8 format"}]},
    {"Name": "pool", "LayerType": "Reduce", "Inputs": [{"Datatype": "Half", "Format": "Row major linear"}]},
]


class Strict:
    """Only names that a class declares may be set."""

    def __setattr__(self, name, value):
        if not hasattr(type(self), name) and not name.startswith("_"):
            raise AttributeError(f"TensorRT's {type(self).__name__} has no {name!r} to set")
        object.__setattr__(self, name, value)


def _enum(name, *members):
    return enum.IntEnum(name, list(members), start=0)


def install(monkeypatch, major, *, version=None, gpu=None, architectures=None):
    """Put a fake `tensorrt` (or, with `architectures`, `tensorrt_rtx`) in place of the module; returns it."""
    name = "tensorrt" if architectures is None else "tensorrt_rtx"
    trt = make(major, version, architectures)
    trt.__spec__ = ModuleSpec(name, None)
    monkeypatch.setitem(sys.modules, name, trt)
    for place in ("edgekd.runtimes.tensorrt", "edgekd.runtimes.nvidia"):
        monkeypatch.setattr(f"{place}.has_gpu", lambda: gpu is not None)
    monkeypatch.setattr("edgekd.runtimes.tensorrt.gpu", lambda: gpu)
    monkeypatch.setattr("edgekd.runtimes.tensorrt.installed_version", lambda *_: trt.__version__)
    trt.cuda = FakeCuda()
    monkeypatch.setattr("edgekd.runtimes.tensorrt_session.cuda", lambda: trt.cuda)
    return trt


def make(major, version=None, architectures=None):
    trt = ModuleType("tensorrt")
    trt.__version__ = version or VERSIONS[major]
    trt.calls, trt.refuse, trt.build_fails = [], [], False
    trt.MemoryPoolType = _enum("MemoryPoolType", "WORKSPACE", "DLA_MANAGED_SRAM")
    trt.ProfilingVerbosity = _enum("ProfilingVerbosity", "LAYER_NAMES_ONLY", "NONE", "DETAILED")
    trt.TensorIOMode = _enum("TensorIOMode", "NONE", "INPUT", "OUTPUT")
    trt.LayerInformationFormat = _enum("LayerInformationFormat", "ONELINE", "JSON")
    trt.HardwareCompatibilityLevel = _enum("Level", "NONE", "AMPERE_PLUS", "SAME_COMPUTE_CAPABILITY")
    trt.BuilderFlag = _enum("BuilderFlag", "DEBUG", "VERSION_COMPATIBLE", *(["FP16", "INT8"] if major == 10 else []))
    trt.NetworkDefinitionCreationFlag = _enum("NetworkDefinitionCreationFlag", "EXPLICIT_BATCH", "STRONGLY_TYPED")
    if architectures is not None:
        trt.ComputeCapability = _enum("ComputeCapability", "NONE", "CURRENT", *architectures)
    trt.nptype = lambda dtype: dtype
    trt.ILogger = type("ILogger", (), {"Severity": _enum("Severity", "INTERNAL_ERROR", "ERROR", "WARNING", "INFO")})
    trt.IProfiler = type("IProfiler", (), {})
    for build in (_builder, _parser, _runtime):
        build(trt, major, architectures is not None)
    return trt


def _builder(trt, major, rtx):
    class Cache:
        def __init__(self, content):
            self.content = content

        def combine(self, other, ignore_mismatch):
            assert ignore_mismatch is False
            self.content += other.content
            return True

        def serialize(self):
            return self.content

    class Config(Strict):
        builder_optimization_level = None
        profiling_verbosity = None
        hardware_compatibility_level = trt.HardwareCompatibilityLevel.NONE
        if rtx:
            num_compute_capabilities = 0

            def set_compute_capability(self, one, index):
                assert index < self.num_compute_capabilities
                trt.calls.append(("compute_capability", one.name))
                return True
        else:

            def create_timing_cache(self, content):
                return None if content == b"broken" else Cache(content)

            def set_timing_cache(self, cache, ignore_mismatch):
                assert ignore_mismatch is False
                if cache.content == b"of another GPU":
                    return False
                trt.calls.append(("timings", cache.content))
                self._cache = cache
                return True

            def get_timing_cache(self):
                return getattr(self, "_cache", None)

        def __init__(self):
            self._flags, self._profiles = [], []

        def set_flag(self, flag):
            self._flags.append(flag.name)

        def set_memory_pool_limit(self, pool, size):
            trt.calls.append((pool.name, size))

        def add_optimization_profile(self, profile):
            self._profiles.append(profile)
            return 0

    class Profile:
        def set_shape(self, name, least, usual, most):
            assert least <= usual <= most
            trt.calls.append(("profile", name, least, usual, most))

    class Builder:
        def __init__(self, logger):
            assert isinstance(logger, trt.ILogger)
            self.logger = logger

        def create_network(self, flags):
            trt.calls.append(("network", flags))
            tensor = lambda name, *shape: SimpleNamespace(name=name, shape=shape, dtype=np.float32)  # noqa: E731
            x, y = tensor("image", -1, 3, 8, 8), tensor("logits", -1, 10)
            return SimpleNamespace(num_inputs=1, num_outputs=1, get_input=[x].__getitem__, get_output=[y].__getitem__)

        def create_builder_config(self):
            return Config()

        def create_optimization_profile(self):
            return Profile()

        def build_serialized_network(self, network, config):
            assert config._profiles, "a dynamic input needs a profile"
            trt.calls.append(("built", config.hardware_compatibility_level.name, tuple(config._flags)))
            if config.builder_optimization_level == 0 and trt.build_fails:
                self.logger.log(trt.ILogger.Severity.ERROR, "no kernel fits")
                self.logger.log(trt.ILogger.Severity.ERROR, "cudaError 35")
                return None
            if not rtx and config.get_timing_cache():
                config.get_timing_cache().content += b"+timed"
            return json.dumps(
                {"built_by": trt.__version__, "host_code": "VERSION_COMPATIBLE" in config._flags}
            ).encode()

    trt.Builder = Builder


def _parser(trt, major, rtx):
    class OnnxParser:
        def __init__(self, network, logger):
            self.num_errors = len(trt.refuse)

        def parse(self, content):
            return not trt.refuse

        def get_error(self, index):
            return SimpleNamespace(desc=lambda: trt.refuse[index])

    trt.OnnxParser = OnnxParser


def _runtime(trt, major, rtx):
    class Context(Strict):
        profiler = None

        def __init__(self):
            self._shape, self._at, self._runs = None, {}, 0

        def set_input_shape(self, name, shape):
            self._shape = shape
            return shape[0] <= 16

        def get_tensor_shape(self, name):
            return (self._shape[0], 10)

        def set_tensor_address(self, name, address):
            self._at[name] = address

        def execute_async_v3(self, stream):
            assert stream in trt.cuda.streams
            assert set(self._at) == {"image", "logits"}
            self._runs += 1
            if self.profiler is not None:
                for name, ms in (("stem", 9.0 if self._runs == 1 else 0.25), ("pool", 0.5)):
                    self.profiler.report_layer_time(name, ms)
            return True

    class Inspector:
        def get_engine_information(self, form):
            assert form == trt.LayerInformationFormat.JSON
            return json.dumps({"Layers": LAYERS})

    class Engine:
        num_io_tensors = 2
        device_memory_size_v2 = 4096
        if major == 10:
            device_memory_size = 4096

        def get_tensor_name(self, index):
            return ["image", "logits"][index]

        def get_tensor_mode(self, name):
            return trt.TensorIOMode.INPUT if name == "image" else trt.TensorIOMode.OUTPUT

        def get_tensor_dtype(self, name):
            return np.float32

        def get_tensor_shape(self, name):
            return (-1, 3, 8, 8) if name == "image" else (-1, 10)

        def create_execution_context(self):
            return Context()

        def create_engine_inspector(self):
            return Inspector()

    class Runtime(Strict):
        engine_host_code_allowed = False

        def __init__(self, logger):
            assert isinstance(logger, trt.ILogger)

        def deserialize_cuda_engine(self, plan):
            told = json.loads(plan)
            trt.calls.append(("deserialized", self.engine_host_code_allowed))
            return None if told["host_code"] and not self.engine_host_code_allowed else Engine()

    trt.Runtime = Runtime


class FakeCuda:
    """A device whose memory is a dict and whose clock is a script: what is queued takes the time that stands for it."""

    def __init__(self):
        self.device, self.host, self.streams, self.graphs = {}, {}, [], {}
        self.records, self.entered, self.queued = True, 0, []
        self.ms = {"to_device": 0.5, "to_host": 0.25, "graph": 1.0, "kernels": 2.0}
        self._next = 1000

    def _number(self):
        self._next += 1
        return self._next

    def enter(self):
        self.entered += 1

    def allocate(self, size):
        pointer = self._number()
        self.device[pointer] = bytes(size)
        return pointer

    def free(self, pointer):
        del self.device[pointer]

    def host_array(self, shape, dtype):
        pointer = self._number()
        self.host[pointer] = np.zeros(shape, dtype)
        return pointer, self.host[pointer]

    def free_host(self, pointer):
        del self.host[pointer]

    def stream(self):
        self.streams.append(self._number())
        return self.streams[-1]

    def close_stream(self, stream):
        self.streams.remove(stream)

    def synchronize(self, stream):
        assert stream in self.streams

    def to_device(self, pointer, array, stream):
        assert len(self.device[pointer]) == array.nbytes
        self.device[pointer] = array.tobytes()
        self.queued.append("to_device")

    def to_host(self, array, pointer, stream):
        array[...] = np.frombuffer(self.device[pointer], array.dtype).reshape(array.shape)
        self.queued.append("to_host")

    def time_ms(self, work, stream):
        self.queued.clear()
        work()
        return sum(self.ms[name] for name in self.queued or ["kernels"])

    def record(self, work, stream):
        if not self.records:
            return None
        work()
        graph = self._number()
        self.graphs[graph] = work
        return graph

    def launch(self, graph, stream):
        self.graphs[graph]()
        self.queued.append("graph")

    def forget(self, graph):
        del self.graphs[graph]
