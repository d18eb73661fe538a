"""Branches of a student on a teacher: what they are, what they learn, and that nothing of them stays."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch
from test_schemes import recipe, terms_of
from test_trainer import HEADS, Net, make_run, make_table, same, state
from torch import Tensor, nn

from edgekd.distill.branches import rest_of
from edgekd.distill.scheme_settings import StudentFriendlySettings
from edgekd.distill.schemes.student_friendly import student_friendly
from edgekd.errors import ConfigError
from edgekd.models.resolve import build
from edgekd.train.trainer import train
from edgekd.train.world import Model, World


def zoo(name: str, seed: int, **arguments: object) -> Model:
    torch.manual_seed(seed)
    network = build(name, arguments, Path(), {"num_classes": 3, "in_channels": 1, "image_size": 8})
    return Model(network, ("image",), ("logits",))


def picture_world() -> World:
    table = make_table()
    wide = nn.functional.pad(table.inputs["image"], (2, 1, 2, 1))
    table = dataclasses.replace(table, inputs={"image": wide})
    models = {"teacher": zoo("resnet14", 1), "student": zoo("convnet", 2, width=4)}
    return World(models, {"train": table}, HEADS)


LAYERS = tuple((f"layer{i}", f"layer{i}") for i in (1, 2, 3))


def test_branches_learn_with_the_teacher_and_leave_nothing_in_it() -> None:
    world = picture_world()
    given = state(world.models["teacher"])
    phases = student_friendly(recipe(1), StudentFriendlySettings(), LAYERS)
    first = terms_of(phases[0])
    assert {name: term.weight for name, term in first.items()} == {
        "friendly.cross_entropy": 1.0,
        **{f"branch_{i}.cross_entropy": 1.0 for i in (1, 2)},
        **{f"branch_{i}.kd": 3.0 for i in (1, 2)},
    }
    train(world, phases, make_run())
    friendly, teacher = world.models["friendly"].network, world.models["teacher"].network
    assert same(given, state(world.models["teacher"]))
    assert {name: p.shape for name, p in friendly.state_dict().items()} == {
        name: p.shape for name, p in teacher.state_dict().items()
    }
    assert not same(given, state(world.models["friendly"]))
    for number in (1, 2):
        branch = world.models[f"branch_{number}"].network
        assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in branch.parameters())
    # Without its own loss the teacher still learns through the branches, up to the stage that they hang on.
    world = picture_world()
    quiet = student_friendly(recipe(1), StudentFriendlySettings(task_weight=0.0), LAYERS[:1])[0]
    train(world, [quiet], make_run())
    after = state(world.models["friendly"])
    changed = {name for name in given if not torch.equal(given[name], after[name])}
    assert {"conv1.weight", "layer1.0.conv1.weight"} <= changed
    assert not any(name.startswith("layer2") and name.endswith("conv1.weight") for name in changed)


def test_the_rest_of_a_network_is_what_stands_behind_a_stage() -> None:
    model, x = zoo("resnet8", 3), torch.randn(4, 1, 8, 8)
    rest = rest_of(model, "layer1", {"image": x})
    kept = {name for name in rest.state_dict() if not name.startswith(("layer2", "layer3", "fc"))}
    assert kept == set()
    model.network.eval()
    with torch.no_grad():
        inside = model.network.layer1(model.network.relu(model.network.bn1(model.network.conv1(x))))
        assert torch.equal(rest(inside), model.network(x))


def test_a_network_that_cannot_be_split_is_told_so() -> None:
    class Around(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.head = nn.Conv2d(1, 4, 3), nn.Conv2d(1, 4, 3), nn.Linear(4, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.head((self.a(x) + self.b(x)).mean((2, 3)))

    class Deciding(Around):
        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.a(x).mean((2, 3))) if x.sum() > 0 else self.head(self.b(x).mean((2, 3)))

    class Baked(Around):
        def forward(self, x: Tensor) -> Tensor:
            return self.head(nn.functional.dropout(self.a(x), 0.5, training=True).mean((2, 3)))

    feeds = {"image": torch.randn(2, 1, 5, 5)}
    for network, message in ((Around(), "x goes around it"), (Deciding(), "cannot be split at a"), (Baked(), "else")):
        with pytest.raises(ConfigError, match=message) as caught:
            rest_of(Model(network, ("image",), ("logits",)), "a", feeds)
        assert "layers:" in str(caught.value.hint)


def test_dropout_of_a_branch_sleeps_in_evaluation_mode() -> None:
    net = Model(Net(4), ("image",), ("logits",))
    rest = rest_of(net, "body.0", {"image": torch.randn(2, 1, 5, 5)})
    x = torch.randn(2, 4, 3, 3)
    rest.train()
    assert not torch.equal(rest(x), rest(x))
    rest.eval()
    assert torch.equal(rest(x), rest(x))
