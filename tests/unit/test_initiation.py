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
from edgekd.distill.schemes.initiation import with_initiation
from edgekd.distill.schemes.recipe import Recipe
from edgekd.distill.settings import DistillationSettings
from edgekd.errors import ConfigError
from edgekd.train.trainer import Run, train
from edgekd.train.world import Follow, Move, Phase, Term, World


def settings_of(**given: Any) -> DistillationSettings:
    found, problems = validate(DistillationSettings, given)
    assert found is not None, problems
    return found


def phases(knowledge: list[Any], epochs: int = 16, cast: Cast | None = None, **more: Any) -> list[Phase]:
    settings = settings_of(knowledge=knowledge, **more)
    recipe = Recipe(
        HEADS,
        OPTIM,
        epochs,
        task_weight=settings.task(),
        knowledge=settings.taught(),
        pairs=lambda item, student, teacher: BODY,
    )
    return phases_of(recipe, settings, cast or Cast(("peer_1",), stages=lambda: BODY))


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


@pytest.mark.parametrize("scheme", ["data_free", "adversarial"])
@pytest.mark.parametrize("knowledge", [["boundary", "kd"], ["boundary"]])
def test_who_learns_beside_the_student_learns_in_both_parts(scheme: str, knowledge: list[str]) -> None:
    first, rest = phases(knowledge, scheme=scheme)
    (other, student), (other_then, student_then) = first.moves, rest.moves
    assert other == other_then and set(other.learn) <= {"generator", "critic"}
    assert [term.knowledge for term in student.terms] == ["boundary"]
    assert "boundary" not in terms(rest) and set(student_then.learn) == {"student"}


def test_a_generator_stays_in_a_phase_that_is_not_parted() -> None:
    (phase,) = phases(["boundary"], scheme="data_free", data_free={"disagreement": 0})
    assert [set(move.learn) for move in phase.moves] == [{"generator"}, {"student"}]


def test_its_length_is_an_eighth_of_the_phase_that_it_stands_before() -> None:
    assistants = [{"model": "resnet8", "epochs": 4}]
    found = phases(["boundary", "kd"], 80, Cast(("assistant_1",)), scheme="assistant", assistants=assistants)
    assert [phase.epochs for phase in found] == [1, 4, 10, 80]


def test_knowledges_of_several_lengths_are_learned_one_after_the_other() -> None:
    fsp: dict[str, Any] = {"fsp": {"layers": [["body", "body"], ["body", "body"]]}}
    found = phases([{"boundary": {"init_epochs": 3}}, fsp, "kd"])
    assert [(phase.name, phase.epochs, terms(phase)) for phase in found[:2]] == [
        ("offline, boundary first", 3, ["boundary"]),
        ("offline, fsp first", 2, ["fsp"]),
    ]
    assert (terms(found[2]), len(found)) == (["cross_entropy", "kd"], 3)
    assert terms(phases(["boundary", fsp, "kd"])[0]) == ["boundary", "fsp"]
    twice = [{"boundary": {"init_epochs": n, "layers": [["body", "body"]]}} for n in (1, 2)]
    with pytest.raises(ConfigError, match="boundary stands in knowledge twice, with init_epochs 1 and 2"):
        phases([*twice, "kd"])


def parted(*moves: Move) -> list[Phase]:
    knowledge = settings_of(knowledge=["boundary"]).taught()
    return with_initiation([Phase("own", moves, 16)], Recipe(HEADS, OPTIM, 16, knowledge=knowledge))


def test_no_part_has_a_move_that_does_nothing_and_who_follows_goes_on_following() -> None:
    boundary = Term("boundary", ("student.body",), ("teacher.body",))
    task = Term("cross_entropy", "student", also={"target": "label"})
    first, rest = parted(Move({"student": OPTIM}, (boundary,)), Move({"student": OPTIM}, (boundary, task)))
    assert (len(first.moves), len(rest.moves)) == (2, 1)
    follow = Move({"average": Follow("student", 0.9)})
    first, rest = parted(follow, Move({"student": OPTIM, "slow": Follow("student", 0.5)}, (boundary, task)))
    assert first.moves[0] == rest.moves[0] == follow
    assert set(first.moves[1].learn) == {"student", "slow"}


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
