"""What schemes keep apart, and what they refuse: working tables, mixed samples, classes that nobody looks at."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from test_schemes import BODY, SCHEMES
from test_schemes_data import ADAM
from test_schemes_data import SCHEMES as BY_DATA
from test_trainer import HEADS, OPTIM
from torch import Tensor, nn

import edgekd.distill.knowledge  # noqa: F401  registers every knowledge
from edgekd.config import validate
from edgekd.data.settings import DataSettings
from edgekd.data.source import open_data
from edgekd.distill.knowledge_settings import KNOWLEDGES, KnowledgeSettings
from edgekd.distill.pairing import stages_of
from edgekd.distill.scheme_settings import VirtualTeacherSettings
from edgekd.distill.schemes.choose import Cast, phases_of
from edgekd.distill.schemes.cross_modal import cross_modal
from edgekd.distill.schemes.data_free import data_free
from edgekd.distill.schemes.expansion import expansion
from edgekd.distill.schemes.federated import federated
from edgekd.distill.schemes.label_free import label_free
from edgekd.distill.schemes.multi_task import multi_task
from edgekd.distill.schemes.multi_teacher import multi_teacher
from edgekd.distill.schemes.recipe import Recipe
from edgekd.distill.schemes.self_distillation import self_distillation
from edgekd.distill.settings import DistillationSettings
from edgekd.errors import ConfigError
from edgekd.stages.context import Common, Context
from edgekd.stages.distill import _batchnorms, rehearse
from edgekd.stages.networks import _match_inputs
from edgekd.stages.settings import DistillStage
from edgekd.stages.training import optim
from edgekd.store import Draft, Store
from edgekd.tasks import heads_of
from edgekd.train.knowledge import knowledge_named
from edgekd.train.settings import TrainSettings
from edgekd.train.world import Model, Phase, Term


def recipe(*names: str, **own: Any) -> Recipe:
    items = tuple(KnowledgeSettings.model_validate({name: {}}) for name in names)
    return Recipe(HEADS, OPTIM, 2, knowledge=items, pairs=lambda item, s, t: BODY, **own)


def terms(phase: Phase) -> dict[str, Term]:
    return {term.knowledge: term for move in phase.moves for term in move.terms}


def common(folder: Path, train: TrainSettings | None = None, **data: Any) -> Common:
    settings, problems = validate(DataSettings, {"digits": {}, **data})
    assert settings is not None, problems
    found = open_data(settings, base=folder, seed=0)
    return Common("p", 0, folder, heads_of("classification", ("label",)), train or TrainSettings(), {}, {}, found)


def stage(**options: Any) -> DistillStage:
    settings, problems = validate(DistillStage, {"student": "convnet", "args": {"width": 4}, **options})
    assert settings is not None, problems
    return settings


def context(folder: Path, options: DistillStage, **own: Any) -> Context:
    told: list[str] = []
    shared = common(folder, **own)
    return Context("distill", options, shared, {}, Draft(folder), folder, Store(folder / "store"), tell=told.append)


# Working tables


@pytest.mark.parametrize("name", [*SCHEMES, *BY_DATA])
def test_no_table_of_a_pipeline_file_can_have_the_name_of_one_that_a_scheme_makes(name: str) -> None:
    phases: list[Phase] = {**SCHEMES, **BY_DATA}[name]()
    edits = [edit for phase in phases for edit in phase.start if not edit.touches]  # those that make tables
    made = {table for edit in edits for table in (getattr(edit, "targets", None) or (edit.target,))}  # type: ignore[attr-defined]
    for table in made:
        assert validate(DataSettings, {"digits": {}, "tables": {table: {"digits": {}}}})[1], table
    assert {phase.data for phase in phases if phase.epochs} <= made | {"train", "unlabelled"}


@pytest.mark.parametrize(
    ("options", "rate"),
    [
        ({"scheme": "label_free"}, 0.1),
        ({"scheme": "online"}, 0.1 * 10 / 128),
        ({"scheme": "data_free", "data_free": {"rows": 32}}, 0.1 * 32 / 128),
        ({"scheme": "data_free"}, 0.1),
    ],
)
def test_the_default_rate_follows_the_table_on_which_the_student_learns(
    options: dict[str, Any], rate: float, tmp_path: Path
) -> None:
    assert optim(context(tmp_path, stage(**options), labelled=10)).lr == pytest.approx(rate)


# The validation split

LEARNS = {
    "label_free": {"transfer": "validation"},
    "expansion": {"unlabelled": "validation"},
    "adaptation": {"domain": "validation"},
    "cross_modal": {"pairs": "validation"},
    "federated": {"public": "validation"},
}


@pytest.mark.parametrize("scheme", LEARNS)
def test_nobody_learns_from_the_validation_split(scheme: str) -> None:
    settings, problems = validate(DistillationSettings, {"scheme": scheme, scheme: LEARNS[scheme]})
    assert settings is not None, problems
    with pytest.raises(ConfigError, match="learns from the validation split, by which networks are selected"):
        phases_of(recipe("kd"), settings, Cast())


def test_the_rehearsal_says_the_same_of_validation_as_the_run_and_has_its_tables(tmp_path: Path) -> None:
    from edgekd.models.settings import ModelSettings

    teacher = ModelSettings(model="convnet", args={"width": 4})
    found = common(tmp_path)
    with pytest.raises(ConfigError, match="learns from the validation split"):
        rehearse(found, stage(scheme="label_free", label_free={"transfer": "validation"}), teacher, Store(tmp_path))


# Classes that nobody looks at

BLIND: dict[str, Callable[[Recipe], list[Phase]]] = {
    "scheme label_free looks at none": lambda r: label_free(r, transfer="train"),
    "made samples have none": lambda r: data_free(r, generator=ADAM),
    "the table more has none": lambda r: cross_modal(r, pairs="more", columns=()),
}


@pytest.mark.parametrize("why", BLIND)
def test_schemes_that_look_at_no_labels_give_none_to_a_knowledge(why: str) -> None:
    found = terms(BLIND[why](recipe("kd", "crd"))[-1])
    assert found.keys() >= {"kd", "crd"} and "cross_entropy" not in found
    assert "target" not in found["crd"].also and found["crd"].also["index"]
    with pytest.raises(ConfigError, match=f"dkd needs true classes, and {why}"):
        BLIND[why](recipe("dkd"))


def test_a_table_with_labels_gives_them_and_one_with_nothing_to_learn_is_refused() -> None:
    (phase,) = cross_modal(recipe("dkd", "crd"), pairs="more", columns=("label",))
    assert all(term.also["target"] == "label" for term in terms(phase).values())
    with pytest.raises(ConfigError, match="nothing to learn from on the table more"):
        cross_modal(recipe(task_weight=1.0), pairs="more", columns=())


def test_the_options_know_which_knowledge_needs_classes() -> None:
    for name in KNOWLEDGES:
        item = KnowledgeSettings.model_validate({name: {}})
        assert item.needs_target == ("target" in knowledge_named(name).needs), name


# Mixed samples


def test_where_samples_are_mixed_no_scheme_gives_classes_to_a_knowledge() -> None:
    mixed = recipe("kd", "dkd", mixed=True)
    for make in (
        lambda: multi_task(mixed, {"logits": "teacher"}),
        lambda: [mixed.taught("student", "teacher", "offline")],
    ):
        with pytest.raises(ConfigError, match="dkd needs true classes, and samples are mixed"):
            make()
    assert "target" not in terms(multi_task(recipe("kd", mixed=True), {"logits": "teacher"})[0])["kd"].also


@pytest.mark.parametrize(
    "make",
    [
        expansion,
        lambda r: federated(r, clients=2),
        lambda r: multi_teacher(r, {"teacher": 0, "teacher_1": 0}, weights="confidence"),
        lambda r: self_distillation(r, virtual=VirtualTeacherSettings()),
    ],
)
def test_what_is_said_of_whole_samples_is_not_learned_from_mixed_ones(make: Callable[[Recipe], list[Phase]]) -> None:
    assert make(recipe("kd"))
    with pytest.raises(ConfigError, match=r"data\.augment mixes samples"):
        make(recipe("kd", mixed=True))


def test_hard_pseudo_labels_can_be_mixed() -> None:
    (phase, *_) = expansion(recipe(mixed=True), soft=False)
    assert terms(phase)["cross_entropy"].also["share"]


# Networks


class Odd(nn.Module):
    """A network with a layer that never runs and one that runs twice."""

    def __init__(self) -> None:
        super().__init__()
        self.once, self.twice, self.never = nn.BatchNorm2d(1), nn.BatchNorm2d(1), nn.BatchNorm2d(1)
        self.again = self.twice
        self.head = nn.Linear(64, 10)

    def forward(self, image: Tensor) -> Tensor:
        found: Tensor = self.head(self.again(self.twice(self.once(image))).flatten(1))
        return found


def test_statistics_are_those_of_layers_that_run_once(tmp_path: Path) -> None:
    odd = Model(Odd(), ("image",), ("logits",))
    assert stages_of(odd, {"image": torch.zeros(2, 1, 8, 8)}).once == {"once", "head"}
    told: list[str] = []
    at = dataclasses.replace(context(tmp_path, stage(scheme="data_free")), tell=told.append)
    assert _batchnorms(at, odd) == ("once",)
    assert "twice, never" in told[0]


@pytest.mark.parametrize("scheme", ["expansion", "adaptation"])
def test_weights_of_a_student_that_starts_otherwise_are_refused(scheme: str) -> None:
    settings, problems = validate(DistillStage, {"student": "convnet", "scheme": scheme, "weights": "w.pt"})
    assert settings is None
    assert problems[0].message.endswith(f"weights does nothing in scheme {scheme}")
    assert problems[0].hint.startswith("remove it: the student starts ")


def test_inputs_of_which_some_have_names_of_arguments_are_not_taken_by_position() -> None:
    class Net(nn.Module):
        def forward(self, a: Tensor, z: Tensor) -> Tensor:
            return a + z

    net = Net()
    assert _match_inputs(net, ("z", "a"), "nets:Net", chosen=True) == ("a", "z")
    assert _match_inputs(net, ("p", "q"), "nets:Net", chosen=True) == ("p", "q")
    with pytest.raises(ConfigError, match=r"nets:Net takes a, z, `inputs:` has b, a"):
        _match_inputs(net, ("b", "a"), "nets:Net", chosen=True)


# What packages offer


@pytest.mark.parametrize(("what", "name"), [("knowledge", "kd"), ("schemes", "offline")])
def test_a_built_in_name_is_listed_once_whatever_packages_offer(
    what: str, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from edgekd.cli import listing

    monkeypatch.setattr(
        "edgekd.config.entry_points.offered", lambda group: {name: "other:thing", "mine": "other:thing"}
    )
    rows = [row["name"] for row in listing.LISTS[what]()]
    assert rows.count(name) == 1 and rows.count("mine") == 1
