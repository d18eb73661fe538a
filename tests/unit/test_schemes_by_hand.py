"""Every scheme of the pipeline file that is not elsewhere: equal to a hand-written loop, bit for bit; frozen guides."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from hand_loop import LAST, asked, fresh, guide, lesson
from test_schemes import BODY
from test_trainer import HEADS, OPTIM, make_net, make_run, make_table, same, state
from torch import Tensor, nn

from edgekd.data.table import Table
from edgekd.distill.branches import Branch
from edgekd.distill.knowledge import kd, mean_kd
from edgekd.distill.scheme_settings import StudentFriendlySettings, VirtualTeacherSettings
from edgekd.distill.schemes.adaptation import adaptation
from edgekd.distill.schemes.assistant import assistant
from edgekd.distill.schemes.cross_modal import cross_modal
from edgekd.distill.schemes.expansion import expansion
from edgekd.distill.schemes.federated import federated
from edgekd.distill.schemes.label_free import label_free
from edgekd.distill.schemes.multi_task import multi_task
from edgekd.distill.schemes.multi_teacher import multi_teacher
from edgekd.distill.schemes.privileged import privileged
from edgekd.distill.schemes.recipe import Recipe
from edgekd.distill.schemes.self_distillation import self_distillation
from edgekd.distill.schemes.student_friendly import student_friendly
from edgekd.tasks import HeadSettings
from edgekd.train.edits import Average, Bootstrap, Split
from edgekd.train.phase import mix_seed
from edgekd.train.trainer import train
from edgekd.train.world import Model, Phase, World

cross_entropy = nn.functional.cross_entropy
PLAN = Recipe(HEADS, OPTIM, 2)


def unlabelled() -> Table:
    rows = make_table(90).take(torch.arange(20, 90))
    return Table(rows.inputs, {}, rows.ids)


def with_star(table: Table) -> Table:
    """Beside the image what only the teacher sees: its mirror image."""
    return Table({**table.inputs, "star": table.inputs["image"].flip(3)}, table.targets, table.ids)


def make_world() -> World:
    names = {"teacher": 8, "student": 4, "assistant_1": 6, "teacher_1": 8}
    models = {name: make_net(width, seed) for seed, (name, width) in enumerate(names.items())}
    tables = {"train": with_star(make_table()), "unlabelled": with_star(unlabelled()), "public": unlabelled()}
    return World(models, {**tables, "target": unlabelled()}, HEADS)


def networks(world: World, *names: str) -> list[nn.Module]:
    return [world.models[name].network for name in names]


def word(student: nn.Module, teacher: nn.Module, x: Tensor, temperature: float = 4.0) -> Tensor:
    return kd(student(x), asked(teacher, x), temperature=temperature)


def offline_loss(student: nn.Module, teacher: nn.Module) -> Callable[[Tensor, Tensor], Tensor]:
    """.1 CE + .9 KD_4, the default of schemes with a teacher."""

    def loss(x: Tensor, y: Tensor) -> Tensor:
        z = student(x)
        return 0.1 * cross_entropy(z, y) + 0.9 * kd(z, asked(teacher, x), temperature=4.0)

    return loss


def compare(world: World, phases: list[Phase], student: Callable[[], nn.Module], frozen: tuple[str, ...]) -> None:
    """Train, and compare the student with that of a hand-written loop, and frozen networks with themselves."""
    before = {name: state(world.models[name]) for name in frozen}
    train(world, phases, make_run())
    assert same(state(world.models["student"]), student().state_dict())
    assert all(same(before[name], state(world.models[name])) for name in frozen)
    assert all(p.grad is None for name in frozen for p in world.models[name].network.parameters())


def test_self_distillation() -> None:
    hand = make_world()

    def by_hand() -> nn.Module:
        (student,) = networks(hand, "student")
        lesson([student], 0, lambda x, y: cross_entropy(student(x), y), 1)
        elder, young = guide(student), fresh(4, 1, 1)
        lesson([young], 1, offline_loss(young, elder), 2)
        return young

    compare(make_world(), self_distillation(PLAN, snapshot_epochs=1), by_hand, ("teacher",))


def test_a_virtual_teacher() -> None:
    hand = make_world()
    chosen = VirtualTeacherSettings(weight=0.3, correct=0.9, temperature=5.0)

    def by_hand() -> nn.Module:
        (student,) = networks(hand, "student")

        def loss(x: Tensor, y: Tensor) -> Tensor:
            z = student(x)
            table = torch.full((3, 3), 0.05).fill_diagonal_(0.9)  # what it says of each class, at T = 1
            soft = (table.log() / 5.0).softmax(1)[y]
            return cross_entropy(z, y) + 0.3 * 25.0 * nn.functional.kl_div(
                (z / 5.0).log_softmax(1), soft, reduction="batchmean"
            )

        lesson([student], 0, loss, 2)
        return student

    world = make_world()
    train(world, self_distillation(PLAN, generations=0, virtual=chosen), make_run())
    expected = by_hand().state_dict()
    # Another order of operations, so other last bits: the formula is compared, not the bits.
    assert all(
        torch.allclose(value.double(), expected[n].double(), atol=1e-3)
        for n, value in state(world.models["student"]).items()
    )


def test_a_chain_of_assistants() -> None:
    hand = make_world()

    def by_hand() -> nn.Module:
        student, middle, teacher = networks(hand, "student", "assistant_1", "teacher")
        lesson([middle], 0, offline_loss(middle, guide(teacher)), 1)
        lesson([student], 1, offline_loss(student, guide(middle)), 2)
        return student

    compare(make_world(), assistant(PLAN, {"assistant_1": 1}), by_hand, ("teacher",))


def test_several_teachers() -> None:
    hand = make_world()

    def by_hand() -> nn.Module:
        student, given, second = networks(hand, "student", "teacher", "teacher_1")
        Bootstrap("train", "rows of teacher_1")(hand, mix_seed(7, 0, "edit"))
        lesson([second], 0, lambda x, y: cross_entropy(second(x), y), 1, hand.tables["rows of teacher_1"])
        guides = [guide(given), guide(second)]

        def loss(x: Tensor, y: Tensor) -> Tensor:
            z = student(x)
            said = [asked(one, x) for one in guides]
            return 0.1 * cross_entropy(z, y) + 0.9 * mean_kd(z, said, temperature=4.0)

        lesson([student], 1, loss, 2)
        return student

    compare(make_world(), multi_teacher(PLAN, {"teacher": 0, "teacher_1": 1}), by_hand, ("teacher",))


def test_a_student_friendly_teacher() -> None:
    hand = make_world()

    def by_hand() -> nn.Module:
        student, teacher = networks(hand, "student", "teacher")
        Branch("student", "teacher", BODY[0], "branch")(hand, mix_seed(7, 0, "edit/1"))
        friendly, branch = copy.deepcopy(teacher), hand.models["branch"].network
        seen: list[Tensor] = []
        handle = friendly.body.register_forward_hook(lambda module, x, output: seen.append(output))  # type: ignore[union-attr]

        def loss(x: Tensor, y: Tensor) -> Tensor:
            seen.clear()
            z = friendly(x)
            own = branch(seen[0])
            return cross_entropy(z, y) + cross_entropy(own, y) + 3.0 * kd(own, z.detach(), temperature=1.0)

        lesson([friendly, branch], 0, loss, 2)
        handle.remove()
        lesson([student], 1, offline_loss(student, guide(friendly)), 2)
        return student

    compare(make_world(), student_friendly(PLAN, StudentFriendlySettings(), BODY), by_hand, ("teacher",))


def test_label_free_learning() -> None:
    hand = make_world()

    def by_hand() -> nn.Module:
        student, teacher = networks(hand, "student", "teacher")
        asks = guide(teacher)
        lesson([student], 0, lambda x, y: 0.9 * word(student, asks, x), 2, unlabelled())
        return student

    compare(make_world(), label_free(PLAN), by_hand, ("teacher", "assistant_1"))


def privileged_world() -> World:
    world = make_world()
    world.models["teacher"].inputs = ("star",)
    return world


@pytest.mark.parametrize("imitation", [None, 0.9, 0.25])
def test_a_privileged_teacher(imitation: float | None) -> None:
    share = 0.9 if imitation is None else imitation

    def by_hand() -> nn.Module:
        student, teacher = networks(make_world(), "student", "teacher")
        asks = guide(teacher)

        def loss(x: Tensor, y: Tensor) -> Tensor:
            z = student(x)
            said = asked(asks, x.flip(3).contiguous(memory_format=LAST))
            return (1.0 - share) * cross_entropy(z, y) + share * kd(z, said, temperature=4.0)

        lesson([student], 0, loss, 2)
        return student

    compare(privileged_world(), privileged(PLAN, imitation=imitation), by_hand, ("teacher",))


def test_a_teacher_of_another_modality() -> None:
    def by_hand() -> nn.Module:
        student, teacher = networks(make_world(), "student", "teacher")
        asks = guide(teacher)

        def loss(x: Tensor, y: Tensor) -> Tensor:
            said = asked(asks, x.flip(3).contiguous(memory_format=LAST))
            return 0.9 * kd(student(x), said, temperature=4.0)

        lesson([student], 0, loss, 2, unlabelled())
        return student

    plan = Recipe(HEADS, OPTIM, 2, task_weight=0.0)
    compare(privileged_world(), cross_modal(plan, pairs="unlabelled"), by_hand, ("teacher",))


def said_of(network: nn.Module, table: Table) -> Tensor:
    """What a network says of clean rows, all at once, in the memory layout that it has."""
    return asked(copy.deepcopy(network).eval(), table.inputs["image"].contiguous(memory_format=LAST))


@pytest.mark.parametrize("soft", [True, False])
def test_noisy_students_teach_each_other(soft: bool) -> None:
    def by_hand() -> nn.Module:
        (teacher,) = networks(make_world(), "teacher")
        rows = unlabelled()
        for index in range(2):
            said = said_of(teacher, rows)
            sure = torch.arange(70) if soft else (said.softmax(1).amax(1) >= 0.36).nonzero().flatten()
            labels = said if soft else said.argmax(1)
            table = Table({"image": rows.inputs["image"][sure]}, {"pseudo": labels[sure]}, rows.ids[sure])
            student = fresh(4, index, 1 + index)

            def loss(x: Tensor, y: Tensor, student: nn.Module = student) -> Tensor:
                return kd(student(x), y, temperature=1.0) if soft else cross_entropy(student(x), y)

            lesson([student], index, loss, 2, table)
            teacher = student
        return teacher

    phases = expansion(PLAN, rounds=2, soft=soft, confident=None if soft else 0.36)
    compare(make_world(), phases, by_hand, ("assistant_1",))


def test_adaptation_to_another_domain() -> None:
    def by_hand() -> nn.Module:
        (teacher,) = networks(make_world(), "teacher")
        student, rows = copy.deepcopy(teacher), unlabelled()
        for index in range(2):
            said = said_of(student, rows)
            sure = (said.softmax(1).amax(1) >= 0.36).nonzero().flatten()
            table = Table({"image": rows.inputs["image"][sure]}, {"pseudo": said.argmax(1)[sure]}, rows.ids[sure])
            lesson([student], index, lambda x, y: cross_entropy(student(x), y), 2, table)
        return student

    compare(make_world(), adaptation(PLAN, rounds=2, confident=0.36), by_hand, ("teacher",))


def test_clients_of_a_federation() -> None:
    hand = make_world()

    def by_hand() -> nn.Module:
        (student,) = networks(hand, "student")
        Split("train", ("a", "b"), 0.5)(hand, mix_seed(7, 0, "edit"))
        clients = []
        for index, name in enumerate(("a", "b"), start=1):
            client, own = copy.deepcopy(student), hand.tables[name]
            lesson([client], index, lambda x, y, client=client: cross_entropy(client(x), y), 2, own)  # type: ignore[misc]
            clients.append(client)
        rows = unlabelled()
        mean = torch.stack([said_of(client, rows) for client in clients]).mean(0)
        world = World({n: Model(c, ("image",), ("logits",)) for n, c in zip("ab", clients, strict=True)}, {}, HEADS)
        Average(("a", "b"), "mean")(world, 0)
        server = world.models["mean"].network
        table = Table(rows.inputs, {"consensus": mean}, rows.ids)
        lesson([server], 3, lambda x, y: kd(server(x), y, temperature=1.0), 2, table)
        return server

    phases = federated(PLAN, clients=2, rounds=1, concentration=0.5)
    compare(make_world(), phases, by_hand, ("teacher", "assistant_1"))


def test_specialists_of_several_heads() -> None:
    heads = tuple(HeadSettings(output=name, task="classification", target=name) for name in ("kind", "large"))

    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body, self.large = make_net(4, 5).network, nn.Linear(3, 3)

        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            kind = self.body(x)
            return kind, self.large(kind)

    def world_of() -> World:
        table = make_table()
        label = table.targets["label"]
        both = Table(table.inputs, {"kind": label, "large": (label == 2).long()}, table.ids)
        torch.manual_seed(4)
        models = {"a": make_net(8, 1), "b": make_net(8, 2), "student": Model(Two(), ("image",), ("kind", "large"))}
        models["a"].outputs, models["b"].outputs = ("kind",), ("large",)
        return World(models, {"train": both}, heads)

    def by_hand() -> nn.Module:
        hand = world_of()
        student, knows_kind, knows_large = networks(hand, "student", "a", "b")
        lesson([knows_large], 0, lambda x, y: cross_entropy(knows_large(x), (y == 2).long()), 1)
        first, second = guide(knows_kind), guide(knows_large)

        def loss(x: Tensor, y: Tensor) -> Tensor:
            kind, large = student(x)
            total = 0.1 * cross_entropy(kind, y) + 0.1 * cross_entropy(large, (y == 2).long())
            total = total + 0.9 * kd(kind, asked(first, x), temperature=4.0)
            return total + 0.9 * kd(large, asked(second, x), temperature=4.0)

        lesson([student], 1, loss, 2)
        return student

    plan = Recipe(heads, OPTIM, 2)
    compare(world_of(), multi_task(plan, {"kind": "a", "large": "b"}, {"kind": 0, "large": 1}), by_hand, ("a",))
