"""What `edgekd measure` may be given, how it refuses the rest, and what it prints."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from typer.testing import CliRunner

from edgekd.bench.settings import BenchSettings
from edgekd.cli import given, measured
from edgekd.cli.main import app
from edgekd.config.durations import seconds
from edgekd.errors import BenchError, ConfigError
from edgekd.runtimes.registry import runtime
from edgekd.stages.settings import BenchStage, TargetSettings


def network(path, *, rows="n", name="x"):
    """Two matrix products on 8 numbers."""
    weights = [numpy_helper.from_array(np.full((8, 8), 0.1, np.float32), w) for w in ("a", "b")]
    nodes = [helper.make_node("MatMul", [name, "a"], ["h"]), helper.make_node("MatMul", ["h", "b"], ["y"])]
    value = lambda one: helper.make_tensor_value_info(one, TensorProto.FLOAT, [rows, 8])  # noqa: E731
    graph = helper.make_graph(nodes, "g", [value(name)], [value("y")], weights)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)])
    model.ir_version = 10
    onnx.save(model, str(path))
    return path


@pytest.fixture
def files(tmp_path, monkeypatch):
    """A folder with one of everything, which is the current one."""
    monkeypatch.chdir(tmp_path)
    network(tmp_path / "net.onnx")
    network(tmp_path / "other.onnx", name="z")
    network(tmp_path / "fixed.onnx", rows=1)
    for folder, content in (("ov.int8", {"model.xml": "<?xml?><net></net>", "model.bin": ""}), ("empty", {})):
        (tmp_path / folder).mkdir()
        for name, text in content.items():
            (tmp_path / folder / name).write_text(text)
    (tmp_path / "trt").mkdir()
    (tmp_path / "trt" / "engine.plan").write_bytes(b"plan")
    (tmp_path / "trt" / "engine.json").write_text(json.dumps({"runtime": "tensorrt_rtx"}))
    (tmp_path / "lone.engine").write_bytes(b"plan")
    (tmp_path / "page.xml").write_text("<html></html>")
    (tmp_path / "notes.txt").write_text("notes")
    return tmp_path


def refusal(*words):
    """The error of a command line, which has to be one of ours."""
    result = CliRunner().invoke(app, ["measure", *words])
    assert isinstance(result.exception, ConfigError), result.output
    assert "\n" not in result.exception.message
    assert result.exception.hint
    return result.exception.message


def test_a_plan_whose_manifest_names_a_function_is_refused_before_anything_is_called(files):
    (files / "trt" / "engine.json").write_text(json.dumps({"runtime": "os:abort"}))
    assert "engine.json beside it names an unknown runtime 'os:abort'" in refusal("trt/engine.plan")
    assert "unknown runtime 'os:abort'" in refusal("trt")


def test_every_kind_of_file_is_known_with_its_engine_and_a_name(files):
    paths = [Path(name) for name in ("net.onnx", "ov.int8", "ov.int8/model.xml", "trt/engine.plan", "trt")]
    found = given.look_at(paths, None)
    assert [(one.runtime, one.name) for one in found] == [
        ("onnxruntime", "net"),
        ("openvino", "ov.int8#2"),
        ("openvino", "ov.int8#3"),
        ("tensorrt_rtx", "trt#4"),
        ("tensorrt_rtx", "trt#5"),
    ]
    assert [path.name for path in found[1].files] == ["model.xml", "model.bin"]
    assert [path.name for path in found[3].files] == ["engine.plan", "engine.json"]
    assert given.look_at([Path("net.onnx")], "openvino")[0].runtime == "openvino"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["none.onnx"], "none.onnx: no such file"),
        (["empty"], "empty: not the folder of one build"),
        (["notes.txt"], "notes.txt: not an ONNX file, nor one of an engine"),
        (["page.xml"], "page.xml: not a network of OpenVINO"),
        (["lone.engine"], "lone.engine: lone.engine has no engine.json beside it"),
        (["ov.int8", "--runtime", "onnxruntime"], "ov.int8: is for openvino, not for onnxruntime"),
        (["net.onnx", "--runtime", "openvin"], "--runtime openvin: is not known"),
        (["net.onnx", "--cpu", "4096"], "--cpu 4096: there is no such core"),
        (["net.onnx", "--cpu", "0", "--threads", "2"], "pins all threads to one core"),
        (["net.onnx", "--sustain", "soon"], "--sustain: 'soon' is no duration"),
        (["net.onnx", "--sustain", "30"], "--sustain: '30' is no duration"),
        (["net.onnx", "--min-time", "0s"], "--min-time 0s: has to be longer"),
        (["net.onnx", "--time-limit", "-1s"], "is no duration"),
        (["net.onnx", "--rate", "50,fast"], "--rate 50,fast: not a list of positive numbers"),
        (["net.onnx", "--rate", "0"], "not a list of positive numbers"),
        (["net.onnx", "--rate", "inf"], "not a list of positive numbers"),
        (["net.onnx", "--rate", ""], "not a list of positive numbers"),
        (["net.onnx", "--p99-limit", "5"], "--p99-limit: '5' is no duration"),
        (["net.onnx", "--batches", "1,8"], "--batches is for --throughput"),
        (["net.onnx", "--streams", "2"], "--streams is for --throughput, --rate and --p99-limit"),
        (["net.onnx", "--throughput", "--streams", "9999"], "9999 is not allowed here"),
        (["net.onnx", "--throughput", "--batches", "1.5"], "not a list of positive numbers"),
        (["net.onnx", "other.onnx"], "other.onnx takes other inputs than net.onnx"),
    ],
)
def test_a_wrong_command_line_is_one_line_and_help(files, words, message):
    assert message in refusal(*words)


def test_a_file_that_is_none_and_a_batch_that_does_not_fit_are_failures_of_the_measurement(files):
    (files / "ov.int8" / "model.xml").write_text("<?xml?><net")
    for words, message in (
        (["ov.int8"], "model.xml"),
        (["fixed.onnx", "--batch", "4", "--quick"], "fixed.given@local takes 1 rows at once, not 4"),
        (["net.onnx", "--time-limit", "10ms"], "ended after 0.01 s"),
    ):
        error = CliRunner().invoke(app, ["measure", *words]).exception
        assert isinstance(error, BenchError)
        assert "\n" not in error.message
        assert message in error.message or message == "model.xml"
        assert error.exit_code == 4


@pytest.mark.slow
def test_an_engine_file_is_measured_as_it_is_and_held_against_onnx(files):
    engine = runtime("openvino")
    folder = files / "built"
    folder.mkdir()
    engine.compile(files / "net.onnx", folder, device="CPU", threads=1, options={})
    more = ["--throughput", "--streams", "1", "--rate", "2000", "--min-time", "100ms"]
    result = CliRunner().invoke(app, ["measure", "built", "net.onnx", "--quick", "--launches", "1", *more, "--json"])
    assert result.exit_code == 0, result.exception
    found = json.loads(result.stdout)
    assert [(row["model"], row["runtime"]) for row in found["latency"]] == [
        ("built", "openvino"),
        ("net", "onnxruntime"),
    ]
    assert (found["comparisons"][0]["a"], found["comparisons"][0]["b"]) == ("built", "net")
    assert [row["model"] for row in found["throughput"]] == [row["model"] for row in found["load"]] == ["built", "net"]
    assert found["sustain"] is None
    ort = found["latency"][1]
    assert (ort["read_ms"], len(ort["runs_1_to_10_ms"])) == (None, 10)
    assert ort["compile_ms"] > 0
    assert ort["rss_bytes"] > 0


@pytest.mark.parametrize("name", ["onnxruntime", "openvino"])
def test_streams_of_an_engine_answer_each_for_itself(files, name):
    engine = runtime(name)
    folder = files / "streams"
    folder.mkdir()
    build = engine.compile(files / "net.onnx", folder, device="CPU", threads=1, options={})
    sessions = engine.load_streams(folder / build.file, device="CPU", threads=1, streams=3)
    for index, session in enumerate(sessions):
        session.bind({"x": np.full((index + 1, 8), index, np.float32)})
    for session in sessions:
        session.run()
    for index, session in enumerate(sessions):
        assert session.fetch()["y"] == pytest.approx(np.full((index + 1, 8), 0.64 * index), rel=1e-5)
    assert sessions[0].phases.compile_ms > 0
    for session in sessions:
        session.close()


LATENCY = {
    "model": "net", "p50_ms": 1.5, "p99_ms": 2.25, "ci95": {"p50_ms": [1.25, 1.75]}, "n": 5000, "load_ms": 12.5,
    "first_ms": 3.0, "peak_rss_bytes": 64_000_000, "compute_ms": 0.5, "h2d_ms": 0.25, "d2h_ms": 0.125,
    "energy_mj_per_inference": 4.5, "energy_source": "rapl", "contended": True, "throttled": None, "leaks": True,
    "steady": False, "few_launches": False, "launches": 5,
}  # fmt: skip
PAIR = {"a": "net", "b": "old", "ci95": [0.5, 0.75], "ratio": 0.625, "verdict": "faster", "led_by": "cpu"}
FAST = {"model": "net", "batch": 8, "streams": 2, "throughput_per_s": 900.0, "p50_ms": 2.0, "saturated": True}
FAST["ci95"] = {"throughput_per_s": [890.0, 910.0]}
RATE = {"model": "net", "rate_per_s": 50.0, "achieved_per_s": 49.0, "p50_ms": 2.0, "p99_ms": 4.0, "kept_up": True,
        "ci95": {"p99_ms": [3.5, 4.5]}, "limit_ms": 5.0, "highest": True}  # fmt: skip
OVER = {**RATE, "rate_per_s": 99.0, "kept_up": False, "highest": False, "p99_ms": None, "ci95": {"p99_ms": None}}
LONG = {"model": "net", "t_s": [60.0, 120.0], "p50_ms": [1.0, 1.5], "drift": 0.5, "reference_drift": 0.01,
        "throttled": None, "leaks": False, "memory_growth_bytes_per_call": 0.0}  # fmt: skip


def test_everything_that_was_measured_is_said_in_lines():
    rows = {"latency": [LATENCY], "comparisons": [PAIR], "throughput": [FAST], "load": [RATE, OVER], "sustain": LONG}
    assert list(measured.lines(rows)) == [
        "net: p50 1.500 ms [1.250, 1.750], p99 2.250 ms, n 5000",
        "  load 12.5 ms, first call 3.000 ms, peak memory 64 MB, compute 0.500 ms, in 0.250 ms, out 0.125 ms, "
        "4.5 mJ (rapl)",
        "  note: other processes disturbed more than a fifth of the samples",
        "  note: memory grew with the calls",
        "  note: it never became steady, or did not stay so",
        "net / old: 0.625 [0.500, 0.750]  faster by CPU time",
        "net, batch 8, 2 at once: 900 samples/s [890, 910], p50 2.000 ms  saturated",
        "net at 50/s: p50 2.000 ms, p99 4.000 ms [3.500, 4.500]",
        "net at 99/s: p50 2.000 ms, p99 unknown  the queue only grew (49/s were answered)",
        "net: highest rate with p99 within 5 ms: 50/s",
        "net, 2 min: p50 from 1.000 to 1.500 ms",
        "  drift +50.0% (reference +1.0%), throttling unknown, memory does not grow (0 bytes a call)",
    ]


@pytest.mark.parametrize(
    ("launches", "said"),
    [
        (1, "1 launch: the interval is within it, and another one may differ by more; 5 are usual (--launches)"),
        (2, "2 launches: too few to know what launches differ by, so the interval is wide; 5 are usual (--launches)"),
    ],
)
def test_too_few_launches_are_said_beside_the_interval(launches, said):
    row = {**LATENCY, "launches": launches, "few_launches": True}
    rows = {"latency": [row], "comparisons": [], "throughput": [], "load": [], "sustain": None}
    assert f"  note: {said}" in list(measured.lines(rows))


def test_a_search_without_a_find_says_so():
    rows = {"latency": [], "comparisons": [], "throughput": [], "load": [OVER], "sustain": None}
    assert list(measured.lines(rows))[-1] == "net: highest rate with p99 within 5 ms: none was found"


@pytest.mark.parametrize(
    ("text", "value"), [("30m", 1800), ("90s", 90), ("1h", 3600), ("5ms", 0.005), (" 1.5 s", 1.5), ("250us", 0.00025)]
)
def test_durations(text, value):
    assert seconds(text) == pytest.approx(value)


@pytest.mark.parametrize("text", ["", "30", "m", "1 day", "-5s", "1e3s", "s5", "nan s", "٣s"])
def test_what_is_no_duration(text):
    with pytest.raises(ValueError, match="is no duration"):
        seconds(text)


def test_batches_of_throughput_fit_the_targets():
    target = TargetSettings.model_validate({"runtime": "tensorrt", "max_batch": 4}, strict=False)
    stage = BenchStage.model_validate({"throughput": {"batches": [1, 8]}}, strict=False)
    ((message, hint),) = stage.problems({"trt": target})
    assert message == "bench.throughput.batches 8 is above max_batch 4 of target trt"
    assert "max_batch: 8" in hint
    auto = BenchStage.model_validate({"throughput": {"batches": "auto"}}, strict=False)
    assert auto.problems({"trt": target}) == []


def test_nothing_more_is_measured_unless_it_is_asked_for():
    settings = BenchSettings()
    assert (settings.throughput, settings.load, settings.sustain_s) == (None, None, 0.0)
    assert SimpleNamespace(**vars(settings.effort())).requests >= 1000
