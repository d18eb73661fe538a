"""Networks that see some of the data's inputs: what the teacher knows and the student will never be given."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import pytest
from chain import Workshop
from mistakes import Place

NETS = """
from torch import nn


def mlp(in_channels, num_classes, width=16):
    return nn.Sequential(nn.Linear(in_channels, width), nn.ReLU(), nn.Linear(width, num_classes))


class Both(nn.Module):
    def __init__(self, num_classes):
        super().__init__()
        self.first, self.second = nn.Linear(4, num_classes), nn.Linear(6, num_classes)

    def forward(self, a, b):
        return self.first(a) + self.second(b)


class Named(Both):
    def forward(self, x, x_star):
        return super().forward(x, x_star)
"""
DATA = "data: {npz: {path: samples.npz, inputs: [x_star, x], targets: [y]}}\n"
PRIVILEGED = f"""
name: privileged
{DATA}train: {{batch: 32, optimizer: adamw, lr: 0.01}}
stages:
  - teacher: {{model: "nets:mlp", inputs: [x_star], epochs: 6}}
  - distill: {{student: "nets:mlp", inputs: [x], args: {{width: 8}}, epochs: 4, scheme: offline}}
  - quantize: {{self_distillation: true, epochs: 1}}
  - export: {{min_agreement: 0.8}}
  - compile: {{}}
  - evaluate: {{}}
  - bench: {{quick: true, launches: 1, min_time_s: 0.1, min_samples: 20, quiet_wait_s: 0, profile: false}}
targets: {{ov: {{runtime: openvino}}}}
"""


def samples(folder: Path) -> None:
    """Six inputs that tell the class, and four that tell half of it."""
    rng = np.random.default_rng(0)
    y = rng.integers(0, 3, 400)
    x_star = (np.eye(6)[y] * 3 + rng.normal(0, 0.5, (400, 6))).astype(np.float32)
    x = (np.eye(4)[y] + rng.normal(0, 0.7, (400, 4))).astype(np.float32)
    np.savez(folder / "samples.npz", x=x, x_star=x_star, y=y)
    (folder / "nets.py").write_text(NETS)


@pytest.mark.slow
def test_a_privileged_teacher_and_its_student_go_through_the_chain_each_with_its_own_inputs(tmp_path: Path) -> None:
    samples(tmp_path)
    made = Workshop(tmp_path)
    made.write(PRIVILEGED)
    result = made.run()
    assert result.code == 0, result.err
    shapes = {
        (build["model"], build["precision"]): {i["name"]: i["shape"][1:] for i in build["inputs"]}
        for build in result.report["builds"]
    }
    assert shapes == {
        ("teacher", "f32"): {"x_star": [6]},
        ("student", "f32"): {"x": [4]},
        ("quantized", "int8"): {"x": [4]},
    }
    accuracy = {model["role"]: model["metrics"][0]["value"] for model in result.report["models"]}
    assert accuracy["teacher"] > 0.95 > accuracy["student"] > 0.5
    assert all(build["parity"]["n"] == 80 for build in result.report["builds"])
    assert {row["model"] for row in result.report["latency"]} == {"teacher", "student", "quantized"}
    # A device finds in the file how to prepare what that file takes, and nothing else.
    graph = onnx.load(str(made.out / "artifacts" / "student.int8.onnx"))
    stored = {entry.key: entry.value for entry in graph.metadata_props}
    assert list(json.loads(stored["edgekd.preprocessing"])) == ["x"]
    assert "teacher are cached" in result.err
    # The same again is taken from the store; another choice of inputs is another network.
    assert set(made.run().states().values()) == {"cached"}
    states = made.run("--set", "distill.inputs=[x_star]", "--to", "distill").states()
    assert (states["teacher"], states["distill"]) == ("cached", "ran")


def test_a_teacher_of_images_teaches_a_student_of_others(place: Place) -> None:
    rng = np.random.default_rng(0)
    y = rng.integers(0, 2, 120)
    color = (rng.integers(0, 100, (120, 3, 8, 8)) + 120 * y[:, None, None, None]).astype(np.uint8)
    grey = color.mean(1, keepdims=True).astype(np.uint8)[:, :, ::2, ::2]
    np.savez(place.folder / "pairs.npz", color=color, grey=grey, y=y)
    said = place.run(
        """
name: modal
data: {npz: {path: pairs.npz, inputs: [color, grey]}, augment: {crop: 1, flip: true}}
train: {batch: 32, precision: f32, threads: 1}
stages:
  - teacher: {model: convnet, args: {width: 4, depth: 3}, inputs: [color], epochs: 2}
  - distill:
      {student: convnet, args: {width: 4, depth: 3}, inputs: [grey], epochs: 2, knowledge: [kd, pkt]}
  - quantize: {}
  - export: {min_agreement: 0.1}
"""
    )
    assert said.code == 0, said.err
    graph = onnx.load(str(place.folder / "out" / "artifacts" / "student.uint8.onnx"))
    (info,) = graph.graph.input
    assert info.name == "grey"
    assert [axis.dim_value for axis in info.type.tensor_type.shape.dim][1:] == [1, 4, 4]


@pytest.mark.parametrize(("network", "first"), [("Both", "x"), ("Named", "x")])
def test_several_inputs_go_by_name_where_names_fit_else_by_place(place: Place, network: str, first: str) -> None:
    samples(place.folder)
    chosen = "[x, x_star]" if network == "Both" else "[x_star, x]"
    said = place.run(f"name: m\nmodel: nets:{network}\ninputs: {chosen}\n{DATA}stages:\n  - export: {{}}\n")
    assert said.code == 0, said.err
    graph = onnx.load(str(place.folder / "out" / "artifacts" / "student.f32.onnx"))
    assert [info.name for info in graph.graph.input] == [first, "x_star"]


def pipeline(network: str, top: str = "") -> str:
    return f"name: m\n{top}{DATA}stages:\n  - {network}\n"


@pytest.mark.parametrize(
    ("text", "error", "hint"),
    [
        (
            pipeline('teacher: {model: "nets:mlp", epochs: 1, inputs: [x_str]}'),
            r"^p.yaml:4:54: the data has no input 'x_str'$",
            "^did you mean 'x_star'",
        ),
        (
            pipeline('distill: {scheme: online, student: "nets:mlp", inputs: [y]}'),
            r"^p.yaml:4:61: the data has no input 'y'$",
            "^known are: x, x_star$",
        ),
        (
            pipeline("export: {}", 'model: "nets:mlp"\ninputs: [z]\n'),
            r"^p.yaml:3:10: the data has no input 'z'$",
            "^known are",
        ),
        (
            pipeline('teacher: {model: "nets:mlp", inputs: [x, x]}'),
            r"^p.yaml:4:34: teacher.inputs: names one twice$",
            "each input once",
        ),
        (
            pipeline('teacher: {model: "nets:mlp", inputs: []}'),
            r"^p.yaml:4:34: teacher.inputs: \[\] is not allowed here$",
            "at least 1 item",
        ),
        (
            pipeline('teacher: {model: "nets:mlp"}', "inputs: [x]\n"),
            r"^p.yaml:2:1: inputs without a model$",
            "add `model:",
        ),
        (
            pipeline('teacher: {model: "nets:mlp", args: {in_channels: 4}, inputs: [x_star]}'),
            r"^p.yaml:4:34: nets:mlp fails on the data \(x_star \(2, 6\)\): mat1 and mat2",
            "check `args:`",
        ),
    ],
)
def test_a_mistake_in_the_inputs_of_a_network_is_explained(text: str, error: str, hint: str, place: Place) -> None:
    samples(place.folder)
    place.run(text).is_one_mistake(2, error, hint)
