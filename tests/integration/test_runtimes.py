"""What engines say of themselves: time per layer, devices, and OpenVINO's compiled form beside its model."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from edgekd.errors import UnavailableError
from edgekd.runtimes import onnxruntime_profile as profiles
from edgekd.runtimes import openvino_blob
from edgekd.runtimes.onnxruntime_providers import provider_named
from edgekd.runtimes.openvino import _since, named_devices
from edgekd.runtimes.protocol import infer, noise, run_for
from edgekd.runtimes.registry import runtime

ENGINES = ["openvino", "onnxruntime"]


@pytest.fixture(scope="module")
def net(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A network with one convolution that takes nearly all of the time, and a small one before it."""
    rng = np.random.default_rng(0)
    value = helper.make_tensor_value_info
    weights = [numpy_helper.from_array(rng.standard_normal(s).astype(np.float32), n)
               for n, s in (("w1", (32, 3, 1, 1)), ("w2", (64, 32, 7, 7)))]  # fmt: skip
    nodes = [
        helper.make_node("Conv", ["x", "w1"], ["a"], name="small"),
        helper.make_node("Tanh", ["a"], ["b"], name="bend"),
        helper.make_node("Conv", ["b", "w2"], ["large"], name="large"),
        helper.make_node("GlobalAveragePool", ["large"], ["y"], name="mean"),
    ]
    inputs = [value("x", TensorProto.FLOAT, ["n", 3, 48, 48])]
    graph = helper.make_graph(nodes, "net", inputs, [value("y", TensorProto.FLOAT, ["n", 64, 1, 1])], weights)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    path = tmp_path_factory.mktemp("net") / "net.onnx"
    onnx.save(model, path)
    return path


def compiled(engine: str, net: Path, folder: Path, device: str = "CPU") -> Path:
    folder.mkdir(exist_ok=True)
    built = runtime(engine).compile(net, folder, device=device, threads=1, options={})
    return folder / built.file


def feeds(net: Path) -> dict[str, Any]:
    return {"x": np.random.default_rng(1).standard_normal((1, 3, 48, 48)).astype(np.float32)}


@pytest.mark.parametrize("engine", ENGINES)
def test_a_profile_finds_the_layer_that_takes_the_time(engine: str, net: Path, tmp_path: Path) -> None:
    path = compiled(engine, net, tmp_path)
    layers = runtime(engine).profile(path, feeds(net), device="CPU", threads=1, runs=20, max_s=5.0)
    slowest = max(layers, key=lambda layer: layer.ms)
    assert "large" in slowest.name
    assert "conv" in slowest.kind.lower()
    assert {layer.precision for layer in layers} == {"f32"}
    assert all(layer.ms > 0 for layer in layers)
    assert slowest.ms > 0.5 * sum(layer.ms for layer in layers)


@pytest.mark.parametrize("engine", ENGINES)
def test_what_an_engine_does_not_say_of_its_memory_is_unknown(engine: str, net: Path, tmp_path: Path) -> None:
    session = runtime(engine).load(compiled(engine, net, tmp_path), device="CPU", threads=1)
    assert session.memory_bytes() is None
    session.close()


@pytest.mark.parametrize("engine", ENGINES)
def test_an_engine_lists_the_cpu_with_its_precisions(engine: str) -> None:
    found = {device.name: device for device in runtime(engine).supports().devices}
    assert {"f32", "int8"} <= set(found["CPU"].precisions)


def test_running_means_lose_the_slow_first_inference() -> None:
    """50 inferences of 0.1 ms after a first one of 16 ms: counted as a mean in whole microseconds."""
    each = [16.0] + [0.1] * 54
    means = [np.floor(np.mean(each[: k + 1]) * 1000) / 1000 for k in range(len(each))]
    assert means[-1] > 0.3  # what would have been read
    assert _since(means, 5) == pytest.approx(0.1, abs=0.002)
    assert _since([0.0] * 55, 5) == 0.0005


def test_runs_end_by_count_or_by_time_and_there_is_always_one() -> None:
    calls: list[int] = []
    assert run_for(lambda: calls.append(1), runs=3, max_s=60.0) == 3
    assert len(calls) == 8
    assert run_for(lambda: time.sleep(0.02), runs=1000, max_s=0.01) == 1


def test_the_compiled_form_gives_the_same_answers_and_layers(net: Path, tmp_path: Path) -> None:
    path = compiled("openvino", net, tmp_path)
    assert (tmp_path / openvino_blob.BLOB).is_file()
    sessions, answers = [], []
    for _ in range(2):
        session: Any = runtime("openvino").load(path, device="CPU", threads=1)
        sessions.append(session._compiled)
        answers.append(infer(session, feeds(net))["y"])
        (tmp_path / openvino_blob.BLOB).unlink(missing_ok=True)
    assert np.array_equal(*answers)
    assert openvino_blob.same_answers(*sessions, feeds(net))


@pytest.mark.parametrize("spoiled", ["version", "processor", "blob", "model", "manifest", "truncated"])
def test_a_compiled_form_of_something_else_is_passed_over(
    spoiled: str, net: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = compiled("openvino", net, tmp_path)
    expected = infer(runtime("openvino").load(path, device="CPU", threads=1), feeds(net))["y"]
    manifest, blob = tmp_path / openvino_blob.MANIFEST, tmp_path / openvino_blob.BLOB
    facts = json.loads(manifest.read_text())
    if spoiled == "version":
        manifest.write_text(json.dumps({**facts, "plugins": {"CPU": "another"}}))
    elif spoiled == "processor":
        monkeypatch.setattr(openvino_blob, "_processor", lambda: "another")
    elif spoiled == "blob":
        blob.write_bytes(b"x" * blob.stat().st_size)
    elif spoiled == "model":
        path.write_text(path.read_text() + "\n")
    elif spoiled == "manifest":
        manifest.unlink()
    else:  # one that its manifest knows, but that OpenVINO cannot read
        blob.write_bytes(blob.read_bytes()[:500])
        digest = hashlib.sha256(blob.read_bytes()).hexdigest()
        manifest.write_text(json.dumps({**facts, "blob": digest}))
    imported: list[Any] = []
    monkeypatch.setattr(openvino_blob, "find", _noting(openvino_blob.find, imported))
    session = runtime("openvino").load(path, device="CPU", threads=1)
    assert imported == [None]
    assert np.array_equal(infer(session, feeds(net))["y"], expected)


def test_a_compiled_form_that_fits_is_taken_also_with_other_threads(
    net: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = compiled("openvino", net, tmp_path)
    imported: list[Any] = []
    monkeypatch.setattr(openvino_blob, "find", _noting(openvino_blob.find, imported))
    for threads in (1, 2):
        session: Any = runtime("openvino").load(path, device="CPU", threads=threads)
        assert session._compiled.get_property("INFERENCE_NUM_THREADS") == threads
        session.close()
    assert None not in imported


def test_a_compiled_form_that_comes_back_otherwise_is_not_kept(
    net: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(openvino_blob, "same_answers", lambda *_: False)
    compiled("openvino", net, tmp_path)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["model.bin", "model.xml"]


def test_a_hint_that_cannot_be_read_is_one_line(net: Path, tmp_path: Path) -> None:
    compiled("openvino", net, tmp_path)
    (tmp_path / "openvino.json").write_text("{")
    with pytest.raises(UnavailableError, match=r"openvino\.json beside model\.xml is damaged"):
        runtime("openvino").load(tmp_path / "model.xml", device="CPU", threads=1)


def test_no_compiled_form_is_kept_of_a_device_that_is_chosen_at_load(net: Path, tmp_path: Path) -> None:
    path = compiled("openvino", net, tmp_path, device="AUTO:CPU")
    assert not (tmp_path / openvino_blob.BLOB).exists()
    session = runtime("openvino").load(path, device="AUTO:CPU", threads=1)
    assert infer(session, noise(session.inputs))["y"].shape == (1, 64, 1, 1)


@pytest.mark.parametrize("device", ["AUTO:CPU", "HETERO:CPU"])
def test_threads_and_float32_reach_the_cpu_through_a_device_that_chooses(
    device: str, net: Path, tmp_path: Path
) -> None:
    session: Any = runtime("openvino").load(compiled("openvino", net, tmp_path, device), device=device, threads=1)
    found = session._compiled.get_property("DEVICE_PROPERTIES")["CPU"]
    assert (found["INFERENCE_NUM_THREADS"], found["INFERENCE_PRECISION_HINT"].to_string()) == (1, "f32")


def _noting(function: Any, results: list[Any]) -> Any:
    def noted(*args: Any, **options: Any) -> Any:
        results.append(function(*args, **options))
        return results[-1]

    return noted


@pytest.mark.parametrize(
    ("device", "named"),
    [
        ("CPU", ["CPU"]),
        ("GPU.1", ["GPU.1"]),
        ("AUTO", []),
        ("AUTO:-GPU,CPU", ["CPU"]),
        ("HETERO:GPU.1,CPU", ["GPU.1", "CPU"]),
        ("BATCH:GPU(16)", ["GPU"]),
    ],
)
def test_real_devices_in_a_name_of_openvino(device: str, named: list[str]) -> None:
    assert named_devices(device) == named


@pytest.mark.parametrize(
    ("device", "missing"), [("gpu", "GPU"), ("GPU.1", "GPU.1"), ("HETERO:NPU,CPU", "NPU"), ("CPU.0", "CPU.0")]
)
def test_a_wrong_device_of_openvino_is_named_with_what_is_there(device: str, missing: str) -> None:
    with pytest.raises(UnavailableError, match=rf"no device {missing} here \(it has .*CPU") as caught:
        runtime("openvino").check(device, run=True)
    assert caught.value.exit_code == 3


@pytest.mark.parametrize("engine", ENGINES)
def test_a_device_may_be_written_in_small_letters(engine: str, net: Path, tmp_path: Path) -> None:
    runtime(engine).check("cpu", run=True, precisions=("f32",))
    path = compiled(engine, net, tmp_path, device="cpu")
    found = [infer(runtime(engine).load(path, device=name, threads=1), feeds(net))["y"] for name in ("cpu", "CPU")]
    assert np.array_equal(*found)
    assert runtime(engine).profile(path, feeds(net), device="cpu", threads=1, runs=1, max_s=1.0)


@pytest.mark.parametrize(
    ("device", "provider"),
    [
        ("cuda", "CUDAExecutionProvider"),
        ("TensorRT", "TensorrtExecutionProvider"),
        ("DirectML", "DmlExecutionProvider"),
        ("CoreMLExecutionProvider", "CoreMLExecutionProvider"),
        ("Foo", "FooExecutionProvider"),
    ],
)
def test_a_provider_goes_by_its_short_name_or_its_own(device: str, provider: str) -> None:
    assert provider_named(device, ["CPUExecutionProvider", provider]) == provider


@pytest.mark.parametrize(
    ("device", "package"),
    [("CUDA", "onnxruntime-gpu"), ("OpenVINO", "onnxruntime-openvino"), ("dml", "onnxruntime-directml")],
)
def test_an_absent_provider_is_named_with_the_package_that_brings_it(device: str, package: str) -> None:
    with pytest.raises(UnavailableError, match=rf"no provider for {device} here \(it has CPU\)") as caught:
        provider_named(device, ["CPUExecutionProvider"])
    assert f"pip install {package}" in str(caught.value.hint)


def test_a_provider_that_runs_nothing_is_refused(net: Path, tmp_path: Path) -> None:
    """The plain wheel has a provider of remote services, which takes none of these nodes."""
    if "Azure" not in {device.name for device in runtime("onnxruntime").supports().devices}:
        pytest.skip("this ONNX Runtime has no provider but the CPU's")
    with pytest.raises(UnavailableError, match=r"ran no node of this network on Azure, all \d+ fell back to the CPU"):
        compiled("onnxruntime", net, tmp_path, device="Azure")


def test_onnx_runtime_leaves_nothing_in_the_folder_for_temporary_files(net: Path, tmp_path: Path) -> None:
    """Its telemetry would: it is off."""
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    environment = {name: value for name, value in os.environ.items() if name != "ORT_DISABLE_TELEMETRY"}
    code = (
        "from pathlib import Path; from edgekd.runtimes.registry import runtime; engine = runtime('onnxruntime');"
        f"engine.compile(Path({str(net)!r}), Path({str(tmp_path)!r}), device='CPU', threads=1, options={{}});"
        "engine.supports()"
    )
    subprocess.run([sys.executable, "-c", code], env=environment | {"TMPDIR": str(scratch)}, check=True)
    assert list(scratch.iterdir()) == []


def test_nodes_that_fell_back_to_the_cpu_say_so(tmp_path: Path) -> None:
    def event(name: str, op: str, provider: str, index: int, us: int, shapes: list[dict[str, list[int]]]) -> Any:
        args = {"op_name": op, "provider": provider, "node_index": str(index), "input_type_shape": shapes}
        return {"cat": "Node", "name": f"{name}_kernel_time", "dur": us, "args": args}

    cuda, cpu, whole = "CUDAExecutionProvider", "CPUExecutionProvider", "OpenVINOExecutionProvider"
    events = [{"cat": "Session", "name": "model_run", "dur": 9}]
    for us in (900, 10, 12):
        events += [
            event("conv", "Conv", cuda, 0, us, [{"float16": [1]}]),
            event("", "NonZero", cpu, 1, us, [{"uint8": [1]}]),
            event("", "NonZero", cpu, 2, 2 * us, [{"float": [1]}]),
        ]
    path = tmp_path / "profile.json"
    path.write_text(json.dumps(events))
    nodes = profiles.read_nodes(path)
    assert len(profiles.fallen_back(nodes, cuda)) == 2
    assert profiles.fallen_back(nodes, cpu) == []
    assert [(t.kind, t.precision, t.ms) for t in profiles.layer_times(nodes, cuda, 2)] == [
        ("Conv", "f16", 0.011),
        ("NonZero (on CPU)", "uint8", 0.011),
        ("NonZero (on CPU)", "f32", 0.022),
    ]
    path.write_text(json.dumps([event("part", f"{whole}_subgraph_1", whole, 0, 5, [{"float": [1]}])]))
    assert profiles.read_nodes(path)[0].precision == "unknown"


def test_layers_are_the_same_on_a_device_without_the_package_onnx(
    net: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def layers() -> list[tuple[str, str]]:
        built = runtime("onnxruntime").compile(net, tmp_path, device="CPU", threads=1, options={})
        return sorted((layer.kind, layer.precision) for layer in built.layers)

    found, find = layers(), importlib.util.find_spec
    assert ("GlobalAveragePool", "f32") in found
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *more: None if name == "onnx" else find(name, *more))
    assert layers() == found
