"""From options to phases: a pipeline's phases are those of the scheme's function; docs/schemes.md says what is so."""

from __future__ import annotations

import copy
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from ruamel.yaml import YAML
from test_schemes import BODY
from test_trainer import HEADS, OPTIM, make_net, make_table
from torch import nn

from edgekd.config import validate
from edgekd.config.entry_points import SCHEMES as ENTRY_POINTS
from edgekd.config.entry_points import offered
from edgekd.data.views import Views
from edgekd.distill.data_scheme_settings import DataFreeSettings
from edgekd.distill.knowledge_settings import KnowledgeSettings
from edgekd.distill.scheme_settings import CollaborativeSettings, StudentFriendlySettings, VirtualTeacherSettings
from edgekd.distill.schemes.adaptation import adaptation
from edgekd.distill.schemes.adversarial import adversarial
from edgekd.distill.schemes.assistant import assistant
from edgekd.distill.schemes.choose import Cast, phases_of
from edgekd.distill.schemes.cross_modal import cross_modal
from edgekd.distill.schemes.data_free import Wishes, data_free
from edgekd.distill.schemes.expansion import expansion
from edgekd.distill.schemes.federated import federated
from edgekd.distill.schemes.label_free import label_free
from edgekd.distill.schemes.made import Critic, Generator
from edgekd.distill.schemes.multi_task import multi_task
from edgekd.distill.schemes.multi_teacher import multi_teacher
from edgekd.distill.schemes.peers import collaborative, online
from edgekd.distill.schemes.privileged import privileged
from edgekd.distill.schemes.recipe import Recipe
from edgekd.distill.schemes.self_distillation import self_distillation
from edgekd.distill.schemes.student_friendly import student_friendly
from edgekd.distill.settings import SCHEMES, DistillationSettings
from edgekd.errors import ConfigError
from edgekd.pipeline.schema import load_pipeline
from edgekd.tasks import HeadSettings, heads_of
from edgekd.train.rehearsal import rehearse_phases
from edgekd.train.world import Model, Optim, Phase, World

DOCS = (Path(__file__).parents[2] / "docs" / "schemes.md").read_text()
TWO = tuple(HeadSettings(output=name, task="classification", target=name) for name in ("kind", "size"))
ADAM = Optim("adam", lr=1e-3)
BORN = {"generations": 2, "snapshot_epochs": 1, "virtual_teacher": {}}
LISTED = [{"model": "resnet8"}, {"model": "vgg8", "epochs": 1}]
CRITIC = Critic("logits", ("body", "body"), 8)
CASES: dict[str, tuple[dict[str, Any], Callable[[Recipe], list[Phase]]]] = {
    "offline": ({}, lambda r: [r.taught("student", "teacher", "offline")]),
    "online": ({"peers": [{"student": "resnet8"}], "goes_on": "best"}, lambda r: online(r, ("peer_1",), best=True)),
    "self": (BORN, lambda r: self_distillation(r, generations=2, snapshot_epochs=1, virtual=VirtualTeacherSettings())),
    "collaborative": (
        {"collaborative": {"beta1": 3, "terms": ["task", "angle"]}},
        lambda r: collaborative(r, ("peer_1",), CollaborativeSettings(beta1=3.0, terms=("task", "angle"))),
    ),
    "multi_teacher": (
        {"teachers": LISTED, "bootstrap": False, "teacher_weights": "confidence"},
        lambda r: multi_teacher(
            r, {"teacher": 0, "teacher_1": 2, "teacher_2": 1}, bootstrap=False, weights="confidence"
        ),
    ),
    "assistant": ({"assistants": LISTED}, lambda r: assistant(r, {"assistant_1": 2, "assistant_2": 1})),
    "student_friendly": (
        {"student_friendly": {"kl_weight": 2}},
        lambda r: student_friendly(r, StudentFriendlySettings(kl_weight=2.0), BODY),
    ),
    "label_free": ({"label_free": {"transfer": "more"}}, lambda r: label_free(r, transfer="more")),
    "privileged": (
        {"privileged": {"imitation": 0.5, "temperature": 2}},
        lambda r: privileged(r, imitation=0.5, temperature=2.0),
    ),
    "cross_modal": ({"cross_modal": {"pairs": "both"}}, lambda r: cross_modal(r, pairs="both")),
    "expansion": (
        {"expansion": {"rounds": 2, "unlabelled": "more", "confident": 0.5, "soft": False}},
        lambda r: expansion(r, rounds=2, unlabelled="more", confident=0.5, soft=False),
    ),
    "adaptation": (
        {"adaptation": {"domain": "sketches", "confident": 0.8, "rounds": 2}},
        lambda r: adaptation(r, domain="sketches", confident=0.8, rounds=2),
    ),
    "adversarial": (
        {"adversarial": {"weight": 0.2, "layers": ["body", "body"], "width": 8}},
        lambda r: adversarial(r, critic=ADAM, layers=("body", "body"), weight=0.2, start=(CRITIC,)),
    ),
    "multi_task": (
        {"multi_task": {"teachers": {"kind": {"model": "vgg8"}, "size": {"model": "vgg8", "weights": "w.pt"}}}},
        lambda r: multi_task(r, {"kind": "teacher_kind", "size": "teacher_size"}, {"kind": 2, "size": 0}),
    ),
    "federated": (
        {"federated": {"clients": 3, "rounds": 2, "public": "more", "concentration": None, "client_epochs": 4}},
        lambda r: federated(r, clients=3, rounds=2, public="more", client_epochs=4, least=8),
    ),
    "data_free": (
        {"data_free": {"noise": 7, "rows": 64, "width": 4, "features": "head:in", "disagreement": 0.5}},
        lambda r: data_free(
            r,
            generator=ADAM,
            noise=(7,),
            rows=64,
            wishes=Wishes(features="head:in", batchnorms=("body.1",), disagreement=0.5),
            start=(Generator(7, 4),),
        ),
    ),
}


def read(**options: Any) -> DistillationSettings:
    settings, problems = validate(DistillationSettings, options)
    assert settings is not None, problems
    return settings


def test_every_scheme_is_looked_at_here() -> None:
    assert CASES.keys() == SCHEMES.keys()


@pytest.mark.parametrize("scheme", CASES)
def test_the_phases_of_a_pipeline_file_are_those_of_the_schemes_function(scheme: str) -> None:
    options, make = CASES[scheme]
    settings = read(scheme=scheme, **options)
    heads = TWO if scheme == "multi_task" else HEADS
    recipe = Recipe(heads, OPTIM, 2, task_weight=settings.task(), knowledge=settings.taught())
    alike = read_network("resnet8")
    cast = Cast([*settings.beside(alike, alike)], True, lambda: BODY, lambda: ("body.1",))
    assert phases_of(recipe, settings, cast) == make(recipe)


def read_network(name: str) -> Any:
    from edgekd.models.settings import ModelSettings

    return ModelSettings(model=name)


def test_privileged_takes_knowledge_and_task_weight_in_place_of_its_own() -> None:
    settings = read(scheme="privileged", task_weight=0.7)
    recipe = Recipe(HEADS, OPTIM, 2, task_weight=settings.task())
    assert phases_of(recipe, settings, Cast()) == privileged(recipe)


def test_clients_of_their_own_keep_their_weights() -> None:
    settings = read(scheme="federated", federated={"clients": LISTED[:1] * 2, "rounds": 1, "least": 1})
    assert list(settings.beside(read_network("vgg8"), None)) == ["client_0", "client_1"]
    recipe = Recipe(HEADS, OPTIM, 2)
    expected = federated(recipe, clients=2, rounds=1, concentration=0.1, share_weights=False)
    assert phases_of(recipe, settings, Cast()) == expected


@pytest.mark.parametrize(
    ("scheme", "options", "tables", "reads_teacher"),
    [
        ("offline", {}, (), True),
        ("label_free", {}, ("unlabelled",), True),
        ("label_free", {"label_free": {"transfer": "train"}}, (), True),
        ("privileged", {}, (), True),
        ("cross_modal", {}, (), True),
        ("cross_modal", {"cross_modal": {"pairs": "both"}}, ("both",), True),
        ("expansion", {}, ("unlabelled",), False),
        ("adaptation", {}, ("target",), False),
        ("federated", {}, ("public",), False),
        ("data_free", {}, (), False),
    ],
)
def test_tables_and_cached_teachers_follow_the_options(
    scheme: str, options: dict[str, Any], tables: tuple[str, ...], reads_teacher: bool
) -> None:
    settings = read(scheme=scheme, **options)
    assert settings.tables_used == tables
    assert settings.reads_teacher == reads_teacher


@pytest.mark.parametrize("scheme", ["label_free", "cross_modal", "data_free"])
def test_schemes_without_labels_have_no_task_weight_by_default(scheme: str) -> None:
    assert read(scheme=scheme).task() == 0


def test_defaults_of_the_generator_are_those_of_the_function_but_for_disagreement() -> None:
    ours, theirs = DataFreeSettings(), Wishes()
    for name in ("one_hot", "entropy", "activation", "features", "statistics"):
        assert getattr(ours, name) == getattr(theirs, name)


def test_schemes_of_classes_say_what_they_miss_without_any() -> None:
    recipe = Recipe(heads_of("regression", ("angle",)), OPTIM, 1)
    for make in (adaptation, lambda plan: expansion(plan, confident=0.5)):
        with pytest.raises(ConfigError, match="there is no class to be sure of"):
            make(recipe)
    assert adaptation(recipe, confident=None)
    with pytest.raises(ConfigError, match="rows cannot be dealt out by class"):
        federated(recipe, concentration=0.1)
    assert federated(recipe)


def test_specialists_teach_heads_alone() -> None:
    hint = KnowledgeSettings.model_validate({"hint": {"layers": ["a", "b"]}})
    with pytest.raises(ConfigError, match="teaches heads, and hint compares layers"):
        multi_task(Recipe(TWO, OPTIM, 1, knowledge=(hint,)), {"kind": "a", "size": "b"})


# ---- networks that schemes make


def world(shape: tuple[int, ...] = (1, 5, 5)) -> World:
    table = make_table()
    table.inputs["image"] = torch.randn(70, *shape)
    return World({"teacher": make_net(8, 1), "student": make_net(4, 2)}, {"train": table}, HEADS)


@pytest.mark.parametrize("shape", [(1, 5, 5), (3, 8, 9), (6,), (2, 7)])
def test_a_generator_makes_normalised_inputs_of_the_students_shape(shape: tuple[int, ...]) -> None:
    made = world(shape)
    Generator(7, 4)(made, 3)
    network = made.models["generator"].network
    x = network(torch.randn(64, 7)).detach()
    assert x.shape == (64, *shape)
    assert float(x.mean().abs()) < 1e-3
    assert abs(float(x.std()) - 1) < 0.05
    again = world(shape)
    Generator(7, 4)(again, 3)
    states = [one.models["generator"].network.state_dict() for one in (made, again)]
    assert all(
        torch.equal(value, states[1][name])
        for name, value in states[0].items()
        if "running" not in name and "num" not in name
    )


def test_a_critic_sees_logits_or_the_mean_of_maps() -> None:
    for critic, width in ((Critic("logits"), 3), (Critic("logits", ("head", "head")), 3)):
        made = world()
        before = copy.deepcopy([model.network.state_dict() for model in made.models.values()])
        critic(made, 1)
        after = [made.models[name].network.state_dict() for name in ("teacher", "student")]
        assert all(torch.equal(v, old[k]) for new, old in zip(after, before, strict=True) for k, v in new.items())
        assert made.models["critic"].network(torch.randn(5, width)).shape == (5, 1)
        assert made.models["critic"].network(torch.randn(5, width, 4, 4)).shape == (5, 1)
    with pytest.raises(ConfigError, match="one critic cannot see 4 channels of the student and 8"):
        Critic("logits", ("body", "body"))(world(), 1)


def test_a_rehearsal_finds_what_is_missing_and_changes_no_network() -> None:
    recipe = Recipe(HEADS, OPTIM, 1)
    views = Views(None, 0)
    with pytest.raises(ConfigError, match="there is no table 'unlabelled'"):
        rehearse_phases(world(), label_free(recipe), views, 0)
    blind = world()
    blind.tables["train"].targets.clear()  # type: ignore[attr-defined]
    with pytest.raises(ConfigError, match="a term names 'label'"):
        rehearse_phases(blind, [recipe.taught("student", "teacher", "offline")], views, 0)
    other = world()
    other.models["teacher"].inputs = ("sound",)
    with pytest.raises(ConfigError, match="teacher reads sound, which the data has not"):
        rehearse_phases(other, [recipe.taught("student", "teacher", "offline")], views, 0)
    fine = world()
    before = {name: copy.deepcopy(model.network.state_dict()) for name, model in fine.models.items()}
    rehearse_phases(fine, online(recipe, ("teacher",), best=True), views, 0)
    assert all(torch.equal(v, before[n][k]) for n in before for k, v in fine.models[n].network.state_dict().items())


def test_networks_that_differ_in_inputs_cannot_share_a_generator() -> None:
    made = world()
    made.models["teacher"] = Model(nn.Linear(2, 3), ("sound",), ("logits",))
    with pytest.raises(ConfigError, match="the student sees image, the teacher sound"):
        Generator()(made, 0)


# ---- the page


EXAMPLES = [
    re.sub(r"^    ", "", block, flags=re.M)
    for block in re.findall(r"(?:^    .*\n)+", DOCS, flags=re.M)
    if re.match(r"    (- distill|- teacher|data:|task:)", block)
]


def test_the_page_has_an_example_of_every_scheme_that_has_options() -> None:
    named = set(re.findall(r"scheme: (\w+)", "".join(EXAMPLES)))
    assert {scheme for scheme, facts in SCHEMES.items() if facts.options} - named <= {
        "collaborative",
        "student_friendly",
    }
    assert set(re.findall(r"^\| `(\w+)` \|", DOCS, flags=re.M)) == SCHEMES.keys()


@pytest.mark.parametrize("example", EXAMPLES)
def test_examples_on_the_page_are_valid(example: str, tmp_path: Path) -> None:
    text = example
    if "stages:" not in text:
        body = re.sub(r"^", "  ", text.strip(), flags=re.M)
        teacher = "" if "- teacher" in text else "  - teacher: {model: resnet8}\n"
        text = f"stages:\n{teacher}{body}\n"
    listed = YAML(typ="safe").load(text)
    head = "" if "data" in listed else "data: {digits: {}}\n"
    path = tmp_path / "p.yaml"
    path.write_text(f"name: p\n{head}{text}")
    assert load_pipeline(path).stages


def test_no_package_of_the_tests_offers_schemes() -> None:
    assert offered(ENTRY_POINTS) == {}
