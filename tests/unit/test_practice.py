"""Optimizers, schedules, averages, patience, half precision and compilation, through the trainer."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path

import pytest
import torch
from test_trainer import HEADS, OPTIM, make_run, make_world, offline_phases, same, state
from torch import nn
from torch.optim.optimizer import register_optimizer_step_post_hook

from edgekd.distill.schemes.offline import supervised
from edgekd.train.learning import Learner
from edgekd.train.lion import Lion
from edgekd.train.practice import averaged, patient
from edgekd.train.precision import choose_compile
from edgekd.train.trainer import train
from edgekd.train.world import Model, Move, Optim, Phase, Term, Watch, World


def rates(steps: int, **settings: object) -> list[float]:
    model = Model(nn.Linear(2, 2), ("x",), ("y",))
    learner = Learner(model, Optim(lr=2.0, **settings), steps // 4, steps)  # type: ignore[arg-type]
    return [learner.learning_rate(step) for step in range(steps)]


def test_the_step_schedule_drops_at_its_milestones() -> None:
    found = rates(8, schedule="step", milestones=(0.5, 0.75), gamma=0.1)
    assert found == pytest.approx([2, 2, 2, 2, 0.2, 0.2, 0.02, 0.02])


@pytest.mark.parametrize(("epochs", "warm"), [(1, 0.2), (3, 0.6), (5, 1.0), (20, 1.0)])
def test_a_warm_up_that_nobody_asked_for_leaves_time_to_fall(epochs: int, warm: float) -> None:
    model = Model(nn.Linear(2, 2), ("x",), ("y",))
    learner = Learner(model, Optim(lr=2.0, warmup=None), 100, 100 * epochs)
    found = [learner.learning_rate(step) for step in range(100 * epochs)]
    assert abs(found.index(max(found)) - 100 * warm) <= 1
    assert found[0] < 0.1
    assert found[-1] < 0.01
    asked = Learner(model, Optim(lr=2.0, warmup=1.0), 100, 100 * epochs)
    assert asked.learning_rate(99) == pytest.approx(2.0 * 100 / 101)


def test_one_cycle_is_that_of_torch() -> None:
    found = rates(40, schedule="one_cycle")
    optimizer = torch.optim.SGD(nn.Linear(2, 2).parameters(), lr=1.0)
    # Torch is at its end in its last step, this schedule one step later.
    theirs = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, 2.0, total_steps=41, final_div_factor=400, pct_start=13 / 41, cycle_momentum=False
    )
    expected = []
    for _ in range(40):
        expected.append(theirs.get_last_lr()[0])
        optimizer.step()
        theirs.step()
    assert found[0] == pytest.approx(2 / 25)
    assert max(found) == pytest.approx(2.0)
    assert found == pytest.approx(expected)


def test_lion_by_hand() -> None:
    weight = nn.Parameter(torch.tensor([1.0, -2.0]))
    optimizer = Lion([weight], lr=0.1, weight_decay=0.5)
    w, m = [1.0, -2.0], [0.0, 0.0]
    for gradient in ([0.5, -1.0], [-4.0, 0.2], [0.1, 0.0]):
        weight.grad = torch.tensor(gradient)
        optimizer.step()
        for i, g in enumerate(gradient):
            direction = 0.9 * m[i] + 0.1 * g
            w[i] = w[i] * (1 - 0.1 * 0.5) - 0.1 * math.copysign(1.0, direction) * (direction != 0)
            m[i] = 0.99 * m[i] + 0.01 * g
    assert weight.tolist() == pytest.approx(w)


@pytest.mark.parametrize("name", ["sgd", "adam", "adamw", "nadam", "radam", "rmsprop", "lion"])
def test_every_optimizer_learns_and_resumes_bit_for_bit(name: str, tmp_path: Path) -> None:
    optim = Optim(name, lr=0.05 if name == "sgd" else 0.01, weight_decay=1e-3)
    whole, parts = make_world(), make_world()
    curves = train(whole, supervised("student", HEADS, optim, 4, None), make_run())
    losses = curves[0]["terms"]["cross_entropy"]
    assert losses[-1] < losses[0]

    class Killed(Exception):
        pass

    def die(epoch: object) -> None:
        raise Killed

    with pytest.raises(Killed):
        train(parts, supervised("student", HEADS, optim, 4, None), make_run(tmp_path, die))
    resumed = make_world()
    assert train(resumed, supervised("student", HEADS, optim, 4, None), make_run(tmp_path)) == curves
    assert same(state(resumed.models["student"]), state(whole.models["student"]))


def test_an_average_follows_every_step_and_goes_on() -> None:
    world = make_world()
    student = world.models["student"].network
    average = student.head.weight.detach().clone()
    steps: list[int] = []

    def follow(optimizer: object, *_: object) -> None:
        decay = min(0.9, (1 + len(steps)) / (10 + len(steps)))
        average.lerp_(student.head.weight.detach(), 1 - decay)
        steps.append(1)

    handle = register_optimizer_step_post_hook(follow)
    try:
        train(world, averaged(supervised("student", HEADS, OPTIM, 2, None), "student", 0.9), make_run())
    finally:
        handle.remove()
    assert len(steps) == 10
    assert torch.equal(world.models["student"].network.head.weight, average)
    assert not torch.equal(student.head.weight, average)


def test_a_phase_ends_when_its_score_stands_still_and_resumes_there(tmp_path: Path) -> None:
    still = Optim("sgd", lr=1e-12)
    phases = patient(supervised("student", HEADS, still, 30, None), 3)
    curves = train(make_world(), phases, make_run(tmp_path))
    scores = curves[0]["metrics"]["accuracy"]
    assert len(scores) < 30
    assert max(scores[-3:]) <= max(scores[:-3])
    assert train(make_world(), phases, make_run(tmp_path)) == curves
    assert all(phase.watch is None or phase.watch.patience == 3 for phase in phases)


def test_half_precision_scales_gradients_and_resumes_bit_for_bit(tmp_path: Path) -> None:
    def run(folder: Path | None, epochs: int = 3, tell: object = None) -> tuple[World, list[dict[str, object]]]:
        world = make_world()
        return world, train(world, offline_phases(epochs), make_run(folder, tell, precision="f16"))

    whole, curves = run(None)
    full = make_world()
    exact = train(full, offline_phases(), make_run())
    for name, values in exact[0]["terms"].items():
        assert curves[0]["terms"][name] == pytest.approx(values, rel=0.05)  # type: ignore[index]
    assert not same(state(whole.models["student"]), state(full.models["student"]))

    def die(epoch: object) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, 3, die)
    resumed, again = run(tmp_path)
    assert again == curves
    assert same(state(resumed.models["student"]), state(whole.models["student"]))


def test_a_step_that_overflows_is_left_out_and_the_scale_falls() -> None:
    world = make_world()
    before = state(world.models["student"])
    term = Term("cross_entropy", "student", also={"target": "label"}, weight=1e9)
    phases = [Phase("overflow", (Move({"student": Optim("sgd", lr=1.0)}, (term,)),), 1)]
    train(world, phases, make_run(precision="f16"))
    after = state(world.models["student"])
    assert all(torch.isfinite(value).all() for value in after.values())
    assert torch.equal(before["head.weight"], after["head.weight"])


def test_compilation_is_decided_by_the_written_rule() -> None:
    gpu, cpu = torch.device("cuda", 0), torch.device("cpu")
    long, small = 20_000, 10_000_000
    assert choose_compile("auto", cpu, alone=True, parameters=small, steps=long) == "off"
    assert choose_compile("auto", gpu, alone=True, parameters=small, steps=100) == "off"
    assert choose_compile("auto", gpu, alone=True, parameters=100_000_000, steps=long) == "off"
    assert choose_compile("auto", gpu, alone=False, parameters=small, steps=long) == "off"
    assert choose_compile("default", cpu, alone=False, parameters=small, steps=1) == "default"


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # those of torch's compiler about itself
def test_compiled_training_gives_the_curves_of_eager_training_also_through_taps() -> None:
    terms = (
        *offline_phases()[0].moves[0].terms,
        Term("squared_error", "student.head", also={"target": "teacher.head"}, weight=0.1),
    )
    phases = [Phase("tapped", (Move({"student": OPTIM}, terms),), 2, watch=Watch("student"))]
    eager, compiled = make_world(), make_world()
    for world in (eager, compiled):
        world.models["student"].network.body[3].p = 0.0  # a compiled dropout draws other numbers
    expected = train(eager, phases, make_run())
    found = train(compiled, phases, dataclasses.replace(make_run(), compile="default"))
    for name, values in expected[0]["terms"].items():
        assert found[0]["terms"][name] == pytest.approx(values, rel=1e-3)
    assert compiled.models["student"].network._compiled_call_impl is None
