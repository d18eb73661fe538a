"""What a run says of its losses: warnings in log and report, curves in report and TensorBoard, trained or cached."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any

import pytest
from chain import Result, Workshop
from mistakes import MICRO, Place
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

PIPELINE = """
name: watched
data: {digits: {}, limit: {train: 160}, validation: 0.1}
train: {batch: 32, precision: f32, lr: 1.0e-5, average: 0.9}
stages:
  - teacher: {model: convnet, args: {width: 8}, epochs: 1}
  - distill:
      student: convnet
      args: {width: 4}
      epochs: 2
      knowledge: [{kd: {weight: 0.9}}, {hint: {layers: [[layer2, layer2]], weight: 1.0e+5}}]
  - quantize: {self_distillation: true, epochs: 2}
"""
WARNING = "the loss 'hint' of student (student.layer2 against teacher.layer2) is "


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Workshop, Result]:
    workshop = Workshop(tmp_path_factory.mktemp("watched"))
    workshop.write(PIPELINE)
    result = workshop.run()
    assert result.code == 0, result.err
    return workshop, result


def curves_of(out: Path, role: str) -> list[dict[str, Any]]:
    phases: list[dict[str, Any]] = json.loads((out / "artifacts" / f"{role}.curves.json").read_text())["phases"]
    return phases


def assert_same_as_curves(out: Path) -> None:
    """TensorBoard finds every term, metric and learning rate of all three stages, and nothing else."""
    for stage, role in (("teacher", "teacher"), ("distill", "student"), ("quantize", "quantized")):
        expected: dict[str, list[Any]] = {}
        for phase in (phase for phase in curves_of(out, role) if phase["epochs"]):
            lines = {f"loss/{phase['name']}/{name}": values for name, values in phase["terms"].items()}
            lines |= {f"metric/{phase['name']}/{name}": values for name, values in phase["metrics"].items()}
            lines[f"learning_rate/{phase['name']}"] = phase["lr"]
            expected |= {tag: [*enumerate(values, start=1)] for tag, values in lines.items()}
        found = EventAccumulator(str(out / "tensorboard" / stage))
        found.Reload()
        assert {*found.Tags()["scalars"]} == {*expected}
        for tag, values in expected.items():
            points = [(e.step, e.value) for e in found.Scalars(tag)]
            assert [step for step, _ in points] == [step for step, _ in values]
            assert [value for _, value in points] == pytest.approx([value for _, value in values], rel=1e-6)


def test_a_term_that_outweighs_the_others_is_in_log_and_report(trained: tuple[Workshop, Result]) -> None:
    workshop, result = trained
    (line,) = [line for line in result.err.splitlines() if line.startswith("warning: ")]
    assert f"distill: {WARNING}" in line
    events = [json.loads(text) for text in (workshop.out / "log.jsonl").read_text().splitlines()]
    assert [event["message"] for event in events if event["level"] == "warning"] == [line.removeprefix("warning: ")]
    warnings = {stage["name"]: stage["warnings"] for stage in result.report["stages"]}
    assert warnings == {"teacher": [], "distill": [line.removeprefix("warning: distill: ")], "quantize": []}
    assert "Warning: distill: the loss 'hint'" in (workshop.out / "report.md").read_text()
    assert not (workshop.out / "tensorboard").exists()


def test_every_phase_of_every_stage_is_drawn_and_no_empty_one(trained: tuple[Workshop, Result]) -> None:
    workshop, _ = trained
    titles = re.findall(r"<svg [^>]*><title>([^<]*)", (workshop.out / "report.html").read_text())
    assert "average" in {phase["name"] for phase in curves_of(workshop.out, "student")}
    assert titles == [
        f"{role}, {phase}: {kind}"
        for role, phase in (("teacher", "supervised"), ("student", "offline"), ("quantized", "self_distillation"))
        for kind in ("loss terms", "metrics", "learning rate")
    ]


def test_a_cached_run_fills_tensorboard_and_repeats_the_warning(trained: tuple[Workshop, Result]) -> None:
    workshop, first = trained
    for _ in range(2):
        again = workshop.run("--set", "train.tensorboard=true")
        assert set(again.states().values()) == {"cached"}
        assert [s["warnings"] for s in again.report["stages"]] == [s["warnings"] for s in first.report["stages"]]
        assert_same_as_curves(workshop.out)


def test_training_fills_tensorboard_as_it_goes(trained: tuple[Workshop, Result]) -> None:
    workshop, _ = trained
    out = workshop.folder / "forced"
    words = ["--set", "train.tensorboard=true", "--out", str(out)]
    for stage in ("teacher", "distill", "quantize"):
        words += ["--force", stage]
    assert workshop.run(*words).code == 0
    assert_same_as_curves(out)


def test_a_missing_tensorboard_is_said_before_anything_trains(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tensorboard", None)
    said = place.run(MICRO, "--set", "train.tensorboard=true")
    said.is_one_mistake(3, "tensorboard is not installed", r"pip install (-e )?'.*\[tensorboard\]'")
    assert set(place.states().values()) == {"skipped"}
