"""Networks and data beyond one image and one label: several inputs and outputs, sensor windows, no labels."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from chain import Result, Workshop

from edgekd.files import sha256_file

pytestmark = pytest.mark.slow

NETS = '''
import torch
from torch import nn


class TwoInTwoOut(nn.Module):
    """An image and a vector in; a class and two real values out, as a dictionary."""

    def __init__(self, width: int = 8):
        super().__init__()
        self.image = nn.Sequential(nn.Conv2d(1, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU(),
                                   nn.Conv2d(width, width, 3, stride=2, padding=1), nn.ReLU())
        self.vector = nn.Sequential(nn.Linear(5, width), nn.ReLU())
        self.kind = nn.Linear(2 * width, 3)
        self.place = nn.Linear(2 * width, 2)

    def forward(self, vector, picture):
        features = torch.cat([self.image(picture).mean((2, 3)), self.vector(vector)], 1)
        return {"kind": self.kind(features), "place": self.place(features)}


class Sensor(nn.Module):
    """A window of T samples of six sensors in, one real value out."""

    def __init__(self, width: int = 16):
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv1d(6, width, 5, padding=2), nn.BatchNorm1d(width), nn.ReLU(), nn.MaxPool1d(2),
            nn.Conv1d(width, width, 3, padding=1), nn.BatchNorm1d(width), nn.ReLU(),
        )
        self.head = nn.Linear(width, 1)

    def forward(self, window):
        return self.head(self.layers(window).mean(-1))
'''

STAGES = """
stages:
  - teacher: {{model: "nets:{net}", args: {{width: 16}}, epochs: 6}}
  - distill: {{student: "nets:{net}", args: {{width: 8}}, epochs: 6}}
  - quantize: {{self_distillation: true, epochs: 2}}
  - export: {{min_agreement: 0.8}}
  - compile: {{}}
  - evaluate: {{}}
  - bench: {{quick: true, launches: 1, min_time_s: 0.2, min_samples: 20, quiet_wait_s: 0, profile: false}}
targets:
  ov: {{runtime: openvino}}
  ort: {{runtime: onnxruntime}}
"""


def workshop(folder: Path, text: str, arrays: dict[str, np.ndarray]) -> Workshop:
    made = Workshop(folder)
    (folder / "nets.py").write_text(NETS)
    np.savez(folder / "samples.npz", **arrays)
    made.write(text)
    return made


def metric(result: Result, target: str, model: str, name: str) -> float:
    build = next(b for b in result.report["builds"] if b["target"] == target and b["model"] == model)
    return next(m["value"] for m in build["metrics"] if m["name"] == name)


def test_two_inputs_and_two_outputs_go_through_the_chain(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    kind = rng.integers(0, 3, 600)
    picture = (rng.normal(0, 0.3, (600, 1, 8, 8)) + kind[:, None, None, None]).astype(np.float32)
    vector = rng.normal(0, 1, (600, 5)).astype(np.float32)
    place = np.stack([vector[:, 0] + kind, vector[:, 1]], 1).astype(np.float32)
    head = """
name: two
task: {kind: classification, place: regression}
data: {npz: {path: samples.npz, inputs: [picture, vector], targets: [kind, place]}}
train: {batch: 32, optimizer: adamw, lr: 0.01}
"""
    arrays = {"picture": picture, "vector": vector, "kind": kind, "place": place}
    result = workshop(tmp_path, head + STAGES.format(net="TwoInTwoOut"), arrays).run()
    assert result.code == 0, result.err
    for build in result.report["builds"]:
        # The data's order is picture, vector; the network's forward asks for vector, picture.
        assert {i["name"]: i["shape"][1:] for i in build["inputs"]} == {"vector": [5], "picture": [1, 8, 8]}
        assert {o["name"]: o["shape"][1:] for o in build["outputs"]} == {"kind": [3], "place": [2]}
        assert set(build["parity"]["agreement"]) == {"kind", "place"}
    for target in ("ov", "ort"):
        assert metric(result, target, "quantized", "kind.accuracy") > 0.9
        assert metric(result, target, "quantized", "place.mae") < 0.5
        build = next(b for b in result.report["builds"] if b["target"] == target and b["model"] == "quantized")
        assert build["executed_convolutions"] == {"int8": 2}
    assert {r["model"] for r in result.report["latency"]} == {"teacher", "student", "quantized"}


def test_sensor_windows_are_regressed_by_an_int8_engine(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    strength = rng.uniform(0.5, 3.0, 500)
    time = np.linspace(0, 6, 50)
    window = strength[:, None, None] * np.sin(time + rng.uniform(0, 6, (500, 6, 1))) + rng.normal(0, 0.05, (500, 6, 50))
    head = """
name: sensor
task: regression
data: {npz: {path: samples.npz, inputs: [window], targets: [strength]}}
train: {batch: 32, optimizer: adamw, lr: 0.01}
"""
    arrays = {"window": window.astype(np.float32), "strength": strength.astype(np.float32)}
    result = workshop(tmp_path, head + STAGES.format(net="Sensor").replace("epochs: 6", "epochs: 15"), arrays).run()
    assert result.code == 0, result.err
    guess = float(np.abs(strength - np.median(strength)).mean())
    for target in ("ov", "ort"):
        assert metric(result, target, "student", "mae") < guess / 3
        assert metric(result, target, "quantized", "mae") < guess / 3
        build = next(b for b in result.report["builds"] if b["target"] == target and b["model"] == "quantized")
        assert build["executed_convolutions"] == {"int8": 2}


def test_a_given_network_is_quantized_without_labels(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    made = workshop(
        tmp_path,
        """
name: unlabelled
task: regression
model: nets:Sensor
data: {npz: {path: samples.npz, inputs: [window], targets: []}}
stages:
  - quantize: {calibration: 64, self_distillation: true, epochs: 1}
  - export: {min_agreement: 0.5}
  - compile: {}
  - evaluate: {}
targets:
  ov: {runtime: openvino}
  ort: {runtime: onnxruntime}
""",
        {"window": rng.normal(0, 1, (300, 6, 50)).astype(np.float32)},
    )
    result = made.run()
    assert result.code == 0, result.err
    assert [m["role"] for m in result.report["models"]] == ["student", "quantized"]
    assert metric(result, "ov", "student", "difference") < 1e-4
    assert 0 < metric(result, "ov", "quantized", "difference") < 0.1


def test_code_that_changes_under_the_same_weights_exports_the_new_network(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    text = """
name: code
task: regression
model: nets:Sensor
weights: weights.safetensors
data: {npz: {path: samples.npz, inputs: [window], targets: []}}
stages:
  - quantize: {calibration: 64}
  - export: {min_agreement: 0.1}
  - compile: {}
targets: {ort: {runtime: onnxruntime}}
"""
    made = workshop(
        tmp_path,
        text.replace("weights: weights.safetensors\n", ""),
        {"window": rng.normal(0, 1, (200, 6, 50)).astype(np.float32)},
    )
    assert made.run("--to", "model").code == 0
    (tmp_path / "weights.safetensors").write_bytes((made.out / "artifacts" / "student.safetensors").read_bytes())
    made.write(text)
    assert made.run().code == 0
    before = (made.out / "artifacts" / "student.f32.onnx").read_bytes()
    (tmp_path / "nets.py").write_text(NETS.replace("self.layers(window).mean(-1)", "2 * self.layers(window).mean(-1)"))
    result = made.run()
    assert result.code == 0, result.err
    assert set(result.states().values()) == {"ran"}
    assert (made.out / "artifacts" / "student.f32.onnx").read_bytes() != before


def test_a_student_without_labels_is_held_against_its_teacher_not_against_itself(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    made = workshop(
        tmp_path,
        """
name: unlabelled
task: regression
model: nets:Sensor
data: {npz: {path: samples.npz, inputs: [window], targets: []}}
train: {batch: 32}
stages:
  - distill: {student: "nets:Sensor", args: {width: 4}, epochs: 1}
  - quantize: {}
  - export: {min_agreement: 0.5}
  - evaluate: {}
gates:
  - {measure: metric_drop, of: quantized, against: teacher, max: "0.0"}
""",
        {"window": rng.normal(0, 1, (300, 6, 50)).astype(np.float32)},
    )
    result = made.run()
    assert result.code == 5  # a student that was hardly trained does not say what its teacher says
    values = {m["role"]: m["metrics"][0]["value"] for m in result.report["models"]}
    assert values["teacher"] == 0.0
    assert values["student"] > 0.0
    assert values["quantized"] > 0.0
    names = {path.name for path in (made.out / "artifacts").glob("*.safetensors")}
    assert names == {"teacher.safetensors", "student.safetensors", "quantized.safetensors"}
    manifest = json.loads((made.out / "manifest.json").read_text())
    for name, facts in manifest["files"].items():
        assert sha256_file(made.out / name) == facts["sha256"]


def test_labels_that_the_network_has_no_class_for_are_a_data_error(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    text = """
name: labels
data: {npz: {path: samples.npz, inputs: [picture], targets: [kind]}}
stages:
  - teacher: {model: convnet, args: {num_classes: 3}, epochs: 1}
"""
    arrays = {"picture": rng.normal(0, 1, (60, 1, 8, 8)).astype(np.float32), "kind": rng.integers(0, 7, 60)}
    result = workshop(tmp_path, text, arrays).run()
    assert result.code == 4
    assert "label 6 is out of range for a network with 3 classes" in result.err
    assert "Traceback" not in result.err
