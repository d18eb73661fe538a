"""What is watched while networks learn: means of terms, terms that outweigh the others, the first that is lost."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from test_trainer import HEADS, OPTIM, make_net, make_run, make_table
from torch import Tensor

from edgekd.data.table import Table
from edgekd.errors import TrainingError
from edgekd.train import knowledge
from edgekd.train.balance import unequal
from edgekd.train.distributed import Ranks
from edgekd.train.knowledge import Knowledge
from edgekd.train.named import named_terms
from edgekd.train.tally import Tally
from edgekd.train.trainer import Epoch, train
from edgekd.train.world import Move, Optim, Phase, Term, World

STILL = Optim("sgd", lr=1e-6, warmup=0.0)
CE = Term("cross_entropy", "student", also={"target": "label"})
KD = Term("kd", "student", "teacher")
LAYER = Term("mse_logits", "student.head", "teacher.head", label="head")


@pytest.fixture
def known(monkeypatch: pytest.MonkeyPatch) -> Callable[[str, Callable[..., Tensor]], None]:
    """Make a knowledge known for one test."""

    def add(name: str, function: Callable[..., Tensor]) -> None:
        monkeypatch.setitem(knowledge._TABLE, name, Knowledge(name, function))

    return add


def world() -> World:
    return World({"teacher": make_net(8, 1), "student": make_net(4, 2)}, {"train": make_table()}, HEADS)


def learn(
    *terms: Term, epochs: int = 1, folder: Path | None = None, moves: Sequence[Move] = (), **more: Any
) -> tuple[list[dict[str, Any]], list[str]]:
    """Curves and warnings of one phase of 5 steps an epoch in which the student learns."""
    said: list[str] = []
    moves = moves or (Move({"student": STILL}, terms),)
    run = replace(make_run(folder), warn=said.append, **more)
    return train(world(), [Phase("p", tuple(moves), epochs)], run), said


def test_a_term_that_outweighs_the_others_is_warned_of_once_with_its_layer() -> None:
    curves, said = learn(CE, KD, replace(LAYER, weight=1e6), epochs=3)
    assert len(said) == 1
    for part in ("'head' of student (student.head against teacher.head)", "phase p, epoch 1", "x weight 1e+06"):
        assert part in said[0]
    assert "cross_entropy 1" in said[0]
    assert "lower the `weight` of mse_logits" in said[0]
    assert curves[0]["warnings"] == [{"term": "head", "epoch": 1, "text": said[0]}]


def test_layers_of_one_knowledge_do_not_hide_each_other() -> None:
    """Alike among themselves, so that none is a hundred times the others; together they drown the rest."""
    both = [replace(LAYER, weight=1e6), replace(LAYER, weight=8e5, label="head again")]
    _, said = learn(CE, *both)
    assert len(said) == 1
    assert "'head' of student" in said[0]
    assert "beside cross_entropy" in said[0]
    assert learn(*both)[1] == []


def test_the_tasks_own_loss_is_warned_of_with_the_option_that_weighs_it() -> None:
    _, (said,) = learn(replace(CE, weight=1e5), KD, LAYER)
    assert "'cross_entropy' of student (student) is" in said
    assert "lower `task_weight`" in said


def test_terms_of_like_size_and_a_term_alone_are_not_warned_of() -> None:
    curves, said = learn(CE, KD, LAYER, epochs=2)
    assert (said, "warnings" in curves[0]) == ([], False)
    assert learn(replace(CE, weight=1e6))[1] == []


def test_a_ramped_term_is_judged_by_the_weight_that_it_has() -> None:
    curves, said = learn(CE, replace(LAYER, weight=1e6, ramp=(1.0, 3.0)), epochs=4)
    assert curves[0]["weights"] == {"cross_entropy": [1.0] * 4, "head": [0.0, 2e5, 7e5, 1e6]}
    assert len(said) == 1
    assert "epoch 2" in said[0]
    assert "x weight 2e+05" in said[0]


def test_terms_of_one_learner_are_compared_with_each_other_only() -> None:
    peer_ce = replace(CE, student="teacher", weight=1e6, label="teacher.cross_entropy")
    peer_kd = replace(KD, student="teacher", teacher="student", label="teacher.kd")
    both = {"student": STILL, "teacher": STILL}
    assert learn(moves=[Move(both, (CE, KD, peer_ce))])[1] == []
    _, (said,) = learn(moves=[Move(both, (CE, KD, peer_ce, peer_kd))])
    assert "'teacher.cross_entropy' of teacher (teacher)" in said
    assert "beside teacher.kd" in said


def test_a_loss_that_has_nothing_left_to_learn_is_not_counted() -> None:
    terms = named_terms(Phase("p", (Move({"student": STILL}, (CE, KD, LAYER)),)))
    means = {"cross_entropy": 1.0, "kd": 0.0, "head": 0.02}
    assert list(unequal(terms, means, dict.fromkeys(means, 1.0))) == []
    assert [x.item.name for x in unequal(terms, means | {"head": -0.009}, dict.fromkeys(means, 1.0))] == [
        "cross_entropy"
    ]


def test_a_term_that_was_learned_away_accuses_nobody() -> None:
    terms = named_terms(Phase("p", (Move({"student": STILL}, (CE, LAYER)),)))
    means, weights = {"cross_entropy": 0.001, "head": 0.5}, {"cross_entropy": 1.0, "head": 1.0}
    assert [x.item.name for x in unequal(terms, means, weights)] == ["head"]
    assert list(unequal(terms, means, weights, {"cross_entropy": 2.0, "head": 9.0})) == []
    (still,) = unequal(terms, means | {"head": 2000.0}, weights, {"cross_entropy": 2.0, "head": 9.0})
    assert (still.item.name, still.times, dict(still.others)) == ("head", 1000.0, {"cross_entropy": 2.0})


def test_the_square_of_a_temperature_is_not_taken_for_weight() -> None:
    hot = replace(KD, settings={"temperature": 20.0}, label="hot")
    for kd, at in ((KD, 4), (hot, 20)):
        terms = named_terms(Phase("p", (Move({"student": STILL}, (CE, kd)),)))
        weights = {"cross_entropy": 1.0, kd.name: 1.0}
        assert list(unequal(terms, {"cross_entropy": 1.0, kd.name: 99.0 * at}, weights)) == []
        assert len(list(unequal(terms, {"cross_entropy": 1.0, kd.name: 101.0 * at}, weights))) == 1


def taught(gap: float, planted: float = 0.0) -> list[str]:
    """Warnings of the default recipe over 40 epochs, under a teacher that knows all and tells it by logits so apart."""
    table = make_table()
    with torch.no_grad():
        sure = {"teacher": gap * torch.eye(3)[table.targets["label"]]}
    table = Table(table.inputs, {**table.targets, **sure}, table.ids)
    made = World({"student": make_net(8, 2)}, {"train": table}, HEADS)
    terms = [replace(CE, weight=0.1), Term("kd", "student", "teacher", 0.9)]
    if planted:
        terms.append(Term("mse_logits", "student.head", "teacher", planted, label="planted"))
    said: list[str] = []
    train(
        made,
        [Phase("p", (Move({"student": replace(OPTIM, clip=1.0)}, tuple(terms)),), 40)],
        replace(make_run(), warn=said.append),
    )
    return said


@pytest.mark.parametrize("gap", [5.0, 12.0, 50.0])
def test_the_default_recipe_is_not_warned_of_however_sure_the_teacher_is(gap: float) -> None:
    assert taught(gap) == []


def test_a_weight_that_drowns_the_default_recipe_is_warned_of() -> None:
    (said,) = taught(12.0, planted=1e6)
    assert "'planted' of student (student.head against teacher)" in said


class Killed(Exception):
    """Stands for a process that dies right after an epoch."""


def test_a_warning_is_given_once_also_when_training_was_killed_in_between(tmp_path: Path) -> None:
    whole, _ = learn(CE, replace(LAYER, weight=1e6), epochs=3)

    def die(epoch: Epoch) -> None:
        raise Killed

    with pytest.raises(Killed):
        learn(CE, replace(LAYER, weight=1e6), epochs=3, folder=tmp_path, tell=die)
    curves, said = learn(CE, replace(LAYER, weight=1e6), epochs=3, folder=tmp_path)
    assert curves == whole
    assert said == []


def test_means_are_over_the_steps_on_which_a_term_acts(known: Callable[..., None]) -> None:
    known("seven", lambda student, teacher: student.sum() * 0 + 7)
    rare, often = Term("seven", "student"), Term("seven", "student", label="often")
    shown: list[Epoch] = []
    moves = [Move({"student": STILL}, (rare,), every=2), Move({"student": STILL}, (often,))]
    curves, _ = learn(moves=moves, tell=shown.append)
    assert curves[0]["terms"] == {"seven": [7.0], "often": [7.0]}
    assert shown[0].loss == pytest.approx(14.0)
    tally = Tally(named_terms(Phase("p", tuple(moves))), 0, 5, 1, torch.device("cpu"), Ranks())
    for step in range(4):
        for number in (0, 1) if step % 2 == 0 else (1,):
            tally.add(number, [torch.tensor(7.0)], 1.0)
    assert tally.seen(4) == {"seven": 7.0, "often": 7.0}


def test_terms_of_one_name_have_curves_of_their_own() -> None:
    curves, _ = learn(KD, replace(KD, teacher="student"), CE)
    assert list(curves[0]["terms"]) == ["kd", "kd 2", "cross_entropy"]
    assert curves[0]["terms"]["kd 2"] == pytest.approx([0.0], abs=1e-6)


@pytest.mark.parametrize(("accumulate", "every", "step"), [(1, 1, 3), (2, 1, 3), (1, 2, 5)])
def test_of_three_terms_the_one_that_is_lost_first_is_named(
    known: Callable[..., None], accumulate: int, every: int, step: int
) -> None:
    calls = itertools.count(1)

    def poison(student: Tensor, teacher: Tensor) -> Tensor:
        lost = next(calls) > 2 * accumulate  # in the third step it acts; all weights are lost with it
        return student.mean() * (float("nan") if lost else 1.0)

    known("poison", poison)
    terms = (CE, Term("poison", "student.body", "teacher.body", 0.5), KD)
    with pytest.raises(TrainingError) as caught:
        learn(moves=[Move({"student": STILL}, terms, every)], epochs=2, accumulate=accumulate)
    assert caught.value.message == (
        f"the loss 'poison' is not finite (phase p, epoch 1, step {step}; student.body against teacher.body), "
        "while cross_entropy, kd still were"
    )
    assert "lower the weight of poison (now 0.5)" in str(caught.value.hint)


def test_terms_that_are_lost_together_point_to_what_they_share() -> None:
    hot = Optim("sgd", lr=1e30, warmup=0.0)
    with pytest.raises(TrainingError) as caught:
        learn(moves=[Move({"student": hot}, (CE, KD))])
    assert caught.value.message.startswith("the losses 'cross_entropy', 'kd' are not finite (phase p, epoch 1, step ")
    assert "all in one step: weights of student or the batch were lost before" in caught.value.message
    assert "`lr`" in str(caught.value.hint)


def test_lost_weights_are_told_with_the_term_that_outweighed_the_others() -> None:
    fast = Optim("sgd", lr=0.5, warmup=0.0)
    with pytest.raises(TrainingError) as caught:
        learn(moves=[Move({"student": fast}, (CE, KD, replace(LAYER, weight=1e20)))], epochs=5)
    assert "until then 'head' (student.head against teacher.head) was " in caught.value.message
    assert "lower the weight of head (now 1e+20)" in str(caught.value.hint)


def test_a_guide_with_lost_weights_is_named() -> None:
    broken = world()
    with torch.no_grad():
        broken.models["teacher"].network.head.bias[0] = float("nan")  # type: ignore[union-attr,index]
    with pytest.raises(TrainingError, match=r"'kd' is not finite .*: teacher has weights that are not finite"):
        train(broken, [Phase("p", (Move({"student": STILL}, (CE, KD)),), 1)], make_run())


class Two(Ranks):
    """Two processes that see the same, of which the other lost its second term one step earlier."""

    def sum(self, values: Tensor) -> Tensor:
        return values * 2

    def least(self, values: Tensor) -> Tensor:
        return values - torch.tensor([0, 1, 0])


def test_of_several_processes_the_first_loss_counts() -> None:
    terms = named_terms(Phase("p", (Move({"student": STILL}, (CE, KD, LAYER)),)))
    tally = Tally(terms, 0, 5, 1, torch.device("cpu"), Two(0, 2))
    good, lost = [torch.tensor(1.0)] * 3, [torch.tensor(float("inf"))] * 3
    for losses in (good, good, good, lost):
        tally.add(0, losses, 0.5)
    with pytest.raises(TrainingError, match=r"'kd' is not finite \(phase p, epoch 1, step 3; .*cross_entropy, head"):
        tally.means(4, world(), (), "p")


def test_a_weight_that_makes_all_losses_diverge_is_still_named(known: Callable[..., None]) -> None:
    """In the mean of the epoch the others are as large: the first step tells."""
    state = {"step": 0}

    def grows(student: Tensor, teacher: Tensor | None = None) -> Tensor:
        state["step"] += 1
        return student.square().mean() * 0 + 10.0 ** min(state["step"] * 2 - 2, 8)

    known("grows", grows)
    _, said = learn(replace(LAYER, weight=1e4), Term("grows", "student"))
    assert any("'head' of student" in text for text in said)
