"""The report: its schema holds, and whatever a run left behind can be drawn, safely."""

from __future__ import annotations

import json
import math
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as ET

import jsonschema
import numpy as np
import pytest
import xmlschema
from pydantic import ValidationError

from edgekd.errors import ConfigError
from edgekd.report import html, words
from edgekd.report.attachments import samples
from edgekd.report.draw import draw, read_report
from edgekd.report.drawings import Remembered
from edgekd.report.markdown import escape, markdown, markdown_table
from edgekd.report.schema import SCHEMA_FILE, Gate, Metric, Report, Stage, json_schema, schema_text
from edgekd.report.table import align, render_text, result_table
from edgekd.report.verdict import sentences

DRAWN = ("report.json", "report.md", "report.html", "junit.xml")
HOSTILE = "<script>alert(1)</script>"


@pytest.fixture(autouse=True)
def no_job_summary(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("GITHUB_STEP_SUMMARY", raising=False)


def metric(value: float, split: str = "test", **more: Any) -> dict[str, Any]:
    half = 0.003
    return {
        "name": "accuracy",
        "value": value,
        "split": split,
        "n": 10000,
        "ci95": [value - half, value + half],
        **more,
    }


def build(target: str, model: str, precision: str, value: float, **more: Any) -> dict[str, Any]:
    tensor = {"name": "image", "dtype": "float32", "shape": [-1, 3, 32, 32]}
    return {
        "target": target, "runtime": "openvino", "device": "CPU", "precision": precision, "model": model,
        "path": f"artifacts/builds/{target}.{precision}", "sha256": "ab" * 32, "size_bytes": 310_000, "seconds": 1.5,
        "inputs": [tensor], "outputs": [tensor], "opset": 20, "built_on": "m1", "metrics": [metric(value)],
        "parity": {"reference": "pytorch", "n": 256, "max_abs_error": 0.01, "agreement": {"top1": 0.998}},
        "executed_precision": {"int8": 20, "f32": 3}, **more,
    }  # fmt: skip


def latency(target: str, model: str, precision: str, p50: float, **more: Any) -> dict[str, Any]:
    return {
        "target": target, "runtime": "openvino", "device": "CPU", "model": model, "precision": precision, "batch": 1,
        "threads": 1, "n": 1000, "launches": 5, "quick": True, "p50_ms": p50, "p90_ms": p50 * 1.1, "p95_ms": p50 * 1.2,
        "p99_ms": p50 * 1.5, "ci95": {"p50_ms": [p50 * 0.97, p50 * 1.03]}, "load_ms": 40.0,
        "throughput_per_s": 1e3 / p50, "first_ms": 3.0, "peak_rss_bytes": 120_000_000, "steady": True,
        "contended": False, **more,
    }  # fmt: skip


def comparison(ratio: float, verdict: str, **more: Any) -> dict[str, Any]:
    interval = [ratio * 0.96, ratio * 1.05]
    a, b = "quantized int8", "student f32"
    return {
        "a": a,
        "b": b,
        "measure": "p50",
        "ratio": ratio,
        "ci95": interval,
        "verdict": verdict,
        "target": "ov",
        **more,
    }


def gate(verdict: str, **more: Any) -> dict[str, Any]:
    return {
        "measure": "metric_drop", "of": "quantized", "against": "student", "limit": 1.0, "unit": "pt", "value": 1.4,
        "ci95": [1.2, 1.6], "verdict": verdict, "broken": verdict == "failed", **more,
    }  # fmt: skip


def full(**changes: Any) -> Report:
    content: dict[str, Any] = {
        "edgekd_version": "0.1.0", "run_id": "r1", "pipeline": "cifar10", "status": "ok", "exit_code": 0,
        "created": "2026-01-02T03:04:05+00:00", "seconds": 321.5, "seed": 0, "git": {"commit": "c0ffee", "dirty": True},
        "environment": {"host": "box", "cpu": "A CPU", "cores": 2, "memory_bytes": 8e9, "os": "Linux 6",
                        "python": "3.11", "packages": {"torch": "2.13"}},
        "data": {"fingerprint": "f1", "licence": "MIT", "n": {"train": 45000, "validation": 5000, "test": 10000}},
        "stages": [
            {"name": "teacher", "state": "cached", "cache": "local", "key": "k1", "seconds": 0.01},
            {"name": "distill", "state": "ran", "cache": "miss", "key": "k2", "seconds": 300, "why": "epochs 60 -> 61"},
            {"name": "bench", "state": "skipped", "why": "no targets"},
        ],
        "models": [
            {"role": "teacher", "name": "resnet56", "parameters": 855770, "macs": 126_000_000, "size_bytes": 3_423_080,
             "metrics": [metric(0.99, "validation"), metric(0.984)]},
            {"role": "quantized", "name": "resnet20", "parameters": 272474, "metrics": [metric(0.982)]},
        ],
        "builds": [
            build("ov", "student", "f32", 0.983, rejected_because="slower than int8 | by far"),
            build("ov", "quantized", "int8", 0.982, chosen=True),
        ],
        "latency": [
            latency("ov", "quantized", "int8", 9.0, batch=8),
            latency("ov", "student", "f32", 2.52, samples_path="samples/ov.npz", warm_stable=True),
            latency("ov", "quantized", "int8", 1.2, samples_path="samples/ov.npz", throttled=True),
        ],
        "comparisons": [comparison(0.476, "faster"), comparison(1.0, "equivalent", clock="cpu")],
        "gates": [gate("passed", value=0.1, ci95=[0.0, 0.2])],
        "details": [{"kind": "loss_curves", "path": "curves.json"}, {"kind": "arms", "path": "arms.json"}],
    }  # fmt: skip
    return Report.model_validate({**content, **changes})


def empty(**changes: Any) -> Report:
    content = {
        "edgekd_version": "0.1.0", "run_id": "r0", "pipeline": "p", "status": "failed", "exit_code": 4, "seconds": 0.2,
        "created": "2026-01-02T03:04:05Z", "error": {"message": "the data is gone", "hint": "bring it back"},
    }  # fmt: skip
    return Report.model_validate({**content, **changes})


@pytest.fixture
def attached(tmp_path: Path) -> Path:
    """A run's folder with everything that the full report points to."""
    rng = np.random.default_rng(0)
    (tmp_path / "samples").mkdir()
    times = {"student": 2.5 + rng.gamma(2, 0.05, 1000), "quantized": 1.2 + rng.gamma(2, 0.03, 1000)}
    np.savez(tmp_path / "samples" / "ov.npz", **times)
    epochs = list(range(1, 61))
    phase = {
        "name": "distill", "epochs": epochs,
        "terms": {"kd": [3.0 / e for e in epochs], "task": [2.0 / e for e in epochs], "bad": [None, float("nan")]},
        "metrics": {"accuracy": [1 - 1 / (e + 1) for e in epochs]},
    }  # fmt: skip
    (tmp_path / "curves.json").write_text(json.dumps({"phases": [phase]}))
    (tmp_path / "arms.json").write_text(json.dumps([{"arm": "ptq", "accuracy": 0.9}, {"arm": "qat", "accuracy": 0.95}]))
    return tmp_path


def test_committed_schema_is_the_one_generated_from_the_types() -> None:
    assert SCHEMA_FILE.read_text() == schema_text(), "run `python -m edgekd.report.schema`"
    jsonschema.Draft202012Validator.check_schema(json_schema())


def test_every_field_has_a_description() -> None:
    schema = json_schema()
    parts = [schema, *schema["$defs"].values()]
    missing = [(p["title"], name) for p in parts for name, f in p["properties"].items() if "description" not in f]
    assert missing == []


@pytest.mark.parametrize("report", [full(), empty()], ids=["full", "empty"])
def test_written_report_validates_and_reads_back(report: Report, tmp_path: Path) -> None:
    draw(report, tmp_path)
    jsonschema.validate(json.loads((tmp_path / "report.json").read_text()), json.loads(SCHEMA_FILE.read_text()))
    assert read_report(tmp_path) == read_report(tmp_path / "report.json") == report


def test_report_holds_the_fields_of_the_contract() -> None:
    fields = """schema_version edgekd_version run_id pipeline status exit_code error created seconds timing seed git
                environment data stages models builds latency comparisons throughput load gates details"""
    assert fields.split() == list(Report.model_fields)


def test_unknown_field_is_refused_but_a_latency_may_carry_more() -> None:
    with pytest.raises(ValidationError, match="surprise"):
        full(surprise=1)
    assert full().latency[1].model_dump()["warm_stable"] is True


@pytest.mark.parametrize("path", ["/etc/passwd", "../other/report.json", "a/../../b", "C:\\samples.npz", "..\\x"])
def test_path_out_of_the_run_folder_is_refused(path: str) -> None:
    with pytest.raises(ValidationError, match="out of the run's folder"):
        full(details=[{"kind": "layers", "path": path}])


def test_what_is_not_finite_becomes_null() -> None:
    report = full(gates=[gate("undecided", value=float("nan"), ci95=[float("-inf"), np.float32("nan")])])
    assert (report.gates[0].value, report.gates[0].ci95) == (None, None)


def test_error_with_bytes_that_are_not_utf8_can_be_written(tmp_path: Path) -> None:
    draw(empty(error={"message": f"cannot read {os.fsdecode(b'caf' + bytes([0xE9]))}"}), tmp_path)
    assert "cannot read caf?" in (tmp_path / "report.md").read_text()


def test_run_that_failed_before_the_first_stage_still_draws_all_four_files(tmp_path: Path) -> None:
    draw(empty(), tmp_path)
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted(DRAWN)
    for name in ("report.md", "report.html", "junit.xml"):
        text = (tmp_path / name).read_text()
        assert "the data is gone" in text
        assert "bring it back" in text


def test_full_report_draws_every_chart(attached: Path) -> None:
    draw(full(), attached)
    page = (attached / "report.html").read_text()
    assert len(page.encode()) < 300_000
    titles = re.findall(r"<svg [^>]*><title>([^<]*)", page)
    assert titles == [
        "accuracy over median latency",
        "Comparisons with 95% intervals",
        "Latency on ov: share of inferences",
        "Latency on ov: cumulative share",
        "distill: loss terms",
        "distill: metrics",
    ]
    assert "<h2>arms</h2>" in page
    assert "nan" not in "".join(re.findall(r'd="([^"]*)"', page))
    for drawing in re.findall(r"<svg.*?</svg>", page):
        ET.fromstring(drawing)


def test_drawings_are_remembered_and_the_page_is_what_it_would_be(
    attached: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn: list[str] = []
    really = html._drawings
    monkeypatch.setattr(html, "_drawings", lambda report, folder: drawn.append(report.run_id) or really(report, folder))
    memo = attached / "drawings.json"
    manifest = {"files": {"samples/ov.npz": {"sha256": "a"}}, "command": ["edgekd", "run", "p.yaml"]}
    later = full(created="2027-01-01T00:00:00Z", seconds=1.0, stages=[], git=None)
    for report in (full(), later):
        assert html.html(report, attached, manifest, Remembered(memo)) == html.html(report, attached, manifest)
    assert len(drawn) == 1 + 2  # once for both, and twice without a memory
    html.html(full(latency=[]), attached, manifest, Remembered(memo))
    manifest["files"] = {"samples/ov.npz": {"sha256": "b"}}
    html.html(full(), attached, manifest, Remembered(memo))
    assert len(drawn) == 5  # other numbers, and other files under the same numbers


@pytest.mark.parametrize("content", ["", "[]", '{"KEY": 1}', '{"KEY": [["a", [1]]]}', '{"KEY": [["a"]]}'])
def test_drawings_that_were_damaged_are_drawn_anew(content: str, tmp_path: Path) -> None:
    memo, manifest = tmp_path / "drawings.json", {"files": {}}
    found = Remembered(memo).drawings(empty(), manifest, lambda report: [("a", ["<svg>"])])
    (key,) = json.loads(memo.read_text())
    memo.write_text(content.replace("KEY", key))
    assert Remembered(memo).drawings(empty(), manifest, lambda report: [("b", ["<svg>"])]) == [("b", ["<svg>"])]
    assert Remembered(memo).drawings(empty(), manifest, lambda report: []) == [("b", ["<svg>"])] != found


def test_html_needs_no_network_and_carries_its_data(attached: Path) -> None:
    draw(full(), attached)
    page = (attached / "report.html").read_text()
    assert not re.search(r"https?://|//[a-z]+\.|@import|url\(|<link|src=", page)
    data = re.search(r'<script type="application/json" id="report">(.*?)</script>', page)
    assert data
    assert Report.model_validate_json(data.group(1)) == full()


def test_samples_are_drawn_as_the_measuring_loop_keeps_them(attached: Path) -> None:
    wall = {f"{launch}/wall_ns": np.full((3, 4), 2_500_000 + launch * 10_000) for launch in range(2)}
    np.savez(attached / "samples" / "ov.npz", **wall, **{"0/start_ns": np.zeros(3, np.int64)})
    times = samples(full().latency[1], attached)
    assert times is not None
    assert times.tolist() == [2.5] * 12 + [2.51] * 12
    draw(full(), attached)
    assert "student f32, batch 1, n 24" in (attached / "report.html").read_text()


@pytest.mark.parametrize(
    "broken", [b"", b"not what it should be", b"PK\x03\x04broken", b"[1, 2", b'{"phases": 3}', b"[[]]"]
)
def test_attachment_that_cannot_be_read_is_left_out(broken: bytes, attached: Path) -> None:
    for name in ("samples/ov.npz", "curves.json", "arms.json"):
        (attached / name).write_bytes(broken)
    draw(full(), attached)
    assert "Latency on ov" not in (attached / "report.html").read_text()


def test_attachment_reached_through_a_link_out_of_the_folder_is_left_out(attached: Path, tmp_path_factory: Any) -> None:
    outside = tmp_path_factory.mktemp("outside") / "arms.json"
    (attached / "arms.json").rename(outside)
    (attached / "arms.json").symlink_to(outside)
    draw(full(), attached)
    assert "<h2>arms</h2>" not in (attached / "report.html").read_text()


def test_hostile_names_stay_text_everywhere(attached: Path) -> None:
    (attached / "curves.json").write_text(
        json.dumps({"phases": [{"name": HOSTILE, "epochs": [1, 2], "terms": {HOSTILE: [1, 2]}}]})
    )
    report = full(
        pipeline=HOSTILE,
        status="failed",
        error={"message": HOSTILE, "hint": f'"><img src=x onerror=1> {HOSTILE}', "stage": HOSTILE},
        builds=[build(HOSTILE, m, "f32", 0.9) for m in ("student", HOSTILE)],
        latency=[latency(HOSTILE, m, "f32", 1.0, samples_path="samples/ov.npz") for m in ("student", HOSTILE)],
        comparisons=[comparison(0.5, "faster", a=HOSTILE, target=HOSTILE)],
    )
    draw(report, attached)
    page = (attached / "report.html").read_text()
    assert re.findall(r"<script[^>]*>", page) == ['<script type="application/json" id="report">']
    assert page.count("</script") == 1
    assert "<img" not in page
    assert "<" not in (attached / "report.md").read_text().replace("<sub>", "").replace("</sub>", "")
    assert ET.parse(attached / "junit.xml").getroot().get("name") == f"edgekd {HOSTILE}"


def test_enormous_report_still_gives_a_page_under_300_kb(tmp_path: Path) -> None:
    stages = [{"name": f"s{i}", "state": "ran", "why": "because " * 100} for i in range(3000)]
    draw(full(stages=stages, error={"message": "long " * 100_000}, status="failed"), tmp_path)
    assert (tmp_path / "report.html").stat().st_size < 300_000


def test_result_table_takes_the_smallest_batch_and_drops_what_nobody_measured() -> None:
    header, first, second = result_table(full())
    assert (
        ", ".join(header) == "target, model, precision, accuracy, p50 ms, p99 ms, size, memory, load ms, layers, result"
    )
    assert first[-1] == "not chosen: slower than int8 | by far"
    assert second[4:6] == ["1.2 [1.164, 1.236]", "1.8"]
    assert second[-2:] == ["20 int8, 3 f32", "chosen"]
    bare = [build("ov", "student", "f32", 0.9, size_bytes=None, executed_precision={})]
    assert result_table(full(builds=bare, latency=[]))[0] == ["target", "model", "precision", "accuracy"]


def test_every_metric_of_a_build_has_a_column() -> None:
    metrics = [metric(0.9, name="kind.accuracy"), metric(2.5, name="size.mean_absolute_error", unit="target unit")]
    found = full(builds=[build("ov", "student", "f32", 0.9, metrics=metrics), build("ov", "teacher", "f32", 0.8)])
    header, first, second, *_ = result_table(found)
    assert header[3:6] == ["kind.accuracy", "size.mean_absolute_error", "accuracy"]
    assert first[3:6] == ["0.9 [0.897, 0.903]", "2.5 target unit [2.497, 2.503]", ""]
    assert second[3:6] == ["", "", "0.8 [0.797, 0.803]"]
    assert "| 2.5 target unit [2.497, 2.503] |" in markdown(found)
    shown = render_text(found).splitlines()
    assert "kind.accuracy" in shown[0]
    assert "2.5 target unit  " in shown[2]
    assert "[0.897" not in shown[2]


def test_measured_file_without_a_build_has_its_row() -> None:
    rows = result_table(full(builds=[]))
    assert [row[1] for row in rows[1:]] == ["quantized", "student", "quantized"]


def test_markdown_table_escapes_pipes_and_markup() -> None:
    table = markdown_table([["a|b", "n"], ["x | y\n`z` <b> [t](u) snake_case _em_", "1.5"]])
    lines = table.splitlines()
    assert lines[0] == r"| a\|b | n |"
    assert lines[1] == "| :--- | ---: |"
    assert lines[2] == r"| x \| y \`z\` &lt;b&gt; [t\](u) snake_case \_em\_ | 1.5 |"
    assert escape("a\\|b") == r"a\\\|b"


def test_markdown_shows_the_verdict_first_then_the_tables() -> None:
    text = markdown(full())
    assert text.startswith("# ✅ cifar10: 1 of 1 budgets held.\n")
    assert re.findall(r"^## (.*)$", text, re.M) == ["Result", "Comparisons", "Budgets", "Models", "Stages"]
    assert r"not chosen: slower than int8 \| by far" in text


def test_text_for_the_terminal_is_aligned_and_free_of_control_characters() -> None:
    text = render_text(full(pipeline="p", builds=[build("ov\x1b[31m", "student", "f32", 0.9)], latency=[], gates=[]))
    lines = text.splitlines()
    assert "\x1b" not in text
    assert lines[0].index("precision") == lines[2].index("f32")
    assert align([["a", "number"], ["long name", "7"], ["b", ""]]).splitlines()[2:] == ["long name       7", "b"]
    assert render_text(empty()) == ""
    networks = render_text(full(builds=[], latency=[], gates=[]))  # nothing was compiled: the networks' own numbers
    assert networks.splitlines()[0].split()[:2] == ["role", "model"]
    assert "resnet56" in networks


def test_verdict_names_the_broken_budget_with_value_limit_and_interval() -> None:
    lines = sentences(full(status="gate_failed", exit_code=5, gates=[gate("failed"), gate("passed")]))
    assert lines[0] == "cifar10: 1 of 2 budgets broken."
    assert lines[1] == "Broken: metric_drop of quantized against student is 1.4 pt [1.2, 1.6], limit 1 pt."


def test_budgets_in_bytes_are_said_in_the_unit_that_suits_them() -> None:
    large = Gate(**gate("failed", measure="size", limit=1e6, unit="B", value=71_767.0, ci95=None))
    assert (words.gate_value(large), words.gate_limit(large)) == ("71.8 kB", "1 MB")
    assert [words.number(value) for value in (-0.0, -1e-17, 1e-5)] == ["0", "0", "1e-05"]


def test_verdict_of_a_good_run_gives_quality_and_speed_with_intervals() -> None:
    _, chosen, faster = sentences(full())
    quality, speed = "0.982 [0.979, 0.985] accuracy (teacher 0.984)", "p50 1.2 [1.164, 1.236] ms"
    assert chosen == f"ov: quantized in int8 is chosen: {quality}, {speed}, 310 kB."
    assert faster == "quantized int8 is 2.1x [2.0, 2.2] faster than student f32 on ov (p50)."


def test_verdict_speaks_of_the_chosen_build_whichever_way_it_was_compared() -> None:
    names = {"a": "student.f32@ov", "b": "quantized.int8@ov", "target": None}
    other = {"a": "student.f32@ov", "b": "student.f32@ort", "target": None}
    rows = [comparison(1.6, "slower", **other), comparison(2.0, "slower", **names, led_by="cpu", cpu_ratio=2.0)]
    assert sentences(full(comparisons=rows))[2:] == [
        "quantized.int8@ov is 2.0x [1.9, 2.1] faster than student.f32@ov (p50, cpu time)."
    ]


def test_undecided_budget_that_ended_the_run_is_named() -> None:
    unmeasured = gate("undecided", value=None, ci95=None, label="p50 at most 2 ms", broken=True)
    others = [gate("undecided"), gate("failed", broken=False)]  # `undecided: pass`, and `otherwise: float`
    lines = sentences(full(status="gate_failed", gates=[unmeasured, *others]))
    assert lines[0] == "cifar10: 1 of 3 budgets broken."
    assert lines[1] == "Undecided: p50 at most 2 ms is not measured, limit 1 pt."


JUNIT = xmlschema.XMLSchema(Path(__file__).with_name("junit.xsd"))


def junit_of(report: Report, folder: Path) -> ET.Element:
    draw(report, folder)
    JUNIT.validate(str(folder / "junit.xml"))
    return ET.parse(folder / "junit.xml").getroot()


@pytest.mark.parametrize(
    "broken", ['tests="x"', 'timestamp="2026-01-02T03:04:05+00:00"', 'name=""'], ids=["count", "time zone", "no name"]
)
def test_the_schema_of_junit_results_refuses_what_readers_do(broken: str, tmp_path: Path) -> None:
    draw(full(), tmp_path)
    name = broken.partition("=")[0]
    text = re.sub(
        rf'(<testsuite [^>]*?)\b{name}="[^"]*"', rf"\1{broken}", (tmp_path / "junit.xml").read_text(), count=1
    )
    assert not JUNIT.is_valid(text)
    assert JUNIT.is_valid((tmp_path / "junit.xml").read_text())


def counts(suite: ET.Element) -> list[int]:
    return [int(suite.get(name, "")) for name in ("tests", "failures", "errors", "skipped")]


def test_junit_counts_stages_and_budgets(tmp_path: Path) -> None:
    stages = [*full().model_dump()["stages"], {"name": "export", "state": "failed", "why": "no"}]
    gates = [gate("failed"), gate("passed"), gate("undecided")]
    suite = junit_of(full(status="gate_failed", stages=stages, gates=gates), tmp_path)
    assert counts(suite) == [7, 1, 1, 2]
    assert [suite.get(n) for n in ("time", "timestamp", "hostname")] == ["321.500", "2026-01-02T03:04:05", "box"]
    assert {child.tag for child in suite} == {"properties", "testcase", "system-out", "system-err"}
    for case in suite.iter("testcase"):
        assert set(case.attrib) == {"name", "classname", "time"}
        assert {child.tag for child in case} <= {"failure", "error", "skipped"}


@pytest.mark.parametrize(
    ("report", "expected"),
    [
        (full(), [4, 0, 0, 1]),
        (empty(), [1, 0, 1, 0]),
        (full(status="gate_failed", gates=[gate("undecided", broken=True)]), [4, 1, 0, 1]),
        (full(status="failed", stages=[], gates=[], error=None), [1, 0, 1, 0]),
    ],
    ids=["good", "failed early", "undecided counts as failed", "failed for no known reason"],
)
def test_junit_is_red_exactly_when_the_run_is(report: Report, expected: list[int], tmp_path: Path) -> None:
    assert counts(junit_of(report, tmp_path)) == expected


def test_junit_drops_characters_that_xml_cannot_hold(tmp_path: Path) -> None:
    error = {"message": 'bad \x00\x1b[31m "quoted" & <tagged>', "stage": "export"}
    suite = junit_of(empty(error=error, stages=[{"name": "export", "state": "failed"}]), tmp_path)
    found = suite.find("testcase/error")
    assert found is not None
    assert found.get("message") == 'bad [31m "quoted" & <tagged>'


def test_job_summary_is_appended_to(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    summary = tmp_path / "summary.md"
    summary.write_text("before\n")
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", str(summary))
    draw(full(), tmp_path / "run")
    assert summary.read_text() == "before\n" + markdown(full()) + "\n"


@pytest.mark.parametrize("name", ["missing.md", ".", "nul\0byte"])
def test_job_summary_that_cannot_be_written_fails_no_run(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # A real environment cannot hold a zero byte; a mapping in its place can.
    monkeypatch.setattr(os, "environ", {**os.environ, "GITHUB_STEP_SUMMARY": str(tmp_path / name)})
    draw(full(), tmp_path / "run")
    assert not (tmp_path / "missing.md").exists()


@pytest.mark.parametrize("content", [None, "{", '{"schema_version": 2}'])
def test_report_that_cannot_be_read_is_a_users_mistake(content: str | None, tmp_path: Path) -> None:
    if content is not None:
        (tmp_path / "report.json").write_text(content)
    with pytest.raises(ConfigError) as error:
        read_report(tmp_path)
    assert error.value.hint


def test_numbers_read_well() -> None:
    assert [words.number(v) for v in (0.0, 0.98234, 1.0, 12.3456, 1234.5, 1e-7, 2e7, None)] == [
        "0", "0.9823", "1", "12.35", "1234", "1e-07", "2e+07", "",
    ]  # fmt: skip
    assert [words.size(v) for v in (999, 310_000, 3_423_080, 8_000_000_000)] == ["999 B", "310 kB", "3.42 MB", "8 GB"]
    assert [words.seconds(v) for v in (0.012, 3.2, 321.5, 7500)] == ["0.012 s", "3.2 s", "5 min 22 s", "2 h 5 min"]
    assert words.metric_value(Metric(name="mae", value=1.5, unit="px")) == "1.5 px"


def test_schema_loads_neither_jinja_nor_numpy() -> None:
    program = (
        "import sys, edgekd.report.draw;print([m for m in ('jinja2', 'numpy', 'torch', 'rich') if m in sys.modules])"
    )
    found = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"


def test_stage_without_a_reason_needs_none() -> None:
    assert Stage(name="s", state="ran").why is None


def test_curves_of_a_network_name_its_role_the_weights_and_the_learning_rate(tmp_path: Path) -> None:
    terms = {"kd": [3.0, 2.0], "hint": [0.2, 0.1], **{f"t{i}": [1.0, 1.0] for i in range(7)}}
    weights = {"kd": [0.9, 0.9], "hint": [0.0, 50.0]}
    phases = [
        {"name": "offline", "epochs": [1, 2], "terms": terms, "weights": weights, "metrics": {"accuracy": [0.01, 0.9]},
         "lr": [0.1, 0.05]},
        {"name": "average", "epochs": [], "terms": {}, "weights": {}, "metrics": {}, "lr": []},
        {"name": "bare", "epochs": [1], "terms": {"kd": [1.0]}, "metrics": {}},
    ]  # fmt: skip
    (tmp_path / "student.curves.json").write_text(json.dumps({"phases": phases}))
    draw(full(details=[{"kind": "loss_curves", "path": "student.curves.json"}]), tmp_path)
    page = (tmp_path / "report.html").read_text()
    drawings = {title: svg for svg in re.findall(r"<svg.*?</svg>", page) for title in re.findall("<title>([^<]*)", svg)}
    assert [title for title in drawings if title.startswith("student, ")] == [
        "student, offline: loss terms 1 of 2",
        "student, offline: loss terms 2 of 2",
        "student, offline: metrics",
        "student, offline: learning rate",
        "student, bare: loss terms",
    ]
    first = drawings["student, offline: loss terms 1 of 2"]
    for shown in (">kd, weight 0.9<", ">hint, weight 0 to 50<", ">loss (log)<"):
        assert shown in first
    assert ">t6<" in drawings["student, offline: loss terms 2 of 2"]
    assert "(log)" not in drawings["student, offline: metrics"]


def test_so_many_curves_that_no_page_holds_them_leave_a_word(tmp_path: Path) -> None:
    epochs = list(range(200))
    terms = {f"t{i}": [math.sin(i + e) + 2 for e in epochs] for i in range(8)}
    phases = [{"name": f"round {i}", "epochs": epochs, "terms": terms} for i in range(60)]
    (tmp_path / "curves.json").write_text(json.dumps({"phases": phases}))
    draw(full(), tmp_path)
    page = (tmp_path / "report.html").read_text()
    assert len(page.encode()) < 300_000
    assert page.count(": loss terms</title>") == 12
    assert "48 more drawings do not fit on this page" in page


def test_warnings_of_stages_stand_in_the_verdict(tmp_path: Path) -> None:
    stages = [{"name": "distill", "state": "cached", "warnings": ["the loss 'hint' is 1,000 times as large"]}]
    report = full(stages=stages)
    assert "Warning: distill: the loss 'hint' is 1,000 times as large" in sentences(report)
    draw(report, tmp_path)
    assert "Warning: distill: the loss" in (tmp_path / "report.html").read_text()
    assert "Warning: distill: the loss" in (tmp_path / "report.md").read_text()
