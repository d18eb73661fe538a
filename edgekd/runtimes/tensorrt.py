"""TensorRT 10, TensorRT 11 and TensorRT for RTX: one adapter with a small branch for each (ENGINES.md).

All three are used strongly typed: precision is in the graph (float16 tensors, explicit Q/DQ), never in a builder flag.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgekd.errors import CompileError, UnavailableError, install_hint
from edgekd.runtimes import tensorrt_manifest as manifest
from edgekd.runtimes import timing_cache
from edgekd.runtimes.nvidia import dotted, gpu, has_gpu
from edgekd.runtimes.protocol import (
    Build,
    Device,
    Layer,
    LayerTime,
    Support,
    TensorInfo,
    check_capabilities,
    installed_version,
)
from edgekd.runtimes.registry import FLAVOURS, OLDEST
from edgekd.runtimes.tensorrt_session import Log, TensorRtSession, inspect


class TensorRt:
    """TensorRT 10 and 11: builds and runs on the GPU that it will be used on."""

    name = "tensorrt"
    module_name = "tensorrt"
    extra = "tensorrt"
    precisions = tuple(FLAVOURS[name])

    def version(self) -> str:
        with contextlib.suppress(UnavailableError):
            if importlib.util.find_spec(self.module_name) is not None:
                return installed_version(self.module_name, "")
        raise UnavailableError(f"{self.module_name} is not installed", hint=install_hint(self.extra, self.extra))

    def flavour(self, precision: str) -> str:
        return FLAVOURS[self.name][precision]

    def check(self, device: str, *, run: bool, precisions: Sequence[str] = ()) -> None:
        version, oldest = self.version(), OLDEST[self.name]
        if int(version.partition(".")[0]) < oldest:
            raise UnavailableError(
                f"{self.name} {version} is too old: it has no strongly typed networks",
                hint=f"install {self.name} {oldest} or later; on a Jetson it comes with JetPack 6.1",
            )
        if not has_gpu():
            raise UnavailableError(
                f"{self.name} needs an NVIDIA GPU, and none is here",
                hint="run this on the device, or build with runtime: tensorrt_rtx, which needs no GPU",
            )
        self._check_bf16(precisions)

    def _check_bf16(self, precisions: Sequence[str]) -> None:
        """Refuse bf16 where the GPU of this machine is older than it; a GPU that says nothing is let pass."""
        found = gpu()
        capability = found.compute_capability if found is not None else None
        if "bf16" in precisions and found is not None and capability and int(capability.partition(".")[0]) < 8:
            raise UnavailableError(
                f"bf16 needs compute capability 8.0, this GPU ({found.name}) has {capability}",
                hint="use f16, or run this on a GPU from compute capability 8.0 on",
            )

    def compile(self, onnx: Path, folder: Path, *, device: str, threads: int, options: Mapping[str, Any]) -> Build:
        trt = self._module()
        logger = Log(trt)
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
        self._take_timings(config, options)
        engine = builder.build_serialized_network(network, config)
        self._keep_timings(config, options)
        if engine is None:
            raise CompileError(
                f"{self.name} {self.version()} built no engine from {onnx.name}: {logger.last()}",
                hint="lower `max_batch`, raise `workspace_bytes`, or run with --log-format json to see its log",
            )
        (folder / "engine.plan").write_bytes(bytes(engine))
        return self._describe(trt, logger, network, folder, options)

    def load(self, path: Path, *, device: str, threads: int) -> TensorRtSession:
        facts = manifest.read(path)
        manifest.check(path, facts, runtime=self.name, version=self.version(), gpu=gpu())
        if not has_gpu():
            raise UnavailableError(
                f"{self.name} engines run on an NVIDIA GPU, and none is here",
                hint="run this target on the device; it was built, not measured",
            )
        return TensorRtSession(self._module(), path, version_compatible=bool(facts.get("version_compatible")))

    def load_streams(self, path: Path, *, device: str, threads: int, streams: int) -> list[TensorRtSession]:
        first = self.load(path, device=device, threads=threads)
        return [first, *(first.beside() for _ in range(streams - 1))]

    def profile(
        self, path: Path, feeds: Mapping[str, NDArray[Any]], *, device: str, threads: int, runs: int, max_s: float
    ) -> tuple[LayerTime, ...]:
        session = self.load(path, device=device, threads=threads)
        try:
            session.bind(feeds)
            return session.profile(runs, max_s)
        finally:
            session.close()

    def supports(self) -> Support:
        self.version()
        found = gpu()
        return Support(() if found is None else (Device("GPU", found.name, (), found.compute_capability),))

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
        usual = int(options.get("opt_batch") or min(8, largest))
        profile = builder.create_optimization_profile()
        for i in range(network.num_inputs):
            tensor = network.get_input(i)
            rest = tuple(tensor.shape)[1:]
            profile.set_shape(tensor.name, (1, *rest), (usual, *rest), (largest, *rest))
        config.add_optimization_profile(profile)
        self._make_portable(trt, config, options)

    def _make_portable(self, trt: Any, config: Any, options: Mapping[str, Any]) -> None:
        """Which GPUs and which versions of TensorRT the engine is for."""
        level = str(options.get("hardware_compatibility") or "none").upper()
        if level != "NONE":
            if not hasattr(trt.HardwareCompatibilityLevel, level):
                raise CompileError(
                    f"{self.name} {self.version()} has no hardware_compatibility: {level.lower()}",
                    hint="leave it out, or install a later TensorRT",
                )
            config.hardware_compatibility_level = getattr(trt.HardwareCompatibilityLevel, level)
        if options.get("version_compatible"):
            config.set_flag(trt.BuilderFlag.VERSION_COMPATIBLE)

    def _take_timings(self, config: Any, options: Mapping[str, Any]) -> None:
        timing_cache.take(config, self._timings(options))

    def _keep_timings(self, config: Any, options: Mapping[str, Any]) -> None:
        timing_cache.keep(config, self._timings(options))

    def _timings(self, options: Mapping[str, Any]) -> Path:
        given, found = options.get("timing_cache"), gpu()
        return Path(given) if given else timing_cache.usual_place(self.version(), found.name if found else None)

    def _built_for(self, options: Mapping[str, Any]) -> dict[str, Any]:
        """What `load` must find again; null where nothing is asked."""
        found, level = gpu(), options.get("hardware_compatibility")
        return {
            "gpu": found.name if found else None,
            "compute_capability": found.compute_capability if found else None,
            "hardware_compatibility": None if level == "none" else level,
            "version_compatible": bool(options.get("version_compatible")),
        }

    def _describe(self, trt: Any, logger: Log, network: Any, folder: Path, options: Mapping[str, Any]) -> Build:
        """Inputs, outputs, layers (where a GPU lets the engine be opened), and the manifest that loading checks."""
        facts: dict[str, Any] = {"runtime": self.name, "version": self.version(), **self._built_for(options)}
        manifest.write(folder, facts)
        inputs = tuple(_info(trt, network.get_input(i)) for i in range(network.num_inputs))
        outputs = tuple(_info(trt, network.get_output(i)) for i in range(network.num_outputs))
        layers: tuple[Layer, ...] = ()
        if has_gpu():
            loader = trt.Runtime(logger.native)
            if facts["version_compatible"]:
                loader.engine_host_code_allowed = True
            engine = loader.deserialize_cuda_engine((folder / "engine.plan").read_bytes())
            layers = tuple(inspect(trt, engine)) if engine is not None else ()
        return Build("engine.plan", inputs, outputs, layers, facts)


class TensorRtRtx(TensorRt):
    """TensorRT for RTX: builds for named GPU architectures on a machine without a GPU."""

    name = "tensorrt_rtx"
    module_name = "tensorrt_rtx"
    extra = "tensorrt-rtx"

    def check(self, device: str, *, run: bool, precisions: Sequence[str] = ()) -> None:
        self.version()
        if run and not has_gpu():
            raise UnavailableError(
                "tensorrt_rtx engines run on an NVIDIA GPU, and none is here",
                hint="leave `evaluate` and `bench` to the device: the build itself needs no GPU",
            )
        if run:
            self._check_bf16(precisions)

    def _network_flags(self, trt: Any) -> int:
        return 0

    def _configure(self, trt: Any, builder: Any, network: Any, config: Any, options: Mapping[str, Any]) -> None:
        super()._configure(trt, builder, network, config, options)
        wanted = [dotted(capability) for capability in options.get("compute_capabilities") or ()]
        check_capabilities(self, wanted)
        if wanted:
            config.num_compute_capabilities = len(wanted)
            for i, capability in enumerate(wanted):
                name = f"SM{capability.replace('.', '')}"
                config.set_compute_capability(getattr(trt.ComputeCapability, name), i)

    def _make_portable(self, trt: Any, config: Any, options: Mapping[str, Any]) -> None:
        """Here by compute capabilities; there is one version of RTX for an engine."""

    def _take_timings(self, config: Any, options: Mapping[str, Any]) -> None:
        """RTX times nothing when it builds."""

    def _keep_timings(self, config: Any, options: Mapping[str, Any]) -> None:
        """RTX times nothing when it builds."""

    def _built_for(self, options: Mapping[str, Any]) -> dict[str, Any]:
        """Nothing of this machine: without named architectures RTX builds for 8.0 and all later ones."""
        named = [dotted(c) for c in options.get("compute_capabilities") or ()]
        portable = {"hardware_compatibility": None if named else "ampere_plus", "version_compatible": False}
        return {"compute_capabilities": named, **portable}

    def supports(self) -> Support:
        return Support(super().supports().devices, tuple(map(dotted, _architectures(self._module()))))


def _architectures(trt: Any) -> list[str]:
    """The GPU architectures that RTX builds for, from the oldest: SM75, .."""
    names = [name for name in dir(trt.ComputeCapability) if name.startswith("SM")]
    return sorted(names, key=lambda name: int(name[2:]))


def _info(trt: Any, tensor: Any) -> TensorInfo:
    return TensorInfo(tensor.name, np.dtype(trt.nptype(tensor.dtype)).name, tuple(int(d) for d in tensor.shape))
