"""Schemes from a pipeline file to an engine: peers without a teacher, and mistakes said before anything runs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from chain import Result, Workshop

FILE = """
name: peers
data: {{digits: {{}}, limit: {{train: 320}}}}
train: {{batch: 32}}
stages:
{stages}
  - quantize: {{self_distillation: true, epochs: 1}}
  - export: {{min_agreement: 0.9}}
  - compile: {{}}
  - evaluate: {{}}
targets:
  ov: {{runtime: openvino}}
"""
COLLABORATIVE = """
  - distill:
      scheme: collaborative
      student: convnet
      args: {width: 16}
      peers: [{student: resnet8}]
      epochs: 4
      collaborative: {alone_epochs: 3}
"""
ONLINE = """
  - distill: {scheme: online, student: convnet, args: {width: 8}, epochs: 6, select: best}
"""
TEACHER = "  - teacher: {model: convnet, args: {width: 16}, epochs: 2}\n"


def workshop(folder: Path, stages: str) -> Workshop:
    made = Workshop(folder)
    made.write(FILE.format(stages=stages.strip("\n")))
    return made


def curves(place: Workshop) -> list[dict[str, Any]]:
    phases: list[dict[str, Any]] = json.loads((place.out / "artifacts" / "student.curves.json").read_text())["phases"]
    return phases


def accuracy(result: Result, model: str) -> float:
    build = next(b for b in result.report["builds"] if b["model"] == model)
    return float(build["metrics"][0]["value"])


@pytest.mark.slow
def test_two_different_students_teach_each_other_and_one_becomes_an_int8_engine(tmp_path: Path) -> None:
    place = workshop(tmp_path, COLLABORATIVE)
    result = place.run()
    assert result.code == 0, result.err
    assert [m["role"] for m in result.report["models"]] == ["student", "quantized"]
    assert {m["name"] for m in result.report["models"]} == {"convnet"}
    together = curves(place)[-1]
    assert [curve["name"] for curve in curves(place)] == ["student alone", "peer_1 alone", "together"]
    assert set(together["terms"]) == {
        f"{model}.{term}"
        for model in ("student", "peer_1")
        for term in ("cross_entropy", "distance", "angle", "kd", "past kd")
    }
    assert accuracy(result, "quantized") > 0.85
    build = next(b for b in result.report["builds"] if b["model"] == "quantized")
    assert build["executed_precision"]["int8"] > 0
    again = place.run()
    assert set(again.states().values()) == {"cached"}
    # Another peer is another student; nothing else of the distillation changed.
    edited = place.run("--set", "distill.peers=[{student: resnet8, args: {num_classes: 10}}]", "--to", "distill")
    assert edited.states()["distill"] == "ran"


@pytest.mark.slow
def test_peers_learn_online_without_a_teacher(tmp_path: Path) -> None:
    result = workshop(tmp_path, ONLINE).run()
    assert result.code == 0, result.err
    assert set(result.states()) == {"distill", "quantize", "export", "compile", "evaluate"}
    assert accuracy(result, "student") > 0.8


@pytest.mark.slow
def test_the_best_peer_is_shipped_under_its_own_name(tmp_path: Path) -> None:
    stages = """
  - distill: {scheme: online, student: convnet, args: {width: 1}, peers: [{student: resnet8}], epochs: 3, goes_on: best}
"""
    result = workshop(tmp_path, stages).run()
    assert result.code == 0, result.err
    assert "peer_1 (resnet8) goes on as the student" in result.err
    assert {m["name"] for m in result.report["models"]} == {"resnet8"}
    assert accuracy(result, "student") > 0.8


SCHEMES = {
    "self": "{scheme: self, student: convnet, args: {width: 8}, epochs: 2, generations: 2}",
    "virtual": "{scheme: self, student: convnet, args: {width: 8}, epochs: 2, virtual_teacher: {}}",
    "multi_teacher": "{scheme: multi_teacher, teachers: 3, student: convnet, args: {width: 8}, epochs: 2}",
    "assistant": "{scheme: assistant, assistants: [{model: convnet, args: {width: 12}}], student: convnet, epochs: 2}",
    "student_friendly": "{scheme: student_friendly, student: convnet, args: {width: 8}, epochs: 2}",
}
PHASES = {
    "self": ["snapshot", "generation 1", "generation 2"],
    "virtual": ["virtual teacher"],
    "multi_teacher": ["teacher_1", "teacher_2", "multi_teacher"],
    "assistant": ["assistant_1", "student"],
    "student_friendly": ["teacher with branches", "student_friendly"],
}


@pytest.mark.slow
@pytest.mark.parametrize("scheme", SCHEMES)
def test_every_scheme_runs_from_a_pipeline_file(scheme: str, tmp_path: Path) -> None:
    teacher = "" if scheme in ("self", "virtual") else TEACHER
    place = workshop(tmp_path, f"{teacher}  - distill: {SCHEMES[scheme]}")
    result = place.run("--to", "distill")
    assert result.code == 0, result.err
    assert [curve["name"] for curve in curves(place)] == PHASES[scheme]
    assert ("outputs of the teacher are cached" in result.err) == (scheme in ("multi_teacher", "assistant"))


@pytest.mark.parametrize(
    ("stage", "where", "message", "hint"),
    [
        ("{student: convnet}", "4:5", "scheme offline learns from a teacher", "online, self, collaborative"),
        ("{scheme: online, student: convnet, generations: 2}", "4:", "generations does nothing", "scheme: self"),
        (
            "{scheme: online, student: convnet, peers: [{student: resnet8, args: {dept: 3}}]}",
            "4:76: ",
            "resnet8 takes no argument 'dept'",
            "known are",
        ),
        (
            "{scheme: online, student: convnet, peers: [{student: resnet8, weights: no.pt}]}",
            "4:76: ",
            "no.pt: no such file",
            "relative",
        ),
        ("{scheme: online, student: convnet, peers: [{student: 'nets:No'}]}", "4:58: ", "no module 'nets'", "nets.py"),
    ],
)
def test_what_is_wrong_with_a_scheme_is_said_before_anything_runs(
    stage: str, where: str, message: str, hint: str, tmp_path: Path
) -> None:
    place = Workshop(tmp_path)
    place.write(f"name: peers\ndata: {{digits: {{}}}}\nstages:\n  - distill: {stage}\n")
    result = place.run()
    assert result.code == 2
    assert f"pipeline.yaml:{where}" in result.err
    assert message in result.err
    assert hint in result.err
