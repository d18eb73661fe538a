"""The command line with a device over ssh: a real server on loopback, real engines."""

from __future__ import annotations

import json
from types import SimpleNamespace

import pytest
import ssh_server

from edgekd.cli.main import run
from edgekd.pipeline import devices

FILE = """
name: device
data: {digits: {}, limit: {train: 64}}
model: convnet
args: {width: 8}
stages:
  - export: {min_agreement: 0.5}
  - compile: {}
  - bench: {quick: true, launches: 1, min_time_s: 0.2, min_samples: 20, quiet_wait_s: 0}
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
    devices._probe.cache_clear()

    def command(*words):
        with pytest.raises(SystemExit) as ended:
            run(words)
        said = capsys.readouterr()
        return SimpleNamespace(code=ended.value.code, out=said.out, err=said.err)

    return command


def test_builds_of_a_target_with_a_host_are_measured_there(server, edgekd, tmp_path):
    file = tmp_path / "p.yaml"
    edgekd("target", "add", "pi", server.url, "--python", "device-python")
    file.write_text(FILE.replace("HOST", "pi"))
    first = edgekd("run", str(file), "--out", "out")
    assert first.code == 0, first.err
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    (row,) = report["latency"]
    assert (row["target"], row["host"]) == ("pi", "pi")
    assert row["p50_ms"] > 0

    edgekd("run", str(file), "--out", "out")
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert {stage["name"]: stage["state"] for stage in report["stages"]}["bench"] == "cached"

    # Only the measurement depends on the device: another one is measured anew, from the same builds.
    devices._probe.cache_clear()
    edgekd("target", "add", "pi-2", server.url, "--python", "device-python")
    file.write_text(FILE.replace("HOST", "pi-2"))
    plan = json.loads(edgekd("plan", str(file), "--json").out)
    assert [stage["state"] for stage in plan["stages"]][-2:] == ["cached", "would run"]

    file.write_text(FILE.replace("HOST", "ssh://127.0.0.1:1"))
    off = edgekd("plan", str(file))
    assert off.code == 75
    assert "ssh://127.0.0.1:1 cannot be reached" in off.err
    assert len(off.err.strip().splitlines()) == 2


def test_device_that_is_off_is_known_before_anything_runs(edgekd, tmp_path):
    (tmp_path / "p.yaml").write_text(FILE.replace("HOST", "ssh://127.0.0.1:1"))
    off = edgekd("run", "p.yaml", "--out", "out")
    assert off.code == 75
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert {stage["state"] for stage in report["stages"]} == {"skipped"}


def test_name_that_no_device_has_is_shown_where_it_stands(edgekd, tmp_path):
    (tmp_path / "p.yaml").write_text(FILE.replace("HOST", "nobody"))
    wrong = edgekd("run", "p.yaml", "--out", "out")
    assert wrong.code == 2
    assert "p.yaml:11:" in wrong.err
    assert "no device is called 'nobody'" in wrong.err
    assert "edgekd target add nobody ssh://user@host" in wrong.err


def test_host_is_no_option_of_tensorrt_yet(edgekd, tmp_path):
    text = FILE.replace("HOST", "ssh://pi").replace("onnxruntime", "tensorrt_rtx")
    (tmp_path / "p.yaml").write_text(text)
    wrong = edgekd("plan", "p.yaml")
    assert wrong.code == 2
    assert "host is an option of openvino and onnxruntime" in wrong.err


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
