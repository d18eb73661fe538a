"""The quantize stage through the pipeline file: arms, QKD, guides, features, bits of layers; and what it refuses."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from chain import Workshop

from edgekd.config import validate
from edgekd.stages.settings import QkdSettings, QuantizeStage

FILE = """
name: quantize
data: {{digits: {{}}, limit: {{train: 320}}}}
train: {{batch: 32}}
stages:
  - teacher: {{model: convnet, args: {{width: 16}}, epochs: 3}}
  - distill: {{student: resnet8, epochs: 3}}
  - quantize: {options}
  - export: {{min_agreement: 0.5, max_noise: 5}}
  - compile: {{}}
  - evaluate: {{}}
targets:
  ov: {{runtime: openvino}}
"""


def rows(place: Workshop, kind: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads((place.out / "artifacts" / f"quantized.{kind}.json").read_text())["rows"]
    return found


@pytest.mark.slow
def test_four_arms_and_what_was_asked_for_stand_side_by_side(tmp_path: Path) -> None:
    place = Workshop(tmp_path)
    place.write(
        FILE.format(options="{self_distillation: true, epochs: 2, arms: true, weights: 4, guides: [teacher, original]}")
    )
    result = place.run()
    assert result.code == 0, result.err
    arms = {row["arm"]: row for row in rows(place, "arms")}
    assert list(arms) == [
        "as asked", "calibration alone", "targets alone", "float, as much longer", "self-distillation",
    ]  # fmt: skip
    assert all(row["split"] == "validation" and 0 <= row["value"] <= 1 for row in arms.values())
    kinds = [detail["kind"] for detail in result.report["details"]]
    assert {"arms", "calibration", "ladder", "loss_curves"} <= set(kinds)
    terms = json.loads((place.out / "artifacts" / "quantized.curves.json").read_text())["phases"][0]["terms"]
    assert set(terms) == {"kd to teacher", "kd to original"}
    assert "calibration alone" in (place.out / "report.html").read_text()
    again = place.run()
    assert set(again.states().values()) == {"cached"}


@pytest.mark.slow
def test_qkd_runs_in_three_phases_and_features_of_the_quantized_network_are_read_by_name(tmp_path: Path) -> None:
    place = Workshop(tmp_path)
    options = "{self_distillation: true, epochs: 3, qkd: {co_study: 2}, knowledge: [kd, {hint: {weight: 0.1}}]}"
    place.write(FILE.format(options=options))
    result = place.run("--to", "quantize")
    assert result.code == 0, result.err
    phases = json.loads((place.out / "artifacts" / "quantized.curves.json").read_text())["phases"]
    assert [(p["name"], len(p["epochs"])) for p in phases] == [("self-study", 1), ("co-study", 2), ("tutoring", 1)]
    assert set(phases[2]["terms"]) == {"cross_entropy", "kd", "hint"}
    assert {"quantized.kd", "tutor.kd", "quantized.hint", "tutor.hint"} <= set(phases[1]["terms"])


@pytest.mark.slow
def test_bits_found_for_layers_are_told_and_survive_export(tmp_path: Path) -> None:
    place = Workshop(tmp_path)
    place.write(FILE.format(options="{mixed: {budget: 4.5}, layers: {conv1: {weights: 8}, fc: float}}"))
    result = place.run()
    assert result.code == 0, result.err
    found = {row["layer"]: row for row in rows(place, "sensitivity")}
    assert found["conv1"]["chosen"] == "given"
    free = [row for row in found.values() if row["chosen"] != "given"]
    mean = sum(int(row["chosen"].split()[0]) * row["weights"] for row in free) / sum(row["weights"] for row in free)
    assert mean <= 4.5
    (build,) = [b for b in result.report["builds"] if b["model"] == "quantized"]
    assert build["executed_convolutions"] == {"int8": 9}


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"guides": ["teacher"]}, "guides does nothing without self_distillation"),
        (
            {"self_distillation": True, "temperature": 2, "knowledge": ["kd"]},
            "temperature does nothing beside knowledge",
        ),
        ({"self_distillation": True, "qkd": {}, "task_weight": 1, "epochs": 3}, "task_weight does nothing in qkd"),
        ({"self_distillation": True, "knowledge": ["my.losses:cosine"]}, "a knowledge of your own is for the distill"),
        ({"layers": {"fc": "flaot"}}, "fc"),
        ({"mixed": {"budget": 1}}, "budget"),
    ],
)
def test_options_that_cannot_be_meant_are_refused(given: dict[str, Any], message: str) -> None:
    found, problems = validate(QuantizeStage, given)
    assert found is None
    assert message in f"{problems[0].location} {problems[0].message}"


def test_phases_of_qkd_share_the_epochs_unless_told_otherwise() -> None:
    assert QkdSettings().epochs(7) == (2, 2, 3)
    assert QkdSettings(self_study=5, tutoring=0).epochs(6) == (5, 2, 0)


def test_a_guide_that_is_not_there_is_a_mistake_in_one_line(tmp_path: Path) -> None:
    place = Workshop(tmp_path)
    place.write(
        "name: alone\ndata: {digits: {}, limit: {train: 64}}\nstages:\n"
        "  - distill: {scheme: online, student: convnet, epochs: 1}\n"
        "  - quantize: {self_distillation: true, guides: [teacher]}\n"
    )
    result = place.run()
    assert result.code == 2
    assert "pipeline.yaml:5:" in result.err
    assert "there is no teacher in this pipeline" in result.err
