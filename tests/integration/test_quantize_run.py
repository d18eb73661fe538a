"""The quantize stage through the pipeline file: arms, QKD, guides, features, bits of layers; and what it refuses."""

from __future__ import annotations

import json
import signal
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from chain import Workshop

from edgekd.config import validate
from edgekd.files import sha256_file
from edgekd.stages.settings import QkdSettings, QuantizeStage

FILE = """
name: quantize
data: {{digits: {{}}, limit: {{train: 320}}}}
train: {{batch: 32}}
stages:
  - teacher: {{model: convnet, args: {{width: 16}}, epochs: 3}}
  - distill: {{student: resnet8, epochs: 3}}
  - quantize: {options}
  - export: {{}}
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
def test_guides_that_are_asked_about_mirror_images_teach_something_else_and_keep_their_own_answers(
    tmp_path: Path,
) -> None:
    place = Workshop(tmp_path)
    losses, caches = [], []
    for more in ("", ", mirrored: true"):
        options = "{self_distillation: true, epochs: 1, guides: [original, teacher]" + more + "}"
        place.write(FILE.format(options=options))
        result = place.run("--to", "quantize")
        assert result.code == 0, result.err
        (phase,) = json.loads((place.out / "artifacts" / "quantized.curves.json").read_text())["phases"]
        losses.append(phase["terms"])
        caches.append(len([*(place.folder / "store" / "caches" / "teacher").iterdir()]))
    plain, mirrored = losses
    assert set(plain) == {"kd to original", "kd to teacher"}
    assert set(mirrored) == {"kd to mirrored_original", "kd to mirrored_teacher"}
    # Digits are not symmetric: the mean of both answers is far from what the network says of the image alone.
    assert mirrored["kd to mirrored_original"][0] > 2 * plain["kd to original"][0]
    assert caches[1] == caches[0] + 2


@pytest.mark.slow
def test_a_vision_transformer_is_trained_for_its_8_bits_and_answers_in_both_engines_as_trained(tmp_path: Path) -> None:
    place = Workshop(tmp_path)
    place.write("""
name: transformer
data: {digits: {}}
train: {batch: 32, optimizer: adamw, lr: 0.005}
stages:
  - teacher: {model: vit_tiny, args: {patch: 4, width: 32, depth: 1, heads: 2}, epochs: 12}
  - quantize: {weights: 2, self_distillation: true, epochs: 3, lr: 0.001, temperature: 4, arms: true}
  - export: {}
  - compile: {}
  - evaluate: {}
targets:
  ov: {runtime: openvino, precision: [int8]}
  ort: {runtime: onnxruntime, precision: [int8]}
""")
    result = place.run()
    assert result.code == 0, result.err
    arms = {row["arm"]: row["value"] for row in rows(place, "arms")}
    assert arms["as asked"] > arms["calibration alone"]
    ladder = json.loads((place.out / "artifacts" / "ladder.json").read_text())["rows"]
    assert {"the build ov.int8", "the build ort.int8"} <= {row["rung"] for row in ladder}
    assert all(row["agreement"] > 0.9 for row in ladder if row["against"]), ladder
    for build in result.report["builds"]:
        if build["precision"] == "int8":
            assert build["executed_precision"]["int8"] >= 5, build  # in its block four linear layers, and the patches'
            assert build["metrics"][0]["value"] > 0.8


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
        ({"mirrored": True}, "mirrored does nothing without self_distillation"),
        ({"self_distillation": True, "mirrored": True, "qkd": {}}, "mirrored does nothing in qkd"),
        ({"self_distillation": True, "mirrored": True, "knowledge": ["kd", "hint"]}, "a knowledge compares features"),
        ({"float_above": 1, "mixed": {"budget": 4, "float_above": 1}}, "float_above stands here and under mixed"),
        ({"arms": True}, "arms does nothing in calibration alone"),
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


def test_a_network_alone_is_no_teacher_of_itself(tmp_path: Path) -> None:
    place = Workshop(tmp_path)
    place.write(
        "name: alone\ndata: {digits: {}, limit: {train: 64}}\nmodel: convnet\nstages:\n"
        "  - quantize: {self_distillation: true, guides: [teacher]}\n"
    )
    result = place.run()
    assert result.code == 2
    assert "there is no teacher in this pipeline" in result.err


@pytest.mark.slow
def test_what_an_earlier_run_made_with_other_settings_does_not_stay_among_the_artefacts(tmp_path: Path) -> None:
    place = Workshop(tmp_path)
    file = (
        "name: stale\ndata: {digits: {}, limit: {train: 64}}\nmodel: convnet\nargs: {width: 8}\nstages:\n"
        "  - quantize: {calibration: 32}\n  - export: {}\n"
    )
    place.write(file)
    assert place.run().code == 0
    assert list((place.out / "artifacts").glob("*.onnx"))
    (place.out / "artifacts" / "builds" / "old.int8").mkdir(parents=True)
    (place.out / "artifacts" / "builds" / "old.int8" / "model.xml").write_text("old")
    again = place.run("--to", "quantize", "--set", "quantize={calibration: 16, epochs: 0, arms: true}")
    assert again.code == 0
    assert "with 0 epochs no arm is trained" in again.err
    left = {path.relative_to(place.out).as_posix() for path in (place.out / "artifacts").rglob("*") if path.is_file()}
    assert left == set(json.loads((place.out / "manifest.json").read_text())["files"])
    assert not [name for name in left if name.endswith(".onnx")]
    assert not (place.out / "artifacts" / "builds").exists()


@pytest.mark.slow
def test_targets_that_are_not_there_cannot_be_learned_from(tmp_path: Path) -> None:
    place = Workshop(tmp_path)
    np.savez(tmp_path / "frames.npz", x=np.random.default_rng(0).integers(0, 255, (96, 1, 8, 8), dtype=np.uint8))
    place.write(
        "name: unlabelled\ndata: {npz: {path: frames.npz, inputs: [x], targets: []}}\nmodel: convnet\n"
        "args: {num_classes: 4}\nstages:\n  - quantize: {epochs: 1, task_weight: 1.0}\n"
    )
    for sets, who in ([], "quantize.task_weight"), (["--set", "quantize={epochs: 0, arms: true}"], "quantize.arms"):
        result = place.run(*sets)
        assert result.code == 2, result.err
        assert f"{who} learns from true targets, and the data has none" in result.err


@pytest.mark.slow
def test_training_that_was_killed_ends_with_the_same_bytes_also_in_half_precision(tmp_path: Path) -> None:
    text = FILE.format(options="{self_distillation: true, epochs: 12, lr: 0.001, precision: bf16}")
    text = text.replace("- distill: {student: resnet8, epochs: 3}", "- distill: {student: convnet, epochs: 1}")
    whole, killed = Workshop(tmp_path / "whole"), Workshop(tmp_path / "killed")
    for place in (whole, killed):
        place.folder.mkdir()
        place.write(text)
    assert whole.run("--to", "quantize").code == 0
    process = subprocess.Popen(killed.command("--to", "quantize"), stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    said = []
    for line in process.stderr:
        said.append(line)
        if "self_distillation 3/12" in line:
            process.send_signal(signal.SIGKILL)
            break
    process.stderr.close()
    assert process.wait(timeout=60) == -signal.SIGKILL
    assert any("outputs of the original are cached" in line for line in said)
    resumed = killed.run("--to", "quantize")
    assert resumed.states()["quantize"] == "resumed"
    assert "self_distillation 3/12" not in resumed.err
    assert weights_of(killed) == weights_of(whole)


def weights_of(place: Workshop) -> list[str]:
    """Digests of the weights of teacher, student and quantized network in the store."""
    found = sorted(sha256_file(path) for path in (place.folder / "store").glob("**/weights.safetensors"))
    assert len(found) == 3
    return found


OWN = """
import torch
from torch import nn
from edgekd.extend import knowledge

class Bridge(nn.Module):
    def __init__(self, student, teacher, *, samples):
        super().__init__()
        self.map = nn.Conv2d(student[0], teacher[0], 1)

    def forward(self, student, teacher):
        return (self.map(student) - teacher).square().mean()

@knowledge(adapter=Bridge, features=True)
def bridged(student, teacher):
    return (student - teacher).square().mean()

def gap(student, teacher, *, power: float = 2.0):
    return (student - teacher).abs().pow(power).mean()
"""


@pytest.mark.slow
def test_knowledge_of_ones_own_teaches_a_quantized_network_and_its_change_trains_anew(tmp_path: Path) -> None:
    place = Workshop(tmp_path)
    (tmp_path / "own.py").write_text(OWN)
    options = (
        "{self_distillation: true, epochs: 1, knowledge: [{own:gap: {power: 1.0}}, {own:bridged: {layers: auto}}]}"
    )
    place.write(FILE.format(options=options))
    result = place.run("--to", "quantize")
    assert result.code == 0, result.err
    (phase,) = json.loads((place.out / "artifacts" / "quantized.curves.json").read_text())["phases"]
    assert "own:gap" in phase["terms"]
    assert any(name.startswith("own:bridged") for name in phase["terms"])
    (tmp_path / "own.py").write_text(OWN.replace("teacher[0], 1)", "teacher[0], 1, bias=False)"))
    states = place.run("--to", "quantize").states()
    assert [states[stage] for stage in ("teacher", "distill", "quantize")] == ["cached", "cached", "ran"]
    place.write(FILE.format(options=options.replace("power: 1.0", "pwoer: 1.0")))
    wrong = place.run("--to", "quantize")
    assert wrong.code == 2
    assert "unknown key 'pwoer'" in wrong.err


def test_a_float_output_that_is_not_there_is_a_mistake_with_its_place(tmp_path: Path) -> None:
    place = Workshop(tmp_path)
    place.write(FILE.format(options="{float_outputs: [logit]}"))
    result = place.run()
    assert result.code == 2
    assert "pipeline.yaml:8:" in result.err
    assert "no output is called 'logit'" in result.err
    assert "did you mean 'logits'?" in result.err


@pytest.mark.slow
def test_calibration_looks_at_a_table_of_its_own_and_says_when_it_is_small(tmp_path: Path) -> None:
    place = Workshop(tmp_path)
    frames = np.random.default_rng(0).integers(0, 255, (100, 1, 8, 8), dtype=np.uint8)
    np.savez(tmp_path / "frames.npz", image=frames)
    np.savez(tmp_path / "train.npz", image=frames[:60])
    text = """
name: tables
model: convnet
args: {num_classes: 10}
data:
  npz: {path: train.npz, inputs: [image], targets: []}
  tables: {frames: {npz: {path: frames.npz, inputs: [image], targets: []}}}
stages:
  - quantize: {calibration: 256OPTIONS}
"""
    found = {}
    for options in ("", ", calibration_table: frames", ", float_outputs: [logits], float_above: 0.5"):
        place.write(text.replace("OPTIONS", options))
        result = place.run()
        assert result.code == 0, result.err
        found[options] = json.loads((place.out / "artifacts" / "quantized.calibration.json").read_text())
        assert "has no more samples, calibration asks for 256" in result.err
        assert set(found[options]) == {"rows", "samples", "digest", "divergence"}
    train, table, _ = found.values()
    assert train["samples"] <= 60 < table["samples"] == 100
    assert train["digest"] != table["digest"]
    assert "calibration" in {detail["kind"] for detail in result.report["details"]}
    assert {row["chosen"] for row in rows(place, "sensitivity")} <= {"as asked", "float"}
