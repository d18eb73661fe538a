"""Boundaries and flows are learned in a phase of their own before the rest; the task's weight follows the knowledge."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from test_schemes import BODY
from test_trainer import HEADS, OPTIM, make_net, make_table

from edgekd.config import validate
from edgekd.data.views import Views
from edgekd.distill.schemes.choose import Cast, phases_of
from edgekd.distill.schemes.recipe import Recipe
from edgekd.distill.settings import DistillationSettings
from edgekd.train.trainer import Run, train
from edgekd.train.world import Phase, World


def settings_of(**given: Any) -> DistillationSettings:
    found, problems = validate(DistillationSettings, given)
    assert found is not None, problems
    return found


def phases(knowledge: list[Any], epochs: int = 16, **more: Any) -> list[Phase]:
    settings = settings_of(knowledge=knowledge, **more)
    recipe = Recipe(
        HEADS,
        OPTIM,
        epochs,
        task_weight=settings.task(),
        knowledge=settings.taught(),
        pairs=lambda item, student, teacher: BODY,
    )
    return phases_of(recipe, settings, Cast(("peer_1",), stages=lambda: BODY))


def terms(phase: Phase) -> list[str]:
    return [term.knowledge for move in phase.moves for term in move.terms]


def test_a_boundary_is_learned_before_everything_else() -> None:
    first, rest = phases(["boundary", "kd"])
    assert (terms(first), first.epochs, first.watch) == (["boundary"], 2, None)
    assert (terms(rest), rest.epochs) == (["cross_entropy", "kd"], 16)


def test_the_edits_come_with_the_first_part() -> None:
    _, first, rest = phases(["boundary"], scheme="self")
    assert [type(edit).__name__ for edit in first.start] == ["Copy", "Fresh"]
    assert rest.start == ()


@pytest.mark.parametrize(("given", "epochs"), [({"init_epochs": 5}, [5, 16]), ({"init_epochs": 0}, [16])])
def test_its_length_can_be_given_and_0_learns_it_beside_the_rest(given: dict[str, int], epochs: list[int]) -> None:
    assert [phase.epochs for phase in phases([{"boundary": given}])] == epochs


def test_a_phase_of_nothing_else_stays_whole() -> None:
    assert [phase.epochs for phase in phases(["boundary"], task_weight=0)] == [16]


def test_only_who_learns_from_it_learns_in_the_first_part() -> None:
    first, _ = phases([{"boundary": {"layers": [["body", "body"]]}}], scheme="online")
    assert set(first.moves[0].learn) == {"student", "peer_1"}
    assert set(terms(first)) == {"boundary"}


def test_the_student_begins_with_the_teachers_boundary_alone() -> None:
    world = World({"student": make_net(4, 0), "teacher": make_net(6, 1)}, {"train": make_table()}, HEADS)
    before = copy.deepcopy(world.models["teacher"].network.state_dict())
    run = Run(7, 16, torch.device("cpu"), "f32", Views(None, 7))
    first, rest = train(world, phases([{"boundary": {"init_epochs": 4}}, "kd"], epochs=2), run)
    assert first["terms"].keys() == {"boundary"}
    assert first["terms"]["boundary"][-1] < first["terms"]["boundary"][0]
    assert rest["terms"].keys() == {"cross_entropy", "kd"}
    after = world.models["teacher"].network.state_dict()
    assert all(torch.equal(value, after[name]) for name, value in before.items())


@pytest.mark.parametrize(
    ("knowledge", "weight"),
    [
        (None, 0.1),
        (["kd"], 0.1),
        (["logit_std"], 0.1),
        (["dkd"], 1.0),
        (["dist"], 1.0),
        (["attention"], 1.0),
        (["kd", "crd"], 0.1),
        (["kd", "dist"], 1.0),
    ],
)
def test_the_tasks_weight_is_that_of_the_papers(knowledge: list[str] | None, weight: float) -> None:
    settings = settings_of(**({} if knowledge is None else {"knowledge": knowledge}))
    assert settings.task() == weight
    assert settings_of(task_weight=0.5).task() == 0.5
    assert settings_of(scheme="online", **({} if knowledge is None else {"knowledge": knowledge})).task() == 1.0
