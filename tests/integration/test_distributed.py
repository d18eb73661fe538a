"""Several processes: the same curves as one, no sample twice, and a process that dies costs nothing but time."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from chain import Result, Workshop

from edgekd.models.weights import load_state

pytestmark = pytest.mark.slow
Finished = tuple[Workshop, Result]
Outcome = tuple[dict[str, Any], dict[str, torch.Tensor]]

# No BatchNorm: its statistics are each process's own. One process kills itself where a file says so.
NET = """
import os, pathlib, signal
import torch
from torch import nn

class Net(nn.Module):
    def __init__(self, num_classes, width=8):
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(1, width, 3), nn.ReLU(), nn.Conv2d(width, width, 3), nn.ReLU())
        self.head = nn.Linear(width, num_classes)
        self.asked = 0

    def forward(self, x):
        self.asked += self.training
        order = pathlib.Path(os.environ.get("DIE_FILE", "/nowhere"))
        if self.asked == 40 and os.environ.get("RANK") == "1" and order.is_file():
            order.unlink()
            os.kill(os.getpid(), signal.SIGKILL)
        return self.head(self.body(x).mean((2, 3)))
"""
PIPELINE = """
name: many
data: {digits: {}, validation: 0.107}
train: {batch: 48, precision: f32, lr: 0.2, clip: 5.0}
stages:
  - teacher: {model: "net:Net", args: {width: 16}, epochs: 3}
  - distill: {student: "net:Net", epochs: 4}
  - quantize: {weights: 4, self_distillation: true, epochs: 1}
"""
PARTS = ["--set", "train.accumulate=2"]


def workshop_in(folder: Path) -> Workshop:
    """The pipeline with a store and an output folder of its own."""
    folder.mkdir(exist_ok=True)
    (folder / "net.py").write_text(NET)
    made = Workshop(folder)
    made.write(PIPELINE)
    return made


@pytest.fixture
def workshop(tmp_path: Path) -> Workshop:
    return workshop_in(tmp_path)


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Finished:
    """What one process makes of whole batches."""
    made = workshop_in(tmp_path_factory.mktemp("alone"))
    return made, made.run()


@pytest.fixture(scope="module")
def together(tmp_path_factory: pytest.TempPathFactory) -> Finished:
    """What two make of batches in two parts each."""
    made = workshop_in(tmp_path_factory.mktemp("together"))
    return made, made.run("--nproc", "2", *PARTS)


def outcome(finished: Finished, stage: str = "distill") -> Outcome:
    """Curves and weights of a stage."""
    workshop, result = finished
    assert result.code == 0, result.err
    key = next(row["key"] for row in result.report["stages"] if row["name"] == stage)
    folder = workshop.folder / "store" / "objects" / key[:2] / key
    curves: dict[str, Any] = json.loads((folder / "curves.json").read_text())["phases"][0]
    return curves, load_state(folder / "weights.safetensors")


def assert_close(one: Any, other: Any) -> None:
    for part in ("terms", "metrics"):
        for name, values in one[0][part].items():
            assert other[0][part][name] == pytest.approx(values, rel=1e-5), name
    for name, value in one[1].items():
        assert torch.allclose(other[1][name], value, rtol=1e-3, atol=1e-5), name


def test_two_processes_and_accumulated_parts_give_the_curves_of_one_with_the_whole_batch(
    alone: Finished, together: Finished
) -> None:
    for stage in ("teacher", "distill"):
        assert_close(outcome(alone, stage), outcome(together, stage))
    two, result = together
    assert result.states() == {"teacher": "ran", "distill": "ran", "quantize": "ran"}
    assert len([line for line in result.err.splitlines() if "offline 4/4" in line]) == 1  # one process speaks
    # What several processes made is there for one: the number of them is no part of a key.
    key = result.report["stages"][1]["key"]
    assert two.run(*PARTS).report["stages"][1] | {"seconds": 0} == {
        "name": "distill", "state": "cached", "cache": "local", "key": key, "seconds": 0, "why": "unchanged",
        "warnings": [],
    }  # fmt: skip


def test_two_processes_teach_a_quantized_network_like_one(alone: Finished, together: Finished) -> None:
    one, both = outcome(alone, "quantize"), outcome(together, "quantize")
    # A value on the edge between two levels may fall on either side, so the weights part a little.
    assert both[0]["terms"]["kd"] == pytest.approx(one[0]["terms"]["kd"], rel=0.02)
    assert both[1].keys() == one[1].keys()
    for name, value in one[1].items():
        assert torch.allclose(both[1][name].float(), value.float(), rtol=0.02, atol=0.02), name


def test_a_killed_process_is_started_again_and_ends_with_the_same_bytes(
    together: Finished, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = outcome(together)
    order = tmp_path / "die"
    monkeypatch.setenv("DIE_FILE", str(order))
    several = ["--nproc", "2", *PARTS, "--to", "distill"]

    order.touch()
    killed = workshop_in(tmp_path / "killed")
    found = outcome((killed, killed.run(*several, "--max-restarts", "1")))
    assert not order.exists()
    assert found[0] == whole[0]
    assert all(torch.equal(found[1][name], value) for name, value in whole[1].items())

    order.touch()
    died = workshop_in(tmp_path / "died")
    result = died.run(*several)
    assert not order.exists()
    assert result.code == 4
    assert "error: one of the 2 processes died" in result.err
    # The checkpoint of two processes serves one.
    rest = died.run(*PARTS, "--to", "distill")
    assert "resumed" in rest.states().values()
    assert_close(whole, outcome((died, rest)))


def test_a_mistake_is_said_once_and_keeps_its_exit_code(workshop: Workshop) -> None:
    result = workshop.run("--nproc", "2", "--set", "distill.args={depth: 3}")
    assert result.code == 2
    assert result.err.count("error:") == 1
    assert "depth" in result.err
    few = workshop.run("--nproc", "64")
    assert few.code == 2
    assert "48 samples a step cannot be shared by 64 processes" in few.err


def test_knowledge_between_samples_sees_the_rows_of_all_processes(workshop: Workshop) -> None:
    knowledge = "distill.knowledge=[kd, rkd, similarity, dist]"
    arguments = ["--set", knowledge, "--to", "distill"]
    # A small rate: these losses are steep at the start, and rounding would grow into differences that mean nothing.
    for setting in ("train.lr=0.001", "teacher.epochs=1", "distill.epochs=1"):
        arguments += ["--set", setting]
    two = workshop_in(workshop.folder / "two")
    assert_close(outcome((workshop, workshop.run(*arguments))), outcome((two, two.run("--nproc", "2", *arguments))))


def test_a_loss_that_is_lost_in_several_processes_is_named_once_with_its_step(workshop: Workshop) -> None:
    result = workshop.run("--nproc", "2", "--set", "train.lr=1e30", "--set", "train.tensorboard=true")
    assert result.code == 4
    (line,) = [line for line in result.err.splitlines() if line.startswith("error:")]
    assert "the loss 'cross_entropy' is not finite (phase supervised, epoch 1, step " in line
