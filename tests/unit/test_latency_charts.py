"""Latency in the report beyond single inferences, and where builds come from: drawn when it is there, safe when odd."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as ET

import numpy as np
import pytest
from test_report import HOSTILE, build, comparison, full, latency

from edgekd.report import latency_charts
from edgekd.report.draw import draw
from edgekd.report.lineage import Node, commands, lineage, read_manifest
from edgekd.report.schema import Report

NAMES = ("quantized.int8@ov", "student.f32@ov")


class Loaded(Report):
    throughput: tuple[dict[str, Any], ...] = ()
    load: tuple[dict[str, Any], ...] = ()


def arrays(ms: float, count: int = 3, visits: int = 20) -> dict[str, Any]:
    rng = np.random.default_rng(0)
    found: dict[str, Any] = {}
    for index in range(count):
        wall = (ms * 1e6 * (1 + 0.05 * rng.random((visits, 4)))).astype(np.int64)
        found |= {
            f"{index}/wall_ns": wall,
            f"{index}/visit_cpu_ns": wall.sum(axis=1),
            f"{index}/visit_switches": np.zeros(visits, np.int64),
            f"{index}/start_ns": 10**12 * index + np.arange(visits) * 100_000_000,
        }
    return found


def note(second: float, **state: Any) -> dict[str, Any]:
    return {"t_s": second, "frequency_mhz": None, "temperature_c": None, "pressure_percent": None, **state}


def measured(folder: Path, notes: list[dict[str, Any]] | None = None, **changes: Any) -> Report:
    """Two builds with the samples of three launches, and what the machine noted."""
    (folder / "ov").mkdir()
    for name, ms in zip(NAMES, (1.0, 2.0), strict=True):
        np.savez(folder / "ov" / f"{name}.npz", **arrays(ms))
    monitor = notes or [note(0.0), note(1.0)]
    (folder / "ov" / "launches.json").write_text(json.dumps([{"monitor": monitor}] * 3))
    rows = [
        latency("ov", "quantized", "int8", 1.0, samples_path=f"ov/{NAMES[0]}.npz"),
        latency("ov", "student", "f32", 2.0, samples_path=f"ov/{NAMES[1]}.npz"),
    ]
    held = comparison(0.5, "faster", a=NAMES[0], b=NAMES[1])
    return full(latency=rows, comparisons=[comparison(0.9, "faster"), held], **changes)


def parsed(drawing: str) -> ET.Element:
    assert "nan" not in "".join(re.findall(r'[dxy12rc]+="([^"]*)"', drawing))
    return ET.fromstring(drawing)


def shown(drawing: str) -> list[str]:
    return [t.text or "" for t in parsed(drawing).findall("text")]


def test_latency_over_time_breaks_between_launches_and_shows_what_the_machine_told(tmp_path: Path) -> None:
    notes = [note(0.0, frequency_mhz=2400.0, temperature_c=40.0), note(1.0, frequency_mhz=1800.0, temperature_c=70.0)]
    (drawing,) = latency_charts.over_time(measured(tmp_path, notes), tmp_path)
    curves = [
        p.get("d") or "" for p in parsed(drawing).findall("path") if (p.get("class") or "").startswith("curve s0")
    ]
    assert curves[0].count("M") == 3
    assert {"frequency, MHz", "temperature, °C", "s, 3 launches"} <= set(shown(drawing))
    assert len([p for p in parsed(drawing).findall("path") if p.get("class") == "front"]) == 2


def test_a_machine_that_tells_no_temperature_has_no_line_of_it_and_the_drawing_says_so(tmp_path: Path) -> None:
    notes = [note(0.0, frequency_mhz=2400.0), note(1.0, frequency_mhz=2400.0)]
    (drawing,) = latency_charts.over_time(measured(tmp_path, notes), tmp_path)
    assert "This machine does not tell its temperature." in shown(drawing)
    assert not any("°C" in text for text in shown(drawing))


def test_without_notes_or_with_broken_ones_latency_over_time_is_drawn_alone(tmp_path: Path) -> None:
    report = measured(tmp_path)
    for content in ("[3, {}]", '{"a": 1}', "no json"):
        (tmp_path / "ov" / "launches.json").write_text(content)
        (drawing,) = latency_charts.over_time(report, tmp_path)
        assert "This machine does not tell its frequency or temperature." in shown(drawing)


def test_each_launch_of_a_comparison_has_its_own_ratio_and_interval(tmp_path: Path) -> None:
    report = measured(tmp_path)
    found = latency_charts.ratios_by_launch(report, tmp_path)
    assert list(found) == [1]
    assert len(found[1]) == 3
    for ratio, low, high in found[1]:
        assert low <= ratio <= high
        assert ratio == pytest.approx(0.5, rel=0.05)
    draw(report, tmp_path)
    page = (tmp_path / "report.html").read_text()
    assert "Comparisons with 95% intervals, and launch by launch" in page
    assert page.count("<title>launch ") == 3


def many(batch: Any, streams: Any, per_s: Any, **more: Any) -> dict[str, Any]:
    about = {"target": "ov", "model": "quantized", "precision": "int8", "batch": batch, "streams": streams}
    return {**about, "throughput_per_s": per_s, "saturated": False, **more}


def rate(per_s: Any, p99: Any, **more: Any) -> dict[str, Any]:
    about = {"target": "ov", "model": "quantized", "precision": "int8", "batch": 1, "streams": 1}
    times = {"rate_per_s": per_s, "p50_ms": 1.0, "p90_ms": 1.5, "p99_ms": p99, "limit_ms": 5.0, "kept_up": True}
    return {**about, **times, "highest": False, **more}


def with_rows(**rows: Any) -> Report:
    return Loaded.model_validate({**full().model_dump(), **rows})


def test_throughput_is_drawn_by_batch_and_by_streams() -> None:
    rows = [
        many(b, s, 100 * b * s, ci95={"throughput_per_s": [90 * b * s, 120 * b * s]}) for b in (1, 8) for s in (1, 2)
    ]
    by_batch, by_streams = latency_charts.throughput(with_rows(throughput=[*rows, many(8, 4, 1700, saturated=True)]))
    assert {"batch (log)", "streams 1", "streams 4", "A square: saturated, more streams bring no more."} <= set(
        shown(by_batch)
    )
    assert {"streams (log)", "batch 1", "batch 8"} <= set(shown(by_streams))
    assert len(parsed(by_streams).findall("rect")) == 1


def test_latency_under_load_shows_the_limit_the_highest_rate_that_keeps_it_and_where_it_fell_behind() -> None:
    rows = [rate(10, 2.0), rate(20, 3.0, highest=True, ci95={"p99_ms": [2.5, 4.0]}), rate(40, 30.0, kept_up=False)]
    (drawing,) = latency_charts.load(with_rows(load=rows))
    assert {"p50", "p90", "p99", "limit 5 ms", "20 per s is the highest rate that keeps the limit."} <= set(
        shown(drawing)
    )
    assert len([c for c in parsed(drawing).findall("circle") if c.get("class") == "ring"]) == 1
    (without,) = latency_charts.load(with_rows(load=[rate(10, None), rate(20, None, limit_ms=None)]))
    assert "p99" not in shown(without)


def sustained(folder: Path, row: dict[str, Any]) -> str:
    (folder / "sustain.json").write_text(json.dumps([row]))
    draw(full(details=[{"kind": "sustain", "path": "sustain.json"}]), folder)
    page = (folder / "report.html").read_text()
    assert "<h2>sustain</h2>" not in page  # drawn, not listed
    return page


def test_a_long_run_shows_the_reference_the_machine_and_the_drift(tmp_path: Path) -> None:
    times = {"t_s": [0, 1, 2], "p50_ms": [1, 1, 1.3], "reference_p50_ms": [2, 2, 2], "rss_bytes": [1e8, 1e8, 2e8]}
    state = {"frequency_mhz": [2400, 2400, 1200], "temperature_c": [None] * 3, "drift": 0.3, "throttled": True}
    page = sustained(tmp_path, {"target": "ov", "model": "quantized", "precision": "int8", **times, **state})
    titles = ["Sustained: ov, quantized int8", "p50 of the reference", "frequency, MHz", "resident memory, MB"]
    notes = ["Drift +30.0% against the reference.", "It was throttled.", "does not tell its temperature"]
    for text in titles + notes:
        assert text in page
    assert "temperature, °C" not in page


@pytest.mark.parametrize(
    "odd", [{}, {"t_s": 3, "p50_ms": "x"}, {"t_s": [1, None], "p50_ms": [None, "y"], "drift": "z"}]
)
def test_odd_rows_draw_nothing_and_break_nothing(odd: dict[str, Any], tmp_path: Path) -> None:
    assert "Sustained" not in sustained(tmp_path, odd)
    strange = [
        many("a", None, "b"),
        many(0, 1, -1),
        many(1, 1, 5, ci95=[3]),
        many(2, 1, 5, ci95={"throughput_per_s": "x"}),
    ]
    report = with_rows(throughput=[*strange, odd], load=[rate("x", 1), rate(1, "y", ci95=3, kept_up=False), odd])
    for drawing in (*latency_charts.throughput(report), *latency_charts.load(report)):
        parsed(drawing)


def test_a_page_with_all_of_it_is_small_and_safe(tmp_path: Path) -> None:
    base = measured(tmp_path, details=[{"kind": "sustain", "path": "s.json"}])
    seconds = list(range(20_000))
    row = {"target": HOSTILE, "t_s": seconds, "p50_ms": [1.0 + (t % 7) for t in seconds], "model": HOSTILE}
    (tmp_path / "s.json").write_text(json.dumps([row]))
    more = {
        "throughput": [many(b, s, b * s, model=HOSTILE) for b in (1, 2) for s in (1, 2)],
        "load": [rate(r, 1.0, model=HOSTILE) for r in (1, 2)],
    }
    draw(Loaded.model_validate({**base.model_dump(), **more}), tmp_path)
    page = (tmp_path / "report.html").read_text()
    assert len(page.encode()) < 300_000
    assert page.count("<script") == 1
    for title in ("Latency over time", "Throughput", "Latency under load"):
        assert f"<h2>{title}</h2>" in page
    for drawing in re.findall(r"<svg.*?</svg>", page):
        parsed(drawing)


def names(nodes: list[Node]) -> list[Any]:
    return [(node.text, node.digest, names(node.children)) for node in nodes]


def test_lineage_goes_from_the_teacher_to_the_builds_with_digests(tmp_path: Path) -> None:
    files = ("teacher.safetensors", "student.f32.onnx", "student.int8.onnx", "student.uint8.onnx")
    (tmp_path / "manifest.json").write_text(
        json.dumps({"files": {f"artifacts/{name}": {"sha256": f"{i}" * 64} for i, name in enumerate(files)}})
    )
    models = [{"role": role, "name": "net", "parameters": 1000} for role in ("teacher", "student", "quantized")]
    builds = [
        build("ov", "student", "f32", 0.9, onnx="artifacts/student.f32.onnx"),
        build("ov", "quantized", "int8", 0.9, onnx="artifacts/student.uint8.onnx", chosen=True),
    ]
    (teacher,) = lineage(full(models=models, builds=builds), read_manifest(tmp_path))
    assert names([teacher]) == [
        ("teacher: net", "0" * 12, [
            ("student: net", "", [
                ("student.f32.onnx", "1" * 12, [("ov f32", "ab" * 6, [])]),
                ("quantized: net", "", [
                    ("student.int8.onnx", "2" * 12, []),
                    ("student.uint8.onnx", "3" * 12, [("ov int8", "ab" * 6, [])]),
                ]),
            ]),
        ]),
    ]  # fmt: skip
    assert teacher.children[0].note == "distilled, 1k parameters"
    assert teacher.children[0].children[1].children[1].children[0].note == "openvino, CPU, chosen"


@pytest.mark.parametrize("content", ["[]", "{", '{"files": [1], "command": 3}', '{"files": {"a": 1}, "command": [2]}'])
def test_without_a_manifest_that_can_be_read_the_lineage_has_the_builds_alone(content: str, tmp_path: Path) -> None:
    (tmp_path / "manifest.json").write_text(content)
    (teacher,) = lineage(full(), read_manifest(tmp_path))
    assert [child.text for child in teacher.children] == ["quantized: resnet20"]
    assert [child.text for child in teacher.children[0].children] == ["ov int8"]
    assert commands(full(), read_manifest(tmp_path)) == []


def test_the_page_gives_the_command_as_it_can_be_typed_again(tmp_path: Path) -> None:
    (tmp_path / "manifest.json").write_text(
        json.dumps({"command": ["edgekd", "run", "my file.yaml", "--set", HOSTILE]})
    )
    assert commands(full(), read_manifest(tmp_path))[0] == "git checkout c0ffee  # with local changes"
    draw(full(), tmp_path)
    page = (tmp_path / "report.html").read_text()
    assert "edgekd run &#39;my file.yaml&#39; --set &#39;&lt;script&gt;" in page
