"""What does not fit together is said: outputs and targets, classes and labels, weights and answers."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from edgekd.cli.main import run
from edgekd.errors import ConfigError
from edgekd.export.card import answers
from edgekd.models.weights import apply_state, save_state
from edgekd.tasks.settings import heads_of


def test_an_output_that_is_nearly_called_like_a_target_is_a_mistake() -> None:
    with pytest.raises(ConfigError, match="no target 'plaec'") as refused:
        heads_of({"kind": "classification", "plaec": "regression"}, ("kind", "place"))
    assert refused.value.hint == "did you mean 'place'?"
    without = heads_of({"kind": "classification", "score": "regression"}, ("kind", "place"))
    assert [head.target for head in without] == ["kind", None]


def test_classes_beyond_the_labels_have_numbers() -> None:
    found = answers(np.array([0.0, 3.0, 1.0]), ["cat", "dog"])
    assert [name for name, _ in found] == ["dog", "2", "cat"]


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_refused_by_name(value: float) -> None:
    network = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 1))
    state = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    state["1.bias"][0] = value
    with pytest.raises(ConfigError, match=r"1 tensors hold values that are not finite \(1.bias\)"):
        apply_state(network, state, Path("w.pt"))
    assert torch.isfinite(network[1].bias).all()


NETS = """\
from torch import nn

def build(num_classes=10):
    return nn.Sequential(nn.Flatten(), nn.Linear(64, num_classes))
"""
FILE = """\
name: doubts
data: {digits: {}, normalize: none}
stages:
  - teacher: {model: "nets:build", weights: w.safetensors, args: {num_classes: CLASSES}}
"""


@pytest.mark.parametrize("classes", [10, 12])
def test_answers_that_say_nothing_of_the_data_are_doubted(
    classes: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    network = nn.Sequential(nn.Flatten(), nn.Linear(64, classes))
    nn.init.zeros_(network[1].weight)
    save_state(network, tmp_path / "w.safetensors")
    (tmp_path / "nets.py").write_text(NETS)
    (tmp_path / "p.yaml").write_text(FILE.replace("CLASSES", str(classes)))
    with pytest.raises(SystemExit) as end:
        run(["run", "p.yaml"])
    assert end.value.code == 0
    warned = [line for line in capsys.readouterr().err.splitlines() if line.startswith("warning: teacher: ")]
    assert any("no more than always naming one class" in line for line in warned)
    assert any("has 12 classes and the data 10" in line for line in warned) == (classes == 12)
