"""Every branch of the TensorRT adapter without a GPU, against a fake of TensorRT 10, 11 and RTX that knows no more."""

from __future__ import annotations

import ctypes
import json
import threading

import fake_tensorrt
import numpy as np
import pytest

from edgekd.errors import BenchError, CompileError, UnavailableError
from edgekd.runtimes import nvidia, timing_cache
from edgekd.runtimes.cuda import Cuda
from edgekd.runtimes.nvidia import Gpu, dotted
from edgekd.runtimes.protocol import DeviceTimes, TimedByDevice, check_capabilities
from edgekd.runtimes.registry import runtime
from edgekd.runtimes.tensorrt_session import tensor_precision
from edgekd.stages.settings import TargetSettings

AMPERE, ADA, TURING = Gpu("NVIDIA A10", "8.6"), Gpu("NVIDIA L4", "8.9"), Gpu("NVIDIA T4", "7.5")
ARCHITECTURES = ("SM75", "SM80", "SM86", "SM89", "SM120", "SM121")
FEEDS = {"image": np.zeros((2, 3, 8, 8), np.float32)}


@pytest.fixture(autouse=True)
def _cache_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture
def build(tmp_path, monkeypatch):
    """Build with a fake of some version on some GPU; returns the fake, what was built, and the engine's path."""

    def run(major=11, *, gpu=AMPERE, name="tensorrt", version=None, **options):
        architectures = ARCHITECTURES if name == "tensorrt_rtx" else None
        trt = fake_tensorrt.install(monkeypatch, major, version=version, gpu=gpu, architectures=architectures)
        (tmp_path / "net.onnx").write_bytes(b"onnx")
        built = runtime(name).compile(tmp_path / "net.onnx", tmp_path, device="GPU", threads=1, options=options)
        return trt, built, tmp_path / built.file

    return run


def load(path, name="tensorrt"):
    return runtime(name).load(path, device="GPU", threads=1)


@pytest.mark.parametrize(("major", "flags"), [(10, 2), (11, 0)])
def test_precision_comes_from_the_graph_in_both_versions(build, major, flags):
    trt, built, _ = build(major)
    assert ("network", flags) in trt.calls
    assert [(layer.name, layer.kind, layer.precision) for layer in built.layers] == [
        ("stem", "CaskConvolution", "int8"),
        ("pool", "Reduce", "f16"),
    ]


def test_options_reach_the_builder(build, tmp_path):
    trt, _, path = build(
        max_batch=32,
        opt_batch=4,
        workspace_bytes=1 << 20,
        optimization_level=5,
        hardware_compatibility="same_compute_capability",
        version_compatible=True,
    )
    assert ("profile", "image", (1, 3, 8, 8), (4, 3, 8, 8), (32, 3, 8, 8)) in trt.calls
    assert ("WORKSPACE", 1 << 20) in trt.calls
    assert ("built", "SAME_COMPUTE_CAPABILITY", ("VERSION_COMPATIBLE",)) in trt.calls
    assert json.loads((path.parent / "engine.json").read_text()) == {
        "runtime": "tensorrt",
        "version": "11.1.0.5",
        "gpu": "NVIDIA A10",
        "compute_capability": "8.6",
        "hardware_compatibility": "same_compute_capability",
        "version_compatible": True,
    }


def test_nothing_portable_is_asked_for_by_default(build):
    trt, _, _ = build(max_batch=4)
    assert ("built", "NONE", ()) in trt.calls
    assert ("profile", "image", (1, 3, 8, 8), (4, 3, 8, 8), (4, 3, 8, 8)) in trt.calls


def test_a_graph_that_is_refused_and_a_build_that_fails_say_why(build, monkeypatch, tmp_path):
    trt, _, _ = build()
    trt.refuse = ["Q/DQ: zero point is not 0"]
    with pytest.raises(CompileError, match=r"refused net\.onnx: Q/DQ: zero point is not 0"):
        runtime("tensorrt").compile(tmp_path / "net.onnx", tmp_path, device="GPU", threads=1, options={})
    trt.refuse, trt.build_fails = [], True
    with pytest.raises(CompileError, match=r"built no engine from net\.onnx: no kernel fits"):
        runtime("tensorrt").compile(
            tmp_path / "net.onnx", tmp_path, device="GPU", threads=1, options={"optimization_level": 0}
        )


def test_the_second_build_is_given_the_times_of_the_first(build, tmp_path):
    file = tmp_path / "timing" / "t.cache"
    first, _, _ = build(timing_cache=str(file))
    assert ("timings", b"") in first.calls
    second, _, _ = build(timing_cache=str(file))
    assert ("timings", b"+timed") in second.calls
    usual = timing_cache.usual_place("11.1.0.5", "NVIDIA A10")
    assert not usual.exists()
    build()
    assert usual.read_bytes() == b"+timed"
    assert usual.name == "tensorrt-11.1.0.5-NVIDIA_A10.cache"


@pytest.mark.parametrize("content", [b"broken", b"of another GPU"])
def test_a_timing_cache_of_no_use_is_begun_anew(build, tmp_path, content):
    file = tmp_path / "t.cache"
    file.write_bytes(content)
    trt, _, _ = build(timing_cache=str(file))
    assert ("timings", b"") in trt.calls
    assert file.read_bytes().startswith(b"+timed")


def test_a_timing_cache_that_cannot_be_written_stops_no_build(build, tmp_path):
    (tmp_path / "file").write_text("")
    build(timing_cache=str(tmp_path / "file" / "t.cache"))


@pytest.mark.parametrize("major", [10, 11])
def test_an_engine_runs_is_profiled_and_says_its_memory(build, major):
    _, _, path = build(major)
    session = load(path)
    session.bind(FEEDS)
    session.run()
    assert session.fetch()["logits"].shape == (2, 10)
    assert session.memory_bytes() == 4096
    with pytest.raises(BenchError, match=r"takes no input \(32, 3, 8, 8\)"):
        session.bind({"image": np.zeros((32, 3, 8, 8), np.float32)})
    session.close()
    layers = runtime("tensorrt").profile(path, FEEDS, device="GPU", threads=1, runs=4, max_s=5.0)
    assert [vars(layer) for layer in layers] == [
        {"name": "stem", "kind": "CaskConvolution", "precision": "int8", "ms": 0.25},  # the slow first run is not in it
        {"name": "pool", "kind": "Reduce", "precision": "f16", "ms": 0.5},
    ]


def test_kernels_and_copies_are_timed_apart_by_the_devices_clock(build):
    trt, _, path = build()
    session = load(path)
    session.bind(FEEDS)
    assert session.device_times(5) == DeviceTimes(compute_ms=2.0, graph_ms=1.0, h2d_ms=0.5, d2h_ms=0.25)
    assert isinstance(session, TimedByDevice)
    assert trt.cuda.graphs == {}  # given back
    trt.cuda.records = False
    assert session.device_times(5).graph_ms is None
    assert session.phases.read_ms > 0
    assert session.phases.compile_ms > 0


def test_streams_share_one_engine_and_each_has_its_own_queue_and_buffers(build):
    trt, _, path = build()
    sessions = runtime("tensorrt").load_streams(path, device="GPU", threads=1, streams=3)
    assert len({id(session._engine) for session in sessions}) == 1
    assert len(trt.cuda.streams) == 3
    for session in sessions:
        session.bind(FEEDS)
        session.run()
        assert session.fetch()["logits"].shape == (2, 10)
    assert len(trt.cuda.device) == len(trt.cuda.host) == 6
    sessions[0].bind({"image": np.ones((4, 3, 8, 8), np.float32)})  # another shape: other buffers, the old ones gone
    assert len(trt.cuda.device) == 6
    for session in sessions:
        session.close()
    assert trt.cuda.streams == []
    assert trt.cuda.device == trt.cuda.host == {}


class Driver:
    """The driver's library: every call is noted, and answered with 0 unless it is told to fail."""

    def __init__(self, **fails):
        self.fails, self.calls = fails, []
        self.memory = (ctypes.c_char * 4096)()

    def __getattr__(self, name):
        def call(*arguments):
            self.calls.append(name)
            if name in (
                "cuMemAlloc_v2",
                "cuStreamCreate",
                "cuEventCreate",
                "cuStreamEndCapture",
                "cuGraphInstantiateWithFlags",
            ):
                (arguments[1] if name == "cuStreamEndCapture" else arguments[0])._obj.value = 77
            if name == "cuMemHostAlloc":
                arguments[0]._obj.value = ctypes.addressof(self.memory)
            if name == "cuEventElapsedTime":
                arguments[0]._obj.value = 1.5
            return self.fails.get(name, 0)

        return call


def test_the_driver_is_asked_for_memory_copies_and_times():
    driver = Driver()
    cuda = Cuda(driver)
    cuda.enter()
    cuda.enter()
    assert driver.calls.count("cuCtxSetCurrent") == 1
    other = threading.Thread(target=cuda.enter)
    other.start()
    other.join()
    assert driver.calls.count("cuCtxSetCurrent") == 2  # a context belongs to a thread
    stream, pointer = cuda.stream(), cuda.allocate(24)
    kept, array = cuda.host_array((2, 3), np.float32)
    array[...] = 1.0
    assert bytes(driver.memory[:24]) == np.ones(6, np.float32).tobytes()
    cuda.to_device(pointer, array, stream)
    assert cuda.time_ms(lambda: cuda.to_host(array, pointer, stream), stream) == 1.5
    assert driver.calls.count("cuEventDestroy_v2") == 2
    graph = cuda.record(lambda: None, stream)
    cuda.launch(graph, stream)
    cuda.forget(graph)
    cuda.free(pointer)
    cuda.free_host(kept)
    cuda.close_stream(stream)
    assert {"cuGraphLaunch", "cuGraphExecDestroy", "cuMemFree_v2", "cuMemFreeHost", "cuStreamDestroy_v2"} <= {
        *driver.calls
    }


def test_what_the_driver_refuses_is_one_line():
    with pytest.raises(BenchError, match="not enough free memory"):
        Cuda(Driver(cuMemAlloc_v2=2)).allocate(1)
    with pytest.raises(BenchError, match="CUDA refused cuStreamCreate with error 999"):
        Cuda(Driver(cuStreamCreate=999)).stream()


@pytest.mark.parametrize("step", ["cuStreamEndCapture", "cuGraphInstantiateWithFlags"])
def test_work_that_cannot_be_recorded_has_no_graph(step):
    assert Cuda(Driver(**{step: 901})).record(lambda: None, 7) is None


def test_work_that_fails_while_it_is_recorded_ends_the_recording():
    driver = Driver()

    def fails():
        raise BenchError("the engine did not run")

    assert Cuda(driver).record(fails, 7) is None
    assert driver.calls[-1] == "cuStreamEndCapture"


def test_memory_that_no_attribute_tells_is_unknown(build):
    _, _, path = build()
    session = load(path)
    session._engine = object()
    assert session.memory_bytes() is None


@pytest.mark.parametrize(
    ("built_by", "here", "compatible", "refusal"),
    [
        ("11.1.0.5", "11.1.0.5", False, None),
        ("11.1.0.5", "11.2.0.1", False, "was built by tensorrt 11.1.0.5, here is 11.2.0.1"),
        ("11.1.0.5", "11.2.0.1", True, None),
        ("10.13.2.6", "11.1.0.5", True, None),
        ("11.2.0.1", "11.1.0.5", True, "runs under tensorrt 11.2.0.1 and later, here is 11.1.0.5"),
        ("11.1.0.5", "10.13.2.6", True, "runs under tensorrt 11.1.0.5 and later, here is 10.13.2.6"),
    ],
)
def test_versions_that_may_load_an_engine(build, monkeypatch, built_by, here, compatible, refusal):
    _, _, path = build(version=built_by, version_compatible=compatible)
    trt = fake_tensorrt.install(monkeypatch, int(here.split(".")[0]), version=here, gpu=AMPERE)
    if refusal is None:
        load(path)
        assert trt.calls == [("deserialized", compatible)]
        return
    with pytest.raises(UnavailableError, match=refusal) as caught:
        load(path)
    assert trt.calls == []  # TensorRT never saw the file
    assert caught.value.hint
    assert caught.value.exit_code == 3


@pytest.mark.parametrize(
    ("level", "here", "refusal"),
    [
        ("none", AMPERE, None),
        ("none", Gpu("NVIDIA A40", "8.6"), "was built on NVIDIA A10, here is NVIDIA A40"),
        ("none", ADA, r"for compute capability 8\.6, this GPU \(NVIDIA L4\) has 8\.9"),
        ("same_compute_capability", Gpu("NVIDIA A40", "8.6"), None),
        ("same_compute_capability", ADA, r"for compute capability 8\.6"),
        ("ampere_plus", ADA, None),
        ("ampere_plus", Gpu("NVIDIA B", "12.0"), None),
        ("ampere_plus", TURING, r"from compute capability 8\.0 on, this one \(NVIDIA T4\) has 7\.5"),
        ("none", Gpu(None, None), None),  # a driver that says nothing is no reason to refuse
    ],
)
def test_gpus_that_may_load_an_engine(build, monkeypatch, level, here, refusal):
    _, _, path = build(hardware_compatibility=level)
    trt = fake_tensorrt.install(monkeypatch, 11, gpu=here)
    if refusal is None:
        load(path)
        return
    with pytest.raises(UnavailableError, match=refusal) as caught:
        load(path)
    assert trt.calls == []
    assert "build it again" in caught.value.hint


def test_rtx_builds_for_named_architectures_without_a_gpu_and_refuses_others(build, monkeypatch):
    trt, built, path = build(1, name="tensorrt_rtx", version="1.7.1", gpu=None, compute_capabilities=["8.6", "12.0"])
    assert [call[1] for call in trt.calls if call[0] == "compute_capability"] == ["SM86", "SM120"]
    assert built.layers == ()
    with pytest.raises(UnavailableError, match="run on an NVIDIA GPU, and none is here"):
        load(path, "tensorrt_rtx")
    for gpu, fits in ((AMPERE, True), (ADA, False)):
        fake_tensorrt.install(monkeypatch, 1, version="1.7.1", gpu=gpu, architectures=ARCHITECTURES)
        if fits:
            load(path, "tensorrt_rtx")
            continue
        with pytest.raises(UnavailableError, match=r"built for compute capability 8\.6, 12\.0, this GPU") as caught:
            load(path, "tensorrt_rtx")
        assert '"8.9" in the target\'s `compute_capabilities`' in caught.value.hint


def test_rtx_without_architectures_is_for_ampere_and_later(build, monkeypatch):
    _, _, path = build(1, name="tensorrt_rtx", version="1.7.1", gpu=None)
    fake_tensorrt.install(monkeypatch, 1, version="1.7.1", gpu=TURING, architectures=ARCHITECTURES)
    with pytest.raises(UnavailableError, match=r"from compute capability 8\.0 on"):
        load(path, "tensorrt_rtx")
    fake_tensorrt.install(monkeypatch, 1, version="1.7.1", gpu=ADA, architectures=ARCHITECTURES)
    load(path, "tensorrt_rtx")


def test_what_the_engines_offer(monkeypatch):
    fake_tensorrt.install(monkeypatch, 1, version="1.7.1", gpu=None, architectures=ARCHITECTURES)
    found = runtime("tensorrt_rtx").supports()
    assert found.devices == ()
    assert found.compute_capabilities == ("7.5", "8.0", "8.6", "8.9", "12.0", "12.1")
    fake_tensorrt.install(monkeypatch, 11, gpu=AMPERE)
    (device,) = runtime("tensorrt").supports().devices
    assert (device.name, device.full_name, device.compute_capability) == ("GPU", "NVIDIA A10", "8.6")


def test_architectures_that_rtx_does_not_know_are_refused_with_those_that_it_does(build, monkeypatch):
    fake_tensorrt.install(monkeypatch, 1, version="1.7.1", gpu=None, architectures=ARCHITECTURES)
    check_capabilities(runtime("tensorrt_rtx"), ["8.6", "12.0"])
    with pytest.raises(UnavailableError, match=r"tensorrt_rtx 1\.7\.1 does not build for .* 8\.7$") as caught:
        check_capabilities(runtime("tensorrt_rtx"), ["8.6", "8.7"])
    assert caught.value.hint == "compute_capabilities may hold: 7.5, 8.0, 8.6, 8.9, 12.0, 12.1"
    with pytest.raises(UnavailableError, match=r"compute capability 9\.0"):
        build(1, name="tensorrt_rtx", version="1.7.1", gpu=None, compute_capabilities=["9.0"])


def test_engines_of_the_other_tensorrt_and_without_a_manifest_are_refused(build, monkeypatch):
    _, _, path = build()
    fake_tensorrt.install(monkeypatch, 1, version="11.1.0.5", gpu=AMPERE, architectures=ARCHITECTURES)
    with pytest.raises(UnavailableError, match="built by tensorrt, not by tensorrt_rtx") as caught:
        load(path, "tensorrt_rtx")
    assert caught.value.hint == "load it with runtime: tensorrt"
    for content in (None, "[]", "no json"):
        manifest = path.parent / "engine.json"
        manifest.unlink(missing_ok=True)
        if content is not None:
            manifest.write_text(content)
        with pytest.raises(UnavailableError, match=r"engine\.plan has no engine\.json"):
            load(path)


def test_an_older_tensorrt_without_a_level_of_compatibility_says_so(build, monkeypatch, tmp_path):
    trt, _, _ = build(10)
    trt.HardwareCompatibilityLevel = fake_tensorrt._enum("Level", "NONE", "AMPERE_PLUS")
    with pytest.raises(CompileError, match="has no hardware_compatibility: same_compute_capability"):
        runtime("tensorrt").compile(
            tmp_path / "net.onnx",
            tmp_path,
            device="GPU",
            threads=1,
            options={"hardware_compatibility": "same_compute_capability"},
        )


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("Thirty-two wide channel vectorized row major Int8 format", "int8"),
        ("Row major linear FP32", "f32"),
        ("Half", "f16"),
        ("BFloat16", "bf16"),
        ("", "unknown"),
    ],
)
def test_words_of_the_inspector(text, name):
    assert tensor_precision(text) == name


def test_architectures_are_written_with_a_dot():
    assert [dotted(x) for x in ("SM86", "8.6", "sm_120", "75")] == ["8.6", "8.6", "12.0", "7.5"]


def test_without_a_driver_a_gpu_has_no_more_than_its_name(monkeypatch):
    monkeypatch.setattr(nvidia, "has_gpu", lambda: True)
    monkeypatch.setattr(nvidia, "_of_the_driver", lambda: None)
    monkeypatch.setattr(nvidia, "_listed_name", lambda: "NVIDIA A10")
    assert nvidia.gpu() == Gpu("NVIDIA A10", None)
    monkeypatch.setattr(nvidia, "has_gpu", lambda: False)
    assert nvidia.gpu() is None


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"runtime": "openvino", "opt_batch": 4}, "opt_batch is an option of tensorrt and tensorrt_rtx"),
        (
            {"runtime": "tensorrt_rtx", "timing_cache": "t"},
            "timing_cache is an option of tensorrt,",
        ),
        ({"runtime": "tensorrt_rtx", "version_compatible": True}, "version_compatible is an option of tensorrt,"),
        ({"runtime": "tensorrt", "compute_capabilities": ["8.6"]}, "compute_capabilities is an option of tensorrt_rtx"),
        ({"runtime": "tensorrt", "max_batch": 4, "opt_batch": 8}, "opt_batch 8 is above max_batch 4"),
        *(
            ({"runtime": "tensorrt_rtx", "compute_capabilities": ["8.6", name]}, f"'{name}' is no compute capability")
            for name in ("7.x", "banana", "8", "SM", "", "8.6.1", "0.6", "-8.6", "8 6", "sm_90a", "\u0668.\u0666")
        ),
        *(
            (
                {"runtime": "tensorrt_rtx", "compute_capabilities": ["86", name], "precision": ["bf16"]},
                r"GPUs of compute capability 7\.5 have no bf16",
            )
            for name in ("7.5", "75", "SM75", "sm_75")
        ),
    ],
)
def test_an_option_of_another_engine_is_refused(given, message):
    with pytest.raises(ValueError, match=message):
        TargetSettings.model_validate(given, strict=False)


@pytest.mark.parametrize(("name", "architectures"), [("tensorrt", None), ("tensorrt_rtx", ARCHITECTURES)])
def test_bf16_is_refused_on_a_gpu_that_has_none(monkeypatch, name, architectures):
    engine = runtime(name)
    fake_tensorrt.install(monkeypatch, 11, gpu=TURING, architectures=architectures)
    with pytest.raises(UnavailableError, match=r"bf16 needs compute capability 8\.0, .*NVIDIA T4\) has 7\.5") as caught:
        engine.check("GPU", run=True, precisions=("f32", "bf16"))
    assert "use f16" in caught.value.hint
    engine.check("GPU", run=True, precisions=("f32", "f16", "int8"))
    for gpu in (AMPERE, Gpu("NVIDIA B200", "10.0"), Gpu("NVIDIA A10", None)):
        fake_tensorrt.install(monkeypatch, 11, gpu=gpu, architectures=architectures)
        engine.check("GPU", run=True, precisions=("bf16",))


def test_rtx_may_build_bf16_for_other_gpus_than_the_one_here(monkeypatch):
    fake_tensorrt.install(monkeypatch, 1, version="1.7.1", gpu=TURING, architectures=ARCHITECTURES)
    runtime("tensorrt_rtx").check("GPU", run=False, precisions=("bf16",))


def test_compute_capabilities_are_written_in_one_way():
    given = {"runtime": "tensorrt_rtx", "compute_capabilities": ["8.6", "89", "SM120", "sm_121", "sm90"]}
    made = TargetSettings.model_validate(given, strict=False)
    assert made.compute_capabilities == ("8.6", "8.9", "12.0", "12.1", "9.0")
