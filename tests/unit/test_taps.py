"""Taps: terms compare what a module returned, whatever is done with it next, in any layout, precision or process."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from test_trainer import OPTIM, make_run, make_world, same, state
from torch import Tensor, nn

from edgekd.distill import knowledge as k
from edgekd.distill.pairing import pair, stages_of
from edgekd.errors import ConfigError
from edgekd.train.references import Taps, Values, parse_all
from edgekd.train.trainer import train
from edgekd.train.world import Model, Move, Phase, Term, World

ROWS = 4


class Net(nn.Module):
    """What networks do to taps: one ReLU for all, in place; += on a branch; tuples; names for one module."""

    def __init__(self, width: int = 6) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(3, width, 3, padding=1), nn.BatchNorm2d(width)
        self.conv2, self.bn2 = nn.Conv2d(width, width, 3, padding=1), nn.BatchNorm2d(width)
        self.relu, self.pool = nn.ReLU(inplace=True), nn.MaxPool2d(2)
        self.conv3, self.act = nn.Conv2d(width, 8, 3, padding=1), nn.ReLU(inplace=True)
        self.attend = nn.MultiheadAttention(8, 2, batch_first=True)
        self.memory = nn.LSTM(8, 8, batch_first=True)
        self.split = Split()
        self.head = nn.Linear(8, 5)
        self.alias = self.head
        self.parts = nn.ModuleList([nn.Identity()])

    def forward(self, x: Tensor) -> Tensor:
        x = self.relu(self.bn1(self.conv1(x)))
        y = self.bn2(self.conv2(x))
        y += x
        y = self.act(self.conv3(self.pool(self.relu(y)))).mean((2, 3))[:, None]
        y = self.attend(query=y, key=y, value=y, need_weights=False)[0]
        a, b = self.split(self.memory(y)[0][:, 0])
        return self.head(torch.cat((a, b), 1))


class Split(nn.Module):
    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return x[:, :3], x[:, 3:]


@pytest.fixture
def world() -> World:
    torch.manual_seed(0)
    student = Net().eval()
    models = {name: Model(copy.deepcopy(student), ("image",), ("logits",)) for name in ("student", "teacher")}
    return World(models, {}, ())


@pytest.fixture
def image() -> Tensor:
    return torch.randn(ROWS, 3, 8, 8, generator=torch.Generator().manual_seed(1))


def tapped(world: World, image: Tensor, *texts: str, rows: int = 0) -> list[Tensor]:
    taps = Taps(world, parse_all(texts))
    try:
        values = Values(world, taps, {"image": image}, {"student"}, {}, rows)
        return [values.get(text) for text in texts]
    finally:
        taps.close()


def by_hand(net: Net, image: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Outputs of bn1 and bn2, and what act is given, out of place."""
    first = net.bn1(net.conv1(image))
    second = net.bn2(net.conv2(first.relu()))
    return first, second, net.conv3(net.pool((second + first.relu()).relu()))


@pytest.mark.parametrize("rows", [0, 7])
def test_a_tap_sees_what_the_module_returned_and_not_what_was_written_over_it(
    world: World, image: Tensor, rows: int
) -> None:
    for name in ("student", "teacher"):
        found = tapped(world, image, f"{name}.bn1", f"{name}.bn2", f"{name}.act:in", f"{name}.conv3", rows=rows)
        net = world.models[name].network
        assert isinstance(net, Net)
        first, second, third = by_hand(net, image)
        for value, expected in zip(found, (first, second, third, third), strict=True):
            assert expected.min() < 0
            assert torch.allclose(value, expected, atol=1e-5)


def loss_and_gradient(sides: Callable[[], tuple[Tensor, Tensor]], net: nn.Module) -> tuple[float, Tensor]:
    net.zero_grad()
    student, teacher = sides()
    loss = 1000 * k.attention(student, teacher) + k.rkd(student, teacher)
    loss.backward()
    weight = net.get_parameter("conv1.weight").grad
    assert weight is not None
    return loss.item(), weight.clone()


@pytest.mark.parametrize(("way", "close"), [("plain", 0.0), ("channels_last", 1e-5), ("bf16", 0.05), ("compiled", 0.0)])
def test_loss_and_gradient_through_taps_are_those_by_hand(world: World, image: Tensor, way: str, close: float) -> None:
    net, guide = world.models["student"].network.train(), world.models["teacher"].network
    assert isinstance(net, Net) and isinstance(guide, Net)
    with torch.no_grad():
        known = by_hand(guide, image)[0]
    loss, gradient = loss_and_gradient(lambda: (by_hand(net, image)[1], known), net)
    if way == "channels_last":
        image = image.contiguous(memory_format=torch.channels_last)
        for network in (net, guide):
            network.to(memory_format=torch.channels_last)
    if way == "compiled":
        # fullgraph: a hook that broke the graph would be an error. The LSTM, which breaks it itself, is left out.
        net.memory, net._compiled_call_impl = (
            Pair(),
            torch.compile(net._call_impl, backend="aot_eager", fullgraph=True),
        )
    with torch.autocast("cpu", torch.bfloat16, enabled=way == "bf16"):
        found = loss_and_gradient(lambda: tuple(tapped(world, image, "student.bn2", "teacher.bn1")), net)  # type: ignore[arg-type, return-value]
    assert found[0] == pytest.approx(loss, rel=max(close, 1e-6))
    assert (found[1] - gradient).norm() <= max(close, 1e-6) * gradient.norm()


class Pair(nn.Module):
    def forward(self, x: Tensor) -> tuple[Tensor, None]:
        return x, None


@pytest.mark.parametrize(
    ("path", "shape"),
    [
        ("attend", (ROWS, 1, 8)),
        ("attend:in", (ROWS, 1, 8)),
        ("memory", (ROWS, 1, 8)),
        ("alias", (ROWS, 5)),
        ("head:in", (ROWS, 8)),
    ],
)
def test_one_tensor_among_other_things_one_module_of_two_names_and_inputs_by_name(
    world: World, image: Tensor, path: str, shape: tuple[int, ...]
) -> None:
    assert tuple(tapped(world, image, f"student.{path}")[0].shape) == shape


@pytest.mark.parametrize(
    ("path", "message", "hint"),
    [
        ("relu", "'student.relu' names a module that runs 2 times", "the block around it"),
        ("parts.0", "'student.parts.0' names a module that runs 0 times", "runs once"),
        ("split", "student.split gives 2 tensors", "module:in"),
        ("conv4", "no module 'conv4'", "near are: conv3"),
    ],
)
def test_what_has_no_one_value_is_refused_with_a_way_out(
    world: World, image: Tensor, path: str, message: str, hint: str
) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        tapped(world, image, f"student.{path}")
    assert hint in str(caught.value.hint)


def test_hooks_hold_nothing_between_steps_and_do_nothing_outside_of_them(world: World, image: Tensor) -> None:
    taps = Taps(world, parse_all(["student.bn1"]))
    found = Values(world, taps, {"image": image}, {"student"}, {}).get("student.bn1")
    world.models["student"].network(image)  # e.g. an evaluation between two epochs
    assert found.requires_grad
    assert list(taps.seen.values()) == [[]]
    again = Values(world, taps, {"image": image}, {"student"}, {}).get("student.bn1")
    assert torch.equal(found, again)
    taps.close()


class Writes(nn.Module):
    """Writes over what its first module gave, in training alone; a draw that evaluation makes too."""

    def __init__(self, drop: nn.Module) -> None:
        super().__init__()
        self.body, self.drop, self.head = nn.Linear(4, 6), drop, nn.Linear(6, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.drop(self.body(x + torch.randn_like(x))))


class HalfTheTime(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.mul_(torch.rand(len(x), 1).round()) if self.training else x


def test_what_is_written_over_in_training_alone_is_seen_as_it_was_or_refused() -> None:
    found = []
    for drop in (nn.Dropout(0.5), nn.Dropout(0.5, inplace=True), HalfTheTime()):
        torch.manual_seed(0)
        world = World({"student": Model(Writes(drop).train(), ("x",), ("y",))}, {}, ())
        taps = Taps(world, parse_all(["student.body"]))
        values = Values(world, taps, {"x": torch.ones(4, 4)}, {"student"}, {})
        if isinstance(drop, HalfTheTime):
            with pytest.raises(ConfigError, match="'body' has is written over in training") as caught:
                values.get("student.body")
            assert "inplace=False" in str(caught.value.hint)
        else:
            found.append(values.get("student.body"))
        assert world.models["student"].network.training
    torch.manual_seed(0)
    net = Writes(nn.Identity())
    expected = net.body(torch.ones(4, 4) + torch.randn(4, 4))  # the look drew nothing that the step misses
    assert torch.equal(found[0], found[1]) and torch.equal(found[0], expected)


def test_only_what_is_written_over_is_copied(world: World, image: Tensor) -> None:
    taps = Taps(world, parse_all(["student.bn1", "student.conv1", "student.pool:in"]))
    seen: dict[str, int] = {}
    for name in ("bn1", "conv1"):
        module = world.models["student"].network.get_submodule(name)
        module.register_forward_hook(lambda m, i, output, name=name: seen.update({name: output.data_ptr()}))
    values = Values(world, taps, {"image": image}, {"student"}, {})
    assert values.get("student.bn1").data_ptr() != seen["bn1"]
    assert values.get("student.conv1").data_ptr() == seen["conv1"]
    taps.close()


def test_a_run_with_copied_taps_resumes_bit_for_bit(tmp_path: Path) -> None:
    def made() -> World:
        world = make_world()
        for model in world.models.values():
            model.network.body[2].inplace = True  # type: ignore[index, union-attr]
        return world

    terms = tuple(Term("attention", f"student.body.{i}", f"teacher.body.{i}", weight=9.0, label=str(i)) for i in (0, 1))
    phases = [Phase("p", (Move({"student": OPTIM}, terms),), 3)]
    whole, resumed = made(), made()
    curves = train(whole, phases, make_run())

    def die(epoch: object) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(made(), phases, make_run(tmp_path, die))
    assert train(resumed, phases, make_run(tmp_path)) == curves
    assert same(state(whole.models["student"]), state(resumed.models["student"]))


@pytest.mark.parametrize("rows", [0, 7])
def test_windows_of_a_batch_are_not_taken_for_its_samples(world: World, image: Tensor, rows: int) -> None:
    class Windows(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.window = nn.Identity()

        def forward(self, x: Tensor) -> Tensor:
            return self.window(x.unflatten(3, (4, 2)).movedim(3, 1).flatten(0, 1)).unflatten(0, (-1, 4)).mean((1, 3, 4))

    world.models["teacher"] = Model(Windows(), ("image",), ("logits",))
    fed = rows or ROWS
    with pytest.raises(ConfigError, match=rf"'window' has \({4 * fed}, 3, 8, 2\) for {fed} samples") as caught:
        tapped(world, image, "teacher.window", rows=rows)
    assert "batch first" in str(caught.value.hint)


def test_stages_are_named_by_modules_that_run_once(world: World, image: Tensor) -> None:
    model = world.models["student"]
    stages = stages_of(model, {"image": image})
    assert stages.maps == {(8, 8): "bn2", (4, 4): "act"}  # not the ReLU that serves both sizes
    assert stages.embedding == "head:in"
    found = pair(stages, stages, "attention")
    assert [tuple(x.shape) for x in tapped(world, image, *(f"student.{name}" for name, _ in found))] == [
        (ROWS, 6, 8, 8),
        (ROWS, 8, 4, 4),
    ]


def test_flows_are_compared_between_stages_of_as_many_channels(image: Tensor) -> None:
    stages = [stages_of(Model(Net(width), ("image",), ("logits",)), {"image": image}) for width in (6, 7)]
    assert pair(stages[0], stages[0], "fsp") == (("bn2", "bn2"), ("act", "act"))
    assert pair(*stages, "fsp") == (("act", "act"),)
