"""Mistakes in a scheme or a knowledge of one's own: known before anything is trained, one line, with their place."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from test_trainer import HEADS, OPTIM, make_net, make_run, make_table, same, state

from edgekd.data.views import Views
from edgekd.errors import ConfigError, TrainingError
from edgekd.models import imports
from edgekd.train.checkpoint import Progress
from edgekd.train.distributed import Ranks
from edgekd.train.phase import PhaseRun
from edgekd.train.rehearsal import rehearse_phases
from edgekd.train.trainer import train
from edgekd.train.world import Copy, Follow, Move, Phase, Term, Watch, World

CODE = """
import torch
from torch import nn
from edgekd.extend import knowledge

def rows(student, teacher):
    return (student - teacher).square().mean(1)

def number(student, teacher):
    return 1.0

def bent(student, teacher):
    return student.view(7, 11).mean()

class Wrong(nn.Module):
    def __init__(self, student, teacher, *, samples, width=2):
        super().__init__()
        self.map = nn.Linear(student[0] + 1, width)

    def forward(self, student, teacher):
        return self.map(student).mean()

class Broken(Wrong):
    def __init__(self, student, teacher, *, samples):
        raise KeyError("no")

@knowledge(adapter=Wrong)
def adapted(student, teacher):
    return student.mean()

@knowledge(adapter=Broken)
def unmade(student, teacher):
    return student.mean()

def noisy(student, teacher):
    return (student * torch.rand(())).mean()
"""


@pytest.fixture(autouse=True)
def own_code(tmp_path: Path) -> None:
    (tmp_path / "ownlosses.py").write_text(CODE)
    imports.put_first(tmp_path)


def world() -> World:
    return World({"teacher": make_net(8, 1), "student": make_net(4, 2)}, {"train": make_table()}, HEADS)


def of(*terms: Term, learner: str = "student", **more: Any) -> Phase:
    return Phase("p", (Move({learner: OPTIM}, terms),), 1, **more)


def own(name: str, **more: Any) -> Term:
    return Term(f"ownlosses:{name}", "student", "teacher", **more)


KD = Term("kd", "student", "teacher")
TERMS = {
    "rows": (own("rows"), r"'ownlosses:rows' gave a tensor \(2,\) of float32, not one real number", "mean"),
    "number": (own("number"), "gave no tensor but float", "without axes"),
    "bent": (own("bent"), r"\(student, teacher\) failed: ownlosses.py:13: RuntimeError: shape", "a knowledge takes"),
    "adapter raises": (own("adapted"), "failed: ownlosses.py:21: RuntimeError: mat1", "a knowledge takes"),
    "adapter is not made": (own("unmade"), "failed: ownlosses.py:25: KeyError: 'no'", "a knowledge takes"),
}


@pytest.mark.parametrize("name", TERMS)
def test_a_knowledge_that_fails_is_one_line_before_and_while_training(name: str) -> None:
    term, message, hint = TERMS[name]
    with pytest.raises(ConfigError, match=message) as before:
        rehearse_phases(world(), [of(term)], Views(None, 0), 0)
    assert before.value.message.startswith("phase p: ")
    with pytest.raises(TrainingError, match=message.replace(r"\(2,\)", r"\(14,\)")) as during:
        train(world(), [of(term)], make_run())
    assert during.value.exit_code == 4
    assert all(hint in str(found.value.hint) for found in (before, during))


SLIPS: dict[str, tuple[Phase, str, str]] = {
    "setting": (of(replace(KD, settings={"tempratur": 4})), "'kd' of phase 'p' .*'tempratur'", "temperature"),
    "setting of an adapter": (of(own("adapted", settings={"wdth": 4})), "unexpected keyword.*'wdth'", "width"),
    "further argument": (
        of(replace(KD, also={"targt": "label"})),
        "unexpected keyword argument 'targt'",
        "temperature",
    ),
    "nothing where it is needed": (of(Term("cross_entropy", "student")), "missing a required.*'target'", "target"),
    "knowledge": (of(Term("atention", "student.body", "teacher.body")), "unknown knowledge 'atention'", "attention"),
    "learner": (of(KD, learner="studnt"), "'p' names the model 'studnt'", "student"),
    "watched": (of(KD, watch=Watch("studnt")), "'p' names the model 'studnt'", "student"),
    "followed": (Phase("p", (Move({"student": Follow("teachr")}),), 1), "'p' names the model 'teachr'", "teacher"),
    "copied": (of(KD, start=(Copy("studnt", "elder"),)), "there is no model 'studnt'", "student"),
    "sizes": (of(Term("attention", "student.body", "teacher")), "attention", ""),
}


@pytest.mark.parametrize("name", SLIPS)
def test_slips_in_a_scheme_are_known_before_anything_is_trained(name: str) -> None:
    phase, message, hint = SLIPS[name]
    with pytest.raises(ConfigError, match=message) as caught:
        rehearse_phases(world(), [phase], Views(None, 0), 0)
    assert hint in str(caught.value.hint)


def test_a_rehearsal_changes_no_weight_and_draws_nothing() -> None:
    fine = world()
    before = {name: state(model) for name, model in fine.models.items()}
    torch.manual_seed(5)
    drawn = torch.rand(3)
    torch.manual_seed(5)
    hint = Term("hint", "student.body", "teacher.body")
    rehearse_phases(fine, [of(KD, hint, own("noisy")), of(KD, hint, data="train")], Views(None, 0), 0)
    assert torch.equal(torch.rand(3), drawn)
    assert all(same(before[name], state(fine.models[name])) for name in before)
    assert all(fine.models[name].network.training for name in before)
    assert not fine.models["student"].network.body._forward_hooks  # type: ignore[union-attr]


class Three(Ranks):
    """Three processes, of which nothing is asked."""

    def wrap(self, module: torch.nn.Module, *, unused: bool) -> torch.nn.Module:
        raise AssertionError("there is nothing to share")


def test_a_move_without_terms_is_not_differentiated_by_several_processes() -> None:
    run = replace(make_run(), ranks=Three(0, 3))
    phase = Phase("p", (Move({"student": OPTIM}), Move({"teacher": OPTIM}, (KD,))), 1)
    running = PhaseRun(world(), phase, 0, run, Progress(), frozenset())
    running._objective(phase.moves[0], None)  # type: ignore[arg-type]


def test_a_knowledge_that_asks_for_what_nobody_gives_is_a_mistake() -> None:
    from edgekd.extend import knowledge as stated

    with pytest.raises(ConfigError, match="asks for 'targets', which nobody gives") as caught:
        stated(needs=("targets",))(lambda student, teacher: student.mean())  # type: ignore[arg-type]
    assert "target" in caught.value.hint
