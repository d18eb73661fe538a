"""The command line with a device over ssh: a real server on loopback, real engines."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import ssh_server

from edgekd.cli.main import run
from edgekd.files import sha256_file
from edgekd.pipeline import devices

FILE = """
name: device
data: {digits: {}, limit: {train: 64}}
model: convnet
args: {width: 8}
stages:
  - export: {min_agreement: 0.5}
  - compile: {}
  - evaluate: {device_samples: 40}
  - bench: {quick: true, launches: 1, min_time_s: 0.2, min_samples: 20, quiet_wait_s: 0, profile: false}
targets:
  pi: {runtime: onnxruntime, precision: [f32], host: HOST}
"""


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    if ssh_server.SSHD is None:
        pytest.skip(ssh_server.MISSING)
    server = ssh_server.Server(tmp_path_factory.mktemp("device"))
    yield server
    left = server.left_behind()
    server.stop()
    assert left == []


@pytest.fixture
def edgekd(server, tmp_path, monkeypatch, capsys):
    """Runs a command; its exit code, standard output and standard error."""
    monkeypatch.setenv("EDGEKD_SSH_CONFIG", str(server.config))
    monkeypatch.setenv("EDGEKD_TARGETS", str(tmp_path / "config" / "targets.json"))
    monkeypatch.setenv("EDGEKD_STORE", str(tmp_path / "store"))
    monkeypatch.chdir(tmp_path)
    devices.forget()

    def command(*words):
        with pytest.raises(SystemExit) as ended:
            run(words)
        said = capsys.readouterr()
        return SimpleNamespace(code=ended.value.code, out=said.out, err=said.err)

    return command


@pytest.fixture
def device_is_off(server):
    """Stops the server for a while."""

    @contextlib.contextmanager
    def off():
        server.stop()
        devices.forget()
        try:
            yield
        finally:
            server.start()
            devices.forget()

    return off


def states(report):
    return {stage["name"]: stage["state"] for stage in report["stages"]}


@pytest.mark.slow
def test_builds_of_a_target_with_a_host_are_made_evaluated_and_measured_there(server, edgekd, tmp_path, device_is_off):
    file, report = tmp_path / "p.yaml", lambda: json.loads((tmp_path / "out" / "report.json").read_text())
    edgekd("target", "add", "pi", server.url, "--python", "device-python")
    file.write_text(FILE.replace("HOST", "pi"))
    first = edgekd("run", str(file), "--out", "out")
    assert first.code == 0, first.err
    assert "compile: pi.f32 on pi" in first.err
    (row,), (build,) = report()["latency"], report()["builds"]
    assert (row["target"], row["host"], build["host"]) == ("pi", "pi", "pi")
    assert row["p50_ms"] > 0
    assert sha256_file(tmp_path / "out" / build["path"]) == build["sha256"]
    assert build["executed_precision"]["f32"] > 0
    assert build["metrics"][0]["n"] == build["parity"]["n"] == 40
    assert build["parity"]["agreement"] == {"logits": 1.0}
    rungs = json.loads((tmp_path / "out" / "artifacts" / "ladder.json").read_text())["rows"]
    assert rungs[-1]["rung"] == "the build pi.f32 on its device"
    assert rungs[-1]["max_abs_error"] < 1e-3

    # All of it is in the store: the device is not needed, and what it was last counts.
    with device_is_off():
        plan = edgekd("plan", str(file), "--exit-code")
        assert plan.code == 0
        assert "bench      cached     unchanged; pi cannot be reached: what it was on 20" in plan.out
        again = edgekd("run", str(file), "--out", "out")
        assert again.code == 0, again.err
        assert set(states(report()).values()) == {"cached"}
        assert "warning: pi cannot be reached" in again.err
        renewed = edgekd("run", str(file), "--out", "out", "--remeasure")
        assert renewed.code == 75
        assert states(report())["compile"] == "cached"

    # Only the measurement depends on which of two equal devices it is: another one is measured anew.
    edgekd("target", "add", "pi-2", server.url, "--python", "device-python")
    file.write_text(FILE.replace("HOST", "pi-2"))
    plan = json.loads(edgekd("plan", str(file), "--json").out)
    assert [stage["state"] for stage in plan["stages"]][-3:] == ["cached", "cached", "would run"]

    # Another engine there makes other builds.
    told = devices._probe("pi-2", "onnxruntime", True)
    told["engines"]["onnxruntime"] = "0.1"
    plan = json.loads(edgekd("plan", str(file), "--json").out)
    assert plan["stages"][-3]["state"] == "would run"
    assert "devices.pi.engine" in plan["stages"][-3]["why"]


def test_device_that_is_off_is_known_before_anything_runs(edgekd, tmp_path):
    (tmp_path / "p.yaml").write_text(FILE.replace("HOST", "ssh://127.0.0.1:1"))
    off = edgekd("run", "p.yaml", "--out", "out")
    assert off.code == 75
    assert "ssh://127.0.0.1:1 cannot be reached" in off.err
    assert len(off.err.strip().splitlines()) == 2
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert {stage["state"] for stage in report["stages"]} == {"skipped"}


def test_name_that_no_device_has_is_shown_where_it_stands(edgekd, tmp_path):
    (tmp_path / "p.yaml").write_text(FILE.replace("HOST", "nobody"))
    wrong = edgekd("run", "p.yaml", "--out", "out")
    assert wrong.code == 2
    assert "p.yaml:12:" in wrong.err
    assert "no device is called 'nobody'" in wrong.err
    assert "edgekd target add nobody ssh://user@host" in wrong.err


@pytest.mark.parametrize(
    ("target", "message"),
    [
        ("{runtime: onnxruntime, compile_on: device}", "compile_on does nothing without a device"),
        ("{runtime: tensorrt, host: pi, compile_on: host}", "an engine of tensorrt belongs to the GPU that made it"),
    ],
)
def test_where_nothing_can_be_compiled_is_known_at_once(edgekd, tmp_path, target, message):
    text = FILE.replace("{runtime: onnxruntime, precision: [f32], host: HOST}", target)
    (tmp_path / "p.yaml").write_text(text)
    wrong = edgekd("plan", "p.yaml")
    assert wrong.code == 2
    assert message in wrong.err


def test_engine_that_works_there_is_not_asked_for_here(server, edgekd, tmp_path):
    """TensorRT cannot run here; on the device it is missing, and that is what is said."""
    edgekd("target", "add", "pi", server.url, "--python", "device-python")
    text = FILE.replace("HOST", "pi").replace("runtime: onnxruntime", "runtime: tensorrt").replace("[f32]", "[f16]")
    (tmp_path / "p.yaml").write_text(text)
    lacking = edgekd("run", "p.yaml", "--out", "out")
    assert lacking.code == 3
    assert "pi has no tensorrt for " in lacking.err
    assert "pip install tensorrt" in lacking.err


def test_devices_get_names_and_show_what_they_have(server, edgekd):
    assert edgekd("target", "add", "pi", server.url, "--python", "device-python").code == 0
    assert json.loads(edgekd("target", "list", "--json").out) == [
        {"name": "pi", "host": server.url, "python": "device-python"}
    ]
    there = edgekd("target", "check", "pi", "--runtime", "onnxruntime")
    assert there.code == 0
    assert "ready to measure" in there.out
    lacking = edgekd("target", "check", "pi", "--runtime", "tensorrt", "--json")
    assert lacking.code == 3
    assert "pip install tensorrt" in json.loads(lacking.out)["missing"][0]["command"]
    assert edgekd("target", "add", "a/b", server.url).code == 2
    assert edgekd("target", "add", "b", "ssh://u:secret@host").code == 2


def test_measure_on_a_device(server, edgekd, tmp_path):
    import onnx
    from onnx import TensorProto, helper

    shape = ["N", 4]
    nodes = [helper.make_node("Relu", ["x"], ["y"])]
    inputs, outputs = ([helper.make_tensor_value_info(n, TensorProto.FLOAT, shape)] for n in ("x", "y"))
    model = helper.make_model(
        helper.make_graph(nodes, "g", inputs, outputs), opset_imports=[helper.make_opsetid("", 20)], ir_version=10
    )
    onnx.save(model, tmp_path / "model.onnx")
    edgekd("target", "add", "pi", server.url, "--python", "device-python")
    more = ["--throughput", "--streams", "2", "--rate", "1000"]
    done = edgekd("measure", "model.onnx", "--host", "pi", "--quick", "--launches", "1", *more, "--json")
    assert done.code == 0, done.err
    found = json.loads(done.out)
    assert [(row["host"], row["streams"]) for row in (*found["throughput"], *found["load"])] == [("pi", 2)] * 2
    (row,) = found["latency"]
    assert row["host"] == "pi"
    assert row["p50_ms"] > 0


@pytest.mark.slow
def test_whole_chain_of_the_digits_with_a_device_in_place_of_this_machine(server, edgekd, tmp_path):
    edgekd("target", "add", "pi", server.url, "--python", "device-python")
    brief = {"targets.ov.host": "pi", "targets.ort.host": "pi", "targets.ort.compile_on": "host", "gates": "[]"}
    brief |= {"teacher.epochs": 2, "distill.epochs": 1, "quantize.epochs": 1, "evaluate.device_samples": 200}
    brief |= {"data.limit": "{train: 320}", "teacher.args.width": 24, "distill.args.width": 16}
    brief |= {"export.max_noise": 2, "export.min_agreement": 0.5}  # hardly trained, it is unsure of its answers
    brief |= {"bench.launches": 1, "bench.min_time_s": 0.2, "bench.min_samples": 20, "bench.quiet_wait_s": 0}
    sets = [word for key, value in {**brief, "bench.profile": "false"}.items() for word in ("--set", f"{key}={value}")]
    done = edgekd("run", str(Path(__file__).parents[2] / "pipelines" / "digits.yaml"), *sets, "--out", "out")
    assert done.code == 0, done.err
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert set(states(report).values()) == {"ran"}
    assert {row["host"] for row in (*report["latency"], *report["builds"])} == {"pi"}
    assert len(report["builds"]) == len(report["latency"]) == 6
    for build in report["builds"]:
        assert build["parity"]["n"] == build["metrics"][0]["n"] == 200
        assert build["executed_precision"]["int8" if build["precision"] == "int8" else "f32"] > 0
    assert "compile: ov.int8 on pi" in done.err
    assert "compile: ort.int8\n" in done.err
