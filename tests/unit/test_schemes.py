"""Schemes as phase lists: equal to hand-written loops, frozen guides, resume in the middle, terms by NumPy."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hand_loop import lesson
from test_trainer import HEADS, OPTIM, Killed, make_net, make_run, make_table, same, state
from torch import Tensor, nn

from edgekd.distill.knowledge import kd, rkd
from edgekd.distill.knowledge_settings import KnowledgeSettings
from edgekd.distill.scheme_settings import CollaborativeSettings, StudentFriendlySettings, VirtualTeacherSettings
from edgekd.distill.schemes.assistant import assistant
from edgekd.distill.schemes.multi_teacher import multi_teacher
from edgekd.distill.schemes.peers import collaborative, online
from edgekd.distill.schemes.recipe import Recipe
from edgekd.distill.schemes.self_distillation import self_distillation
from edgekd.distill.schemes.student_friendly import student_friendly
from edgekd.errors import ConfigError
from edgekd.tasks import heads_of
from edgekd.train.practice import averaged
from edgekd.train.trainer import Epoch, train
from edgekd.train.world import Phase, Term, World

KD1 = (KnowledgeSettings.model_validate_json('{"kd": {"temperature": 1, "weight": 1}}'),)
BODY = (("body", "body"),)


def recipe(epochs: int = 2, **settings: Any) -> Recipe:
    return Recipe(HEADS, OPTIM, epochs, **settings)


def mutual(epochs: int = 2, **settings: Any) -> Recipe:
    return recipe(epochs, task_weight=1.0, knowledge=KD1, **settings)


def make_world() -> World:
    widths = {"teacher": 8, "student": 4, "peer_1": 6, "peer_2": 4, "assistant_1": 6, "assistant_2": 5}
    widths |= {"teacher_1": 8, "teacher_2": 8}
    tables = {"train": make_table(), "validation": make_table(40)}
    return World({name: make_net(width, seed) for seed, (name, width) in enumerate(widths.items())}, tables, HEADS)


SCHEMES: dict[str, Callable[[], list[Phase]]] = {
    "online": lambda: online(mutual(), ("peer_1", "peer_2"), best=True),
    "collaborative": lambda: collaborative(recipe(), ("peer_1",), CollaborativeSettings(alone_epochs=1), best=True),
    "self": lambda: self_distillation(
        recipe(keep=True), generations=2, snapshot_epochs=1, virtual=VirtualTeacherSettings()
    ),
    "multi_teacher": lambda: multi_teacher(recipe(), {"teacher": 0, "teacher_1": 1, "teacher_2": 1}),
    "assistant": lambda: assistant(recipe(keep=True), {"assistant_1": 1, "assistant_2": 2}),
    "student_friendly": lambda: student_friendly(recipe(), StudentFriendlySettings(), BODY),
}


def epochs_of(phases: list[Phase]) -> int:
    return sum(phase.epochs for phase in phases)


def killed(stop_after: int, make: Callable[[], World], phases: list[Phase], folder: Path) -> None:
    """Train until so many epochs are done, then die; the folder keeps the checkpoint."""
    left = stop_after

    def die(epoch: Epoch) -> None:
        nonlocal left
        left -= 1
        if left == 0:
            raise Killed

    folder.mkdir(exist_ok=True)
    with pytest.raises(Killed):
        train(make(), phases, make_run(folder, die))


def terms_of(phase: Phase) -> dict[str, Term]:
    return {term.name: term for move in phase.moves for term in move.terms}


@pytest.mark.parametrize("scheme", SCHEMES)
def test_names_of_terms_are_unique_in_every_phase(scheme: str) -> None:
    for phase in SCHEMES[scheme]():
        assert len(terms_of(phase)) == sum(len(move.terms) for move in phase.moves)


@pytest.mark.parametrize("scheme", SCHEMES)
def test_who_does_not_learn_keeps_every_byte(scheme: str) -> None:
    phases = SCHEMES[scheme]()
    before = {name: state(model) for name, model in make_world().models.items()}
    for count, phase in enumerate(phases, start=1):
        world = make_world()
        train(world, phases[:count], make_run())
        changed = phase.learners().union(*(edit.touches for edit in phase.start))
        after = {name: state(model) for name, model in world.models.items()}
        frozen = before.keys() - changed
        assert all(same(before[name], after[name]) for name in frozen)
        assert all(not same(before[name], after[name]) for name in phase.learners() & before.keys())
        assert all(p.grad is None for n in frozen - phases_learners(phases[:count]) for p in gradients(world, n))
        before = after


def phases_learners(phases: list[Phase]) -> set[str]:
    return set().union(*(phase.learners() for phase in phases))


def gradients(world: World, name: str) -> list[nn.Parameter]:
    return list(world.models[name].network.parameters())


@pytest.mark.parametrize("scheme", SCHEMES)
def test_a_killed_run_goes_on_where_it_stopped_and_ends_with_the_same_bytes(scheme: str, tmp_path: Path) -> None:
    phases = SCHEMES[scheme]()
    whole = make_world()
    curves = train(whole, phases, make_run())
    total = epochs_of(phases)
    for stop_after in range(1, total):
        folder = tmp_path / str(stop_after)
        killed(stop_after, make_world, phases, folder)
        resumed, ran = make_world(), []
        assert train(resumed, phases, make_run(folder, ran.append)) == curves
        assert len(ran) == total - stop_after
        assert resumed.models.keys() == whole.models.keys()
        for name, model in whole.models.items():
            assert same(state(model), state(resumed.models[name])), (name, stop_after)


# ---- by hand


def by_hand(
    models: list[nn.Module], index: int, loss: Callable[[list[Tensor], Tensor, Tensor], Tensor], epochs: int
) -> None:
    """Several networks learn jointly, each asked once in every step."""
    lesson(models, index, lambda x, y: loss([model(x) for model in models], x, y), epochs)


def test_mutual_learning_equals_a_hand_written_loop_bit_for_bit() -> None:
    world, hand = make_world(), make_world()
    train(world, online(mutual(3), ("peer_1",)), make_run())

    def loss(z: list[Tensor], x: Tensor, y: Tensor) -> Tensor:
        a, b = z
        cross_entropy = nn.functional.cross_entropy
        return (
            cross_entropy(a, y)
            + kd(a, b.detach(), temperature=1.0)
            + cross_entropy(b, y)
            + kd(b, a.detach(), temperature=1.0)
        )

    models = [hand.models[name].network for name in ("student", "peer_1")]
    by_hand(models, 0, loss, 3)
    for name in ("student", "peer_1"):
        assert same(state(world.models[name]), state(hand.models[name]))


def test_collaborative_learning_equals_a_hand_written_loop_bit_for_bit() -> None:
    world, hand = make_world(), make_world()
    phases = collaborative(recipe(3), ("peer_1",), CollaborativeSettings(alone_epochs=0))
    assert [phase.name for phase in phases] == ["student alone", "peer_1 alone", "together"]
    train(world, phases, make_run())

    models = [hand.models[name].network for name in ("student", "peer_1")]
    past = [copy.deepcopy(model).eval().to(memory_format=torch.channels_last) for model in models]

    def loss(z: list[Tensor], x: Tensor, y: Tensor) -> Tensor:
        total = torch.zeros(())
        for k, other in ((0, 1), (1, 0)):
            peer = z[other].detach()
            with torch.no_grad():
                before = past[k](x)
            total = total + nn.functional.cross_entropy(z[k], y)
            total = total + rkd(z[k], peer, distance_weight=1.0, angle_weight=0.0)
            total = total + 2.0 * rkd(z[k], peer, distance_weight=0.0, angle_weight=1.0)
            total = total + kd(z[k], peer, temperature=1.0)
            total = total + 0.1 / 9.0 * kd(z[k], before, temperature=3.0)
        return total

    by_hand(models, 2, loss, 3)
    for name in ("student", "peer_1"):
        assert same(state(world.models[name]), state(hand.models[name]))


def test_the_best_peer_becomes_the_student_where_that_is_wanted() -> None:
    world = make_world()
    world.models["student"].network.requires_grad_(False).head.bias.requires_grad_(True)  # type: ignore[union-attr]
    train(world, online(mutual(4), ("peer_1",), best=True), make_run())
    assert same(state(world.models["student"]), state(world.models["peer_1"]))


def test_a_peer_is_a_target_and_gets_no_gradient_from_the_other() -> None:
    world = make_world()
    phases = online(mutual(1), ("peer_1",))
    only = [term for term in phases[0].moves[0].terms if term.name == "student.kd"]
    phases = [dataclasses.replace(phases[0], moves=(dataclasses.replace(phases[0].moves[0], terms=tuple(only)),))]
    before = state(world.models["peer_1"])
    train(world, phases, make_run())
    assert all(p.grad is None for p in world.models["peer_1"].network.parameters())
    after = state(world.models["peer_1"])
    assert all(torch.equal(before[name], after[name]) for name in before if "running" not in name and "num" not in name)


# ---- the other schemes


def test_each_generation_starts_afresh_and_learns_from_the_one_before() -> None:
    phases = self_distillation(recipe(3), generations=2, snapshot_epochs=1)
    assert [(phase.name, phase.epochs) for phase in phases] == [
        ("snapshot", 1),
        ("generation 1", 3),
        ("generation 2", 3),
    ]
    first, second = make_world(), make_world()
    train(first, phases[:1], make_run())
    train(second, phases[:2], make_run())
    assert same(state(first.models["student"]), state(second.models["elder"]))
    untrained = [dataclasses.replace(phases[1], epochs=0), dataclasses.replace(phases[2], epochs=0)]
    worlds = [make_world(), make_world()]
    train(worlds[0], [phases[0], untrained[0]], make_run())
    train(worlds[1], [phases[0], *untrained], make_run())
    assert not same(*(state(world.models["student"]) for world in worlds))  # other first weights each time


def test_a_virtual_teacher_needs_no_generation() -> None:
    (phase,) = self_distillation(recipe(), generations=0, virtual=VirtualTeacherSettings(weight=0.3))
    assert {name: term.weight for name, term in terms_of(phase).items()} == {
        "cross_entropy": 1.0,
        "virtual_teacher": 0.3,
    }


def test_the_chain_of_assistants_ends_at_the_student() -> None:
    phases = assistant(recipe(), {"assistant_1": 3, "assistant_2": 1})
    links = [(terms_of(phase)["kd"].teacher, terms_of(phase)["kd"].student, phase.epochs) for phase in phases]
    assert links == [
        ("teacher[logits]", "assistant_1[logits]", 3),
        ("assistant_1[logits]", "assistant_2[logits]", 1),
        ("assistant_2[logits]", "student[logits]", 2),
    ]


def test_bootstrapped_teachers_see_different_rows() -> None:
    phases = multi_teacher(recipe(), {"teacher": 0, "teacher_1": 1, "teacher_2": 1})
    world = make_world()
    train(world, phases, make_run())
    rows = [world.tables[f"rows of teacher_{i}"].ids for i in (1, 2)]
    assert all(len(ids) == 70 and len(ids.unique()) < 70 for ids in rows)
    assert not torch.equal(*rows)
    assert terms_of(phases[-1])["mean_kd"].teacher == ("teacher[logits]", "teacher_1[logits]", "teacher_2[logits]")


def test_a_knowledge_that_is_no_mean_is_a_term_for_each_teacher() -> None:
    items = tuple(KnowledgeSettings.model_validate_json(text) for text in ('{"kd": {}}', '{"dist": {}}', '{"rkd": {}}'))
    chosen = recipe(knowledge=items, pairs=lambda item, s, t: (("head:in", "head:in"),))
    phase = multi_teacher(chosen, {"teacher": 0, "teacher_1": 0}, weights="confidence")[-1]
    weights = {name: term.weight for name, term in terms_of(phase).items()}
    assert weights.pop("confidence_kd") == 0.9
    assert weights.pop("cross_entropy") == 0.1
    assert weights == {f"{name} to {teacher}": 0.5 for name in ("dist", "rkd") for teacher in ("teacher", "teacher_1")}


def test_an_average_of_weights_is_what_later_phases_go_on_from() -> None:
    phases = averaged(self_distillation(recipe(), generations=1), "student", 0.9)
    assert [phase.name for phase in phases] == ["snapshot", "average", "generation 1", "average"]
    world = make_world()
    train(world, phases[:2], make_run())
    snapshot = state(world.models["student"])
    world = make_world()
    train(world, phases, make_run())
    assert same(state(world.models["elder"]), snapshot)


@pytest.mark.parametrize("scheme", sorted(SCHEMES.keys() - {"assistant", "multi_teacher"}))
def test_schemes_without_labels_say_what_they_miss(scheme: str) -> None:
    blind = Recipe(heads_of("classification", ()), OPTIM, 1, knowledge=KD1)
    makers: dict[str, Callable[[], list[Phase]]] = {
        "online": lambda: online(blind, ("peer_1",)),
        "collaborative": lambda: collaborative(blind, ("peer_1",), CollaborativeSettings()),
        "self": lambda: self_distillation(blind),
        "student_friendly": lambda: student_friendly(blind, StudentFriendlySettings(), BODY),
    }
    with pytest.raises(ConfigError, match=f"scheme {scheme} learns from true targets"):
        makers[scheme]()
