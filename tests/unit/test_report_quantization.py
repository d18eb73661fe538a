"""Quantization in the report: sensitivity, arms, the ladder, layers by executed precision."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as ET

import pytest
from test_report import HOSTILE, full

from edgekd.report import quantization
from edgekd.report.attachments import Attachment
from edgekd.report.draw import draw


def made(kind: str, rows: list[dict[str, Any]], **content: Any) -> Attachment:
    return Attachment(kind, "", rows, content)


def layer(name: str, chosen: str = "4 bits", **changes: Any) -> dict[str, Any]:
    moved = {f"divergence at {bits} bits": 10.0**-bits for bits in (8, 4, 2)}
    return {"layer": name, "weights": 100, **moved, "chosen": chosen, **changes}


def arm(arm_name: str, value: Any, **changes: Any) -> dict[str, Any]:
    about = {"name": "accuracy", "unit": "fraction", "split": "validation", "n": 100}
    return {"arm": arm_name, "value": value, "ci95": [0.8, 0.95], **about, **changes}


def timed(name: str, ms: Any, executed: str = "int8", precision: str = "int8") -> dict[str, Any]:
    about = {"target": "ov", "model": "quantized", "precision": precision, "kind": "Convolution"}
    return {**about, "layer": name, "executed": executed, "ms": ms, "share": 0.1}


def rung(name: str, agreement: Any, error: Any = 0.1) -> dict[str, Any]:
    return {"rung": name, "against": "PyTorch", "n": 9, "max_abs_error": error, "agreement": agreement, "accuracy": 0.9}


def parsed(drawing: str) -> ET.Element:
    assert "nan" not in "".join(re.findall(r'[dxy12rc]+="([^"]*)"', drawing))
    return ET.fromstring(drawing)


def test_each_bit_width_is_a_line_over_the_layers_and_chosen_bits_are_ringed() -> None:
    rows = [layer("conv1", "8 bits"), layer("conv2"), layer("fc", "float"), layer("given", "given")]
    steps = [{"layer": "conv2", "bits": b, "mean_bits": m, "divergence": d} for b, m, d in ((4, 6, 1e-6), (2, 4, 1e-3))]
    first, down = quantization.sensitivity(made("sensitivity", rows, steps=steps))
    found = parsed(first)
    assert len([p for p in found.findall("path") if (p.get("class") or "").startswith("curve")]) == 3 + 3  # and legend
    assert len([c for c in found.findall("circle") if c.get("class") == "ring"]) == 2 + 1
    shown = [t.text for t in found.findall("text")]
    assert [name for name in shown if name in ("conv1", "conv2", "fc", "given")] == ["conv1", "conv2", "fc", "given"]
    assert {"8 bits", "4 bits", "2 bits"} <= set(shown)
    assert "2 steps to 4 bits" in down
    # A layer that moves nothing stands at the edge of the axis; a value that is none is left out.
    odd = [layer("a", **{"divergence at 8 bits": 0.0}), layer("b", **{"divergence at 8 bits": None})]
    parsed(quantization.sensitivity(made("sensitivity", [*rows, *odd]))[0])


def test_layers_that_were_rounded_with_their_inputs_are_a_line_too_and_those_left_float_are_ringed() -> None:
    rows = [
        {"layer": name, "weights": 9, "divergence with its inputs": moved, "chosen": chosen}
        for name, moved, chosen in (("stem", 1e-4, "8 bits"), ("head", 0.2, "float"))
    ]
    (drawing,) = quantization.sensitivity(made("sensitivity", rows))
    found = parsed(drawing)
    assert "weight and inputs" in [t.text for t in found.findall("text")]
    assert len([c for c in found.findall("circle") if c.get("class") == "ring"]) == 1 + 1  # and the legend's


def test_many_layers_keep_their_order_and_the_drawing_stays_small() -> None:
    rows = [layer(f"blocks.{i}.attention.projection", **{"divergence at 2 bits": 1.0 + i % 7}) for i in range(400)]
    (drawing,) = quantization.sensitivity(made("sensitivity", rows))
    assert len(drawing) < 60_000
    numbers = [int(n) for n in re.findall(r"…?\w*\.?(\d+)\.attention", drawing)]
    assert numbers == sorted(numbers)


def test_an_arm_is_a_dot_with_its_interval_and_a_line_of_the_table() -> None:
    rows = [arm("calibration alone", 0.9), arm("self-distillation", 0.92), arm("broken", None)]
    rows.append(arm("self-distillation", 3.5, name="mae", unit=None, ci95=None))
    one, two = quantization.arms(made("arms", rows))
    assert len(parsed(one).findall("circle")) == 2
    assert "mae" in parsed(two).find("title").text  # type: ignore[union-attr, operator]
    assert quantization.arm_table(made("arms", rows)) == [
        ["arm", "accuracy", "mae", "n", "split"],
        ["calibration alone", "0.9 [0.8, 0.95]", "", "100", "validation"],
        ["self-distillation", "0.92 [0.8, 0.95]", "3.5", "100", "validation"],
    ]


def test_the_rung_that_agrees_least_stands_out_and_one_without_a_number_is_broken() -> None:
    rows = [{"rung": "PyTorch", "against": None, "n": 9, "accuracy": 0.9}]
    rows += [rung("a", 1.0), rung("b", 0.9, 0.1), rung("c", 0.9, 0.2), rung("d", float("nan")), rung("e", 1.0, None)]
    found = quantization.ladder(made("ladder", rows))
    assert found.rows[0] == ["rung", "held against", "n", "largest error", "agreement", "accuracy", "note"]
    assert found.marks == ["", "", "", "worst", "broken", "broken"]
    assert [row[-1] for row in found.rows[1:]] == ["", "", "", "agrees least", "broken", "broken"]
    assert quantization.ladder(made("ladder", rows[:2])).marks == ["", ""]  # one alone is no worst


def test_the_slowest_twenty_layers_of_each_build_are_bars_in_the_colour_of_their_precision() -> None:
    rows = [timed(f"conv{i}", i / 10, "f32" if i % 2 else "int8") for i in range(1, 31)]
    rows += [timed("stem", 0.5, "f16", "f16"), timed("never ran", None)]
    one, two = quantization.layers(made("layers", rows))
    bars = [r.get("class") for r in parsed(one).findall("rect")]
    assert bars[:20] == ["mark s2", "mark s0"] * 10
    assert [t.text for t in parsed(one).findall("text")][1].startswith("conv30")  # type: ignore[union-attr]
    assert "the 20 slowest of 30 layers" in one
    assert "ov, quantized f16" in two
    assert quantization.layers(made("layers", [{"name": "conv", "kind": "Conv", "precision": "int8"}])) == []


@pytest.fixture
def page(tmp_path: Path) -> str:
    contents = {
        "sensitivity": {"rows": [layer("conv1"), layer(HOSTILE)], "steps": [{"mean_bits": "x"}, 3, None]},
        "calibration": {"rows": [{"what": "equalization", "divergence": 0.25, "kept": False}], "samples": 256},
        "arms": {"rows": [arm("calibration alone", 0.9), arm(HOSTILE, 0.92)]},
        "ladder": {"rows": [rung("file", 1.0), rung(HOSTILE, 0.5), rung("lost", None)]},
        "layers": {"rows": [timed("conv1", 0.5), timed(HOSTILE, 0.4, HOSTILE)]},
    }
    for kind, content in contents.items():
        (tmp_path / f"{kind}.json").write_text(json.dumps(content))
    draw(full(details=[{"kind": kind, "path": f"{kind}.json"} for kind in contents]), tmp_path)
    return (tmp_path / "report.html").read_text()


def test_a_page_shows_all_of_it_safely(page: str, tmp_path: Path) -> None:
    for title in ("Quantization", "Layers by executed precision", "Parity ladder", "arms", "sensitivity"):
        assert f"<h2>{title}</h2>" in page
    assert "<h2>layers</h2>" not in page  # drawn, not listed
    assert page.count('<tr class="worst">') == page.count('<tr class="broken">') == 1
    assert page.count("<script") == 1
    for drawing in re.findall(r"<svg.*?</svg>", page):
        assert ET.fromstring(drawing).get("width") is None  # as wide as its place, also on a phone
    text = (tmp_path / "report.md").read_text()
    for title, row in (
        ("Parity ladder", "| file | PyTorch | 9 | 0.1 | 1 | 0.9 |  |"),
        ("Arms", "| calibration alone | 0.9"),
        ("Calibration, 256 samples", "| equalization | 0.25 | false |"),
        ("Sensitivity", "| conv1 | 100 |"),
    ):
        assert row in text.partition(f"## {title}\n")[2].partition("##")[0]
    assert len(page.encode()) < 300_000


@pytest.mark.parametrize(
    "rows", [[{}], [{"layer": 3, "arm": 3, "rung": [1], "ms": "x"}], [{"value": 1e999, "arm": "a"}]]
)
def test_rows_that_are_not_as_expected_draw_nothing_and_break_nothing(rows: list[dict[str, Any]]) -> None:
    assert quantization.sensitivity(made("sensitivity", rows, steps=rows)) == []
    assert quantization.arms(made("arms", rows)) == []
    assert quantization.layers(made("layers", rows)) == []
    quantization.ladder(made("ladder", rows))
