"""References that compose: models called on models, parameters and buffers, gradients through guides."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch
from test_trainer import HEADS, OPTIM, make_net, make_run, make_table, make_world, same, state
from torch import Tensor, nn

from edgekd.errors import ConfigError
from edgekd.train.references import Reference, Taps, Values, parse, parse_all
from edgekd.train.trainer import train
from edgekd.train.world import Model, Move, Phase, Term, World


def generator(seed: int = 5) -> Model:
    torch.manual_seed(seed)
    make = nn.Sequential(nn.Linear(4, 25), nn.Unflatten(1, (1, 5, 5)))
    return Model(make, ("noise",), ("image",))


def noise_world() -> World:
    world = make_world()
    table = make_table()
    table.inputs["noise"] = torch.randn(70, 4, generator=torch.Generator().manual_seed(9))
    world.tables["train"] = table
    world.models["generator"] = generator()
    for model in world.models.values():
        model.network.eval()
    return world


def values(world: World, texts: list[str], learners: set[str], batch: dict[str, Tensor]) -> tuple[list[Tensor], Taps]:
    taps = Taps(world, [r for r in parse_all(texts) if r.name in world.models])
    known = Values(world, taps, batch, learners, {})
    try:
        return [known.get(text) for text in texts], taps
    finally:
        taps.close()


def batch_of(world: World, rows: int = 16) -> dict[str, Tensor]:
    return dict(world.tables["train"].take(torch.arange(rows)).inputs)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("label", Reference("label")),
        ("student[logits]", Reference("student", output="logits")),
        ("teacher.bn1:in", Reference("teacher", path="bn1", given=True)),
        ("student(x_noisy)", Reference("student", argument="x_noisy")),
        ("student[a](generator(z))", Reference("student", output="a", argument="generator(z)")),
        ("critic(student.layer2)", Reference("critic", argument="student.layer2")),
        ("t.0.bn:in(g[x](z))", Reference("t", path="0.bn", given=True, argument="g[x](z)")),
        ("teacher#bn1.running_mean", Reference("teacher", state="bn1.running_mean")),
    ],
)
def test_the_forms_of_a_reference(text: str, expected: Reference) -> None:
    assert parse(text) == expected


@pytest.mark.parametrize(
    "text", ["student(", "student()", "student(a)(b)", "student(a,b)", "a b", "t#", "t#a(b)", "s(t()"]
)
def test_other_text_is_no_reference(text: str) -> None:
    with pytest.raises(ConfigError, match="is not a reference"):
        parse(text)


def test_a_model_on_a_model_on_a_column_is_what_calling_them_gives() -> None:
    world = noise_world()
    batch = batch_of(world)
    nets = {name: model.network for name, model in world.models.items()}
    texts = ["student(generator(noise))", "teacher.head:in(generator(noise))", "teacher(image)", "student"]
    (made, inside, named, plain), _ = values(world, texts, set(), batch)
    with torch.no_grad():
        image = nets["generator"](batch["noise"])
        assert torch.equal(made, nets["student"](image))
        assert torch.equal(inside, nets["teacher"].body(image).mean((2, 3)))
        assert torch.equal(named, nets["teacher"](batch["image"]))
        assert torch.equal(plain, nets["student"](batch["image"]))


def test_every_model_runs_once_for_each_distinct_input() -> None:
    world = noise_world()
    calls: list[str] = []
    for name, model in world.models.items():
        model.network.register_forward_hook(lambda *_, name=name: calls.append(name))
    texts = [
        "student(generator(noise))",
        "teacher(generator(noise))",
        "teacher.body(generator(noise))",
        "teacher.body",
        "teacher[logits]",
        "generator",
    ]
    values(world, texts, set(), batch_of(world))
    # The teacher once more, before all, to see whether it writes over its taps.
    assert sorted(calls) == ["generator", "generator", "student", "teacher", "teacher", "teacher"]


def test_gradients_go_through_a_guide_to_what_learns_and_leave_none_in_it() -> None:
    world = noise_world()
    batch = batch_of(world)
    (found,), _ = values(world, ["teacher(generator(noise))"], {"generator"}, batch)
    found.square().sum().backward()
    teacher, made = world.models["teacher"].network, world.models["generator"].network
    assert all(p.grad is None and p.requires_grad for p in teacher.parameters())
    found_gradient = made[0].weight.grad.clone()  # type: ignore[index, union-attr, operator]
    made.zero_grad()
    teacher(made(batch["noise"])).square().sum().backward()
    assert torch.equal(found_gradient, made[0].weight.grad)  # type: ignore[index, union-attr, arg-type]


def test_where_nothing_learns_nothing_is_recorded() -> None:
    world = noise_world()
    (found, own), _ = values(world, ["teacher(generator(noise))", "student"], {"student"}, batch_of(world))
    assert not found.requires_grad
    assert own.requires_grad


def test_a_parameter_that_was_fixed_by_its_owner_stays_so() -> None:
    world = noise_world()
    head = world.models["teacher"].network.head
    head.weight.requires_grad_(False)  # type: ignore[union-attr, operator]
    values(world, ["teacher(generator(noise))"], {"generator"}, batch_of(world))
    assert not head.weight.requires_grad  # type: ignore[union-attr]
    assert head.bias.requires_grad  # type: ignore[union-attr]


def test_parameters_and_buffers_are_values_and_learn_where_their_model_does() -> None:
    world = noise_world()
    texts = ["teacher#body.1.running_mean", "teacher#head.weight", "student#head.weight"]
    (mean, frozen, learned), _ = values(world, texts, {"student"}, {})
    assert torch.equal(mean, world.models["teacher"].network.body[1].running_mean)  # type: ignore[index, union-attr, arg-type]
    assert not frozen.requires_grad
    assert learned is world.models["student"].network.head.weight  # type: ignore[union-attr]


def test_a_proximal_term_pulls_weights_to_those_of_another_model() -> None:
    world = World({"student": make_net(4, 1), "anchor": make_net(4, 2)}, {"train": make_table()}, HEADS)
    near = Term("mse_logits", "student#head.weight", "anchor#head.weight")
    before = state(world.models["anchor"])
    train(world, [Phase("p", (Move({"student": OPTIM}, (near,)),), 40)], make_run())
    assert torch.allclose(state(world.models["student"])["head.weight"], before["head.weight"], atol=0.02)
    assert same(before, state(world.models["anchor"]))


def phase_with(term: Term, **learn: Any) -> list[Phase]:
    return [Phase("p", (Move(learn or {"student": OPTIM}, (term,)),), 1)]


@pytest.mark.parametrize(
    ("term", "message", "hint"),
    [
        (Term("entropy", "student(imag)"), "names 'imag', which is neither a model nor a column", "columns: image"),
        (Term("entropy", "generator"), "generator reads noise, which the data has not", r"write generator\(..\)"),
        (Term("mse_logits", "student#head.wieght", "student#head.weight"), "no parameter or buffer", "head.weight"),
        (Term("mse_logits", "student.bdy(image)", "student"), "no module 'bdy'", "body"),
    ],
)
def test_a_reference_to_nothing_is_an_error_before_any_step(term: Term, message: str, hint: str) -> None:
    world = make_world()
    world.models["generator"] = generator()
    with pytest.raises(ConfigError, match=message) as caught:
        train(world, phase_with(term), make_run())
    assert re.search(hint, str(caught.value.hint))


def test_a_critic_sees_features_and_the_student_learns_through_it() -> None:
    world = make_world()
    torch.manual_seed(8)
    world.models["critic"] = Model(nn.Sequential(nn.Flatten(), nn.Linear(4 * 9, 1)), ("features",), ("score",))
    before = state(world.models["critic"])
    fool = Term("real", "critic(student.body)")
    losses = train(world, [Phase("p", (Move({"student": OPTIM}, (fool,)),), 5)], make_run())[0]["terms"]["real"]
    assert losses[-1] < losses[0]
    assert same(before, state(world.models["critic"]))
    assert all(p.grad is None for p in world.models["critic"].network.parameters())
