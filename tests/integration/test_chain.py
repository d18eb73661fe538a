"""The whole chain on real data: what it leaves, what it takes from the store, what it proves."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import jsonschema
import onnx
import pytest
from chain import MICRO, Result, Workshop

import edgekd
from edgekd.export.metadata import read_metadata
from edgekd.files import sha256_file
from edgekd.report.schema import json_schema

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def workshop(tmp_path_factory: pytest.TempPathFactory) -> Workshop:
    made = Workshop(tmp_path_factory.mktemp("micro"))
    made.write(MICRO)
    return made


@pytest.fixture(scope="module")
def first(workshop: Workshop) -> Result:
    result = workshop.run()
    assert result.code == 0, result.err
    return result


def build(result: Result, target: str, model: str) -> dict[str, Any]:
    return next(b for b in result.report["builds"] if b["target"] == target and b["model"] == model)


def test_the_report_is_valid_and_every_stage_ran(first: Result) -> None:
    jsonschema.validate(first.report, json_schema())
    assert set(first.states().values()) == {"ran"}
    assert [m["role"] for m in first.report["models"]] == ["teacher", "student", "quantized"]
    assert first.report["status"] == "ok"
    assert first.report["data"]["n"] == {"train": 320, "validation": 100, "test": 797}


def test_a_drop_is_judged_with_the_interval_of_its_pairs(first: Result) -> None:
    drop = next(gate for gate in first.report["gates"] if gate["measure"] == "metric_drop")
    scores = {m["role"]: m["metrics"][0] for m in first.report["models"]}
    assert drop["value"] == pytest.approx(100 * (scores["student"]["value"] - scores["quantized"]["value"]))
    low, high = drop["ci95"]
    assert low <= drop["value"] <= high
    assert (low, high) != (drop["value"], drop["value"])
    assert set(scores["quantized"]) == {"name", "value", "unit", "split", "n", "ci95"}  # pairs are for gates alone


def test_the_report_says_what_the_time_went_into(first: Result) -> None:
    timing = dict(first.report["timing"])
    assert timing.pop("own_cpu_s") > 0
    assert all(timing[f"{part}_s"] > 0 for part in ("train", "export", "compile", "measure", "own"))
    assert sum(timing.values()) == pytest.approx(first.report["seconds"], abs=0.01)


def test_the_table_is_on_standard_output_and_progress_on_standard_error(first: Result) -> None:
    assert "quantized" in first.out
    assert "report.html" in first.out
    assert "supervised 4/4" in first.err
    assert "supervised" not in first.out


def test_every_file_of_the_report_is_there_with_its_digest(workshop: Workshop, first: Result) -> None:
    for row in first.report["builds"]:
        assert sha256_file(workshop.out / row["path"]) == row["sha256"]
    for row in [*first.report["details"], *({"path": r["samples_path"]} for r in first.report["latency"])]:
        assert (workshop.out / row["path"]).is_file()
    manifest = json.loads((workshop.out / "manifest.json").read_text())
    for name, facts in manifest["files"].items():
        assert sha256_file(workshop.out / name) == facts["sha256"]
    builds = json.loads((workshop.out / "report.json").read_text())["builds"]
    assert builds and {build["onnx"] for build in builds} <= set(manifest["files"])
    names = {"report.json", "report.html", "report.md", "junit.xml", "manifest.json", "log.jsonl"}
    assert names <= {p.name for p in workshop.out.iterdir()}


@pytest.mark.parametrize("target", ["ov", "ort"])
def test_every_build_of_a_target_has_the_time_of_its_layers(workshop: Workshop, first: Result, target: str) -> None:
    paths = [d["path"] for d in first.report["details"] if d["kind"] == "layers"]
    assert paths == ["artifacts/latency/ort/layers.json", "artifacts/latency/ov/layers.json"]
    rows = json.loads((workshop.out / f"artifacts/latency/{target}/layers.json").read_text())["rows"]
    keys = {"target", "model", "precision", "layer", "kind", "executed", "ms", "share"}
    assert all(set(row) == keys and row["ms"] > 0 for row in rows)
    measured = {(row["target"], row["model"], row["precision"]) for row in rows}
    assert measured == {
        (b["target"], b["model"], b["precision"]) for b in first.report["builds"] if b["target"] == target
    }
    eight_bit = [r for r in rows if r["executed"] == "int8" and "conv" in r["kind"].lower()]
    assert [r["model"] for r in eight_bit] == ["quantized"] * 3
    for build_ in measured:
        assert sum(r["share"] for r in rows if (r["target"], r["model"], r["precision"]) == build_) == pytest.approx(
            1, abs=0.01
        )


def test_the_size_of_a_build_is_that_of_its_model(workshop: Workshop, first: Result) -> None:
    row = build(first, "ov", "quantized")
    folder = (workshop.out / row["path"]).parent
    assert (folder / "model.blob").is_file()
    assert row["size_bytes"] == sum((folder / f"model.{ending}").stat().st_size for ending in ("xml", "bin"))


@pytest.mark.parametrize("target", ["ov", "ort"])
def test_every_convolution_of_the_int8_build_runs_in_8_bits(first: Result, target: str) -> None:
    assert build(first, target, "quantized")["executed_convolutions"] == {"int8": 3}
    assert build(first, target, "student")["executed_convolutions"] == {"f32": 3}
    assert build(first, target, "quantized")["executed_precision"]["int8"] >= 3


def test_weights_are_stored_as_int8(workshop: Workshop) -> None:
    def initializer_bytes(name: str) -> int:
        model = onnx.load(str(workshop.out / "artifacts" / name))
        return sum(onnx.numpy_helper.to_array(t).nbytes for t in model.graph.initializer)

    for flavour in ("int8", "uint8"):
        assert initializer_bytes(f"student.{flavour}.onnx") <= 0.30 * initializer_bytes("student.f32.onnx")


def test_exported_files_carry_what_a_device_needs_and_nothing_of_this_machine(
    workshop: Workshop, first: Result
) -> None:
    for path in (workshop.out / "artifacts").glob("*.onnx"):
        model = onnx.load(str(path))
        facts = {entry.key: entry.value for entry in model.metadata_props}
        stored = read_metadata(path)
        role = "quantized" if stored["flavour"] != "f32" else stored["role"]
        made_by = {"teacher": "teacher", "student": "distill", "quantized": "quantize"}[role]
        assert (stored["role"], path.name.split(".")[1]) == (role, stored["flavour"])
        assert stored["key"] == next(s["key"] for s in first.report["stages"] if s["name"] == made_by)
        assert [(row["name"], row["split"], row["n"]) for row in stored["accuracy"]] == [
            ("accuracy", "validation", 100)
        ]
        assert stored["heads"] == {"logits": {"task": "classification", "target": "label"}}
        assert stored["labels"] == {"label": list("0123456789")}
        assert (stored["pipeline"], stored["version"], stored["opset"]) == ("micro", edgekd.__version__, 20)
        image = stored["preprocessing"]["image"]
        assert (image["dtype"], image["layout"], image["shape"]) == ("float32", "NCHW", [1, 8, 8])
        assert image["normalized_by"] == "the caller" and image["scale"] == 1.0
        assert facts["edgekd.flavour"] == stored["flavour"]
        assert model.graph.input[0].name == "image"
        assert model.graph.input[0].type.tensor_type.shape.dim[0].dim_param
        assert model.graph.output[0].name == "logits"
        assert [o.version for o in model.opset_import if not o.domain] == [20]
        content = path.read_bytes()
        for trace in (str(Path(__file__).parents[2]), str(workshop.folder), "site-packages", "pkg.torch"):
            assert trace.encode() not in content


def test_builds_agree_with_the_networks_they_were_made_from(first: Result) -> None:
    for row in first.report["builds"]:
        assert row["parity"]["n"] == 797
        assert row["parity"]["agreement"]["logits"] >= (0.999 if row["precision"] == "f32" else 0.95)
        assert row["metrics"][0]["name"] == "accuracy"
        assert row["metrics"][0]["n"] == 797


def test_teacher_student_and_quantized_are_measured_interleaved_on_each_target(first: Result) -> None:
    for target in ("ov", "ort"):
        models = {r["model"] for r in first.report["latency"] if r["target"] == target}
        assert models == {"teacher", "student", "quantized"}
        pairs = [c for c in first.report["comparisons"] if c["target"] == target]
        assert len(pairs) == 3
        assert sum(b["chosen"] for b in first.report["builds"] if b["target"] == target) == 1


def without_what_may_differ(value: Any) -> Any:
    if isinstance(value, dict):
        return {
            k: without_what_may_differ(v)
            for k, v in value.items()
            if k not in ("created", "seconds", "timing", "state", "why", "cache")
        }
    return [without_what_may_differ(v) for v in value] if isinstance(value, list) else value


def test_the_same_command_again_takes_everything_from_the_store(workshop: Workshop, first: Result) -> None:
    again = workshop.run()
    assert set(again.states().values()) == {"cached"}
    assert without_what_may_differ(again.report) == without_what_may_differ(first.report)


@pytest.mark.parametrize(
    "change",
    [
        lambda text: "# a comment\n" + text,
        lambda text: text.replace("50 pt", "40 pt"),
        lambda text: text.replace("{quick: true, launches: 1,", "{launches: 1, quick: true,"),
    ],
    ids=["comment", "budget", "order of keys"],
)
def test_what_changes_no_result_runs_nothing(workshop: Workshop, first: Result, change: Any) -> None:
    workshop.write(change(MICRO))
    try:
        assert set(workshop.run().states().values()) == {"cached"}
    finally:
        workshop.write(MICRO)


def test_a_changed_option_runs_its_stage_and_what_depends_on_it_and_says_why(workshop: Workshop, first: Result) -> None:
    result = workshop.run("--set", "evaluate.batch=32", "--out", str(workshop.folder / "other"))
    report = json.loads((workshop.folder / "other" / "report.json").read_text())
    assert result.code == 0
    states = {stage["name"]: (stage["state"], stage["why"]) for stage in report["stages"]}
    assert states["evaluate"] == ("ran", "changed: settings.batch 64 -> 32")
    assert {state for name, (state, _) in states.items() if name != "evaluate"} == {"cached"}


GATES = {
    'metric, of: quantized, min: "99.9 %"': "metric of quantized at least 99.9 %",
    'metric_drop, of: quantized, against: teacher, max: "-99 pt"': "metric_drop of quantized against teacher",
    'metric_drop, of: quantized, against: float, max: "-99 pt"': "metric_drop of quantized against float",
    'p50, of: quantized, target: ov, max: "1 us"': "p50 of quantized on ov at most 1 us",
    'p90, of: quantized, target: ort, max: "1 us"': "p90 of quantized on ort at most 1 us",
    'p99, of: student, target: ov, max: "1 us"': "p99 of student on ov at most 1 us",
    'throughput, of: quantized, target: ov, min: "1e9 /s"': "throughput of quantized on ov at least 1e9 /s",
    'speedup, of: quantized, against: float, target: ov, min: "1000 x"': "speedup of quantized against float on ov",
    'size, of: quantized, target: ort, max: "1 kB"': "size of quantized on ort at most 1 kB",
    'peak_memory, of: quantized, target: ov, max: "1 MB"': "peak_memory of quantized on ov at most 1 MB",
    'parity, of: student, target: ov, max: "1 %"': "parity of student on ov at most 1 %",
    'executed_share, of: quantized, target: ort, max: "1 %"': "executed_share (int8) of quantized on ort at most 1 %",
}


def test_every_kind_of_budget_when_it_breaks_is_named_with_value_and_limit(workshop: Workshop, first: Result) -> None:
    head = MICRO[: MICRO.index("gates:")]
    undecided = ", undecided: fail"  # so few samples may have no 99th percentile: then it breaks as undecided
    gates = "".join(f"  - {{measure: {text}{undecided}}}\n" for text in GATES)
    workshop.write(f"{head}gates:\n{gates}")
    try:
        result = workshop.run()
    finally:
        workshop.write(MICRO)
    assert (result.code, result.report["status"]) == (5, "gate_failed")
    assert set(result.states().values()) == {"cached"}
    lines = [line for line in result.err.splitlines() if "budget broken: " in line]
    rows = result.report["gates"]
    assert len(lines) == len(rows) == len(GATES)
    for line, label, row in zip(lines, GATES.values(), rows, strict=True):
        assert f"budget broken: {label}" in line
        assert "limit" in line
        assert row["verdict"] == ("undecided" if row["value"] is None else "failed")
        assert row["value"] is not None or row["measure"] in ("p90", "p99")  # too few samples beyond them
    assert {"metric", "p50", "speedup", "throughput"} <= {row["measure"] for row in rows if row["ci95"]}
    suite = ElementTree.fromstring((workshop.out / "junit.xml").read_text())
    broken = {
        case.get("name"): case.find("failure")
        for case in suite.iter("testcase")
        if "gate" in str(case.get("classname"))
    }
    assert len(broken) == len(GATES)
    failed = sum(row["verdict"] == "failed" for row in rows)
    assert suite.get("failures") == str(failed)
    messages = [str(mark.get("message")) for mark in broken.values() if mark is not None]
    assert all(message.startswith("failed: ") and ", limit " in message for message in messages)


def test_a_broken_budget_ends_with_5_and_says_which(workshop: Workshop, first: Result) -> None:
    workshop.write(MICRO.replace('max: "50 pt"', 'max: "-99 pt"'))
    try:
        result = workshop.run()
    finally:
        workshop.write(MICRO)
    assert result.code == 5
    assert result.report["status"] == "gate_failed"
    assert "budget broken: metric_drop of quantized against student at most -99 pt" in result.err
    assert 'failures="1"' in (workshop.out / "junit.xml").read_text()


def test_a_flipped_bit_in_any_kind_of_artefact_is_found_and_built_again(workshop: Workshop, first: Result) -> None:
    flipped = {}
    for stage in first.report["stages"]:
        folder = workshop.folder / "store" / "objects" / stage["key"][:2] / stage["key"]
        file = max(
            (p for p in folder.rglob("*") if p.is_file() and p.name != "meta.json"), key=lambda p: p.stat().st_size
        )
        data = bytearray(file.read_bytes())
        data[len(data) // 2] ^= 1
        file.write_bytes(bytes(data))
        flipped[stage["name"]] = file.relative_to(folder).as_posix()
    checked = subprocess.run(
        [sys.executable, "-m", "edgekd", "store", "verify", "--store", str(workshop.folder / "store")],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert checked.returncode == 4
    again = workshop.run()
    assert again.code == 0, again.err
    assert [(row["name"], row["state"], row["cache"]) for row in again.report["stages"]] == [
        (name, "ran", "miss") for name in flipped
    ]
    for row in again.report["stages"]:
        words = f"{flipped[row['name']]} was changed"
        assert row["why"] == f"its artefact was damaged: {words}"
        assert words in again.err
        assert words in checked.stdout


def test_a_learning_rate_for_training_from_scratch_does_not_spoil_the_quantized_network(
    workshop: Workshop, first: Result
) -> None:
    result = workshop.run("--set", "train.lr=0.05", "--set", "quantize.epochs=2", "--to", "quantize")
    accuracy = {m["role"]: m["metrics"][0]["value"] for m in result.report["models"]}
    assert accuracy["quantized"] >= accuracy["student"] - 0.05


def test_a_run_that_was_killed_ends_with_the_same_bytes_as_one_that_was_not(tmp_path: Path) -> None:
    text = MICRO.replace("args: {width: 8}, epochs: 4", "args: {width: 8}, epochs: 40")
    whole, killed = Workshop(tmp_path / "whole"), Workshop(tmp_path / "killed")
    for made in (whole, killed):
        made.folder.mkdir()
        made.write(text)
    other = {**os.environ, "PYTHONHASHSEED": "1"}  # the order of sets decides nothing
    subprocess.run(whole.command("--to", "distill"), env=other, capture_output=True, check=True)

    process = subprocess.Popen(killed.command("--to", "distill"), stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    for line in process.stderr:
        if "offline 5/40" in line:
            process.send_signal(signal.SIGKILL)
            break
    process.stderr.close()
    assert process.wait(timeout=60) == -signal.SIGKILL
    time.sleep(0.1)
    resumed = killed.run("--to", "distill")
    assert resumed.states()["teacher"] == "cached"
    assert resumed.states()["distill"] == "resumed"
    assert "offline 5/40" not in resumed.err
    name = "artifacts/student.safetensors"
    assert (killed.out / name).read_bytes() == (whole.out / name).read_bytes()
