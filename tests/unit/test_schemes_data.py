"""Schemes by what the data is: made, unlabelled, paired, private, of another domain, of several tasks."""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from test_schemes import killed
from test_trainer import HEADS, make_net, make_run, make_table, same, state
from torch import Tensor, nn

from edgekd.data.counters import permutation
from edgekd.data.noise import NoiseTable
from edgekd.data.table import Table
from edgekd.distill.knowledge import activation, entropy, fake, kd, mean_absolute, one_hot, real
from edgekd.distill.knowledge_settings import KnowledgeSettings
from edgekd.distill.schemes.adaptation import adaptation
from edgekd.distill.schemes.adversarial import adversarial
from edgekd.distill.schemes.cross_modal import cross_modal
from edgekd.distill.schemes.data_free import Wishes, data_free
from edgekd.distill.schemes.expansion import expansion
from edgekd.distill.schemes.federated import federated
from edgekd.distill.schemes.label_free import label_free
from edgekd.distill.schemes.made import Critic, Generator
from edgekd.distill.schemes.multi_task import multi_task
from edgekd.distill.schemes.privileged import privileged
from edgekd.distill.schemes.recipe import Recipe
from edgekd.tasks import HeadSettings
from edgekd.train.evaluate import score
from edgekd.train.phase import mix_seed
from edgekd.train.trainer import Epoch, train
from edgekd.train.world import Model, Move, Optim, Phase, Term, World

ADAM = Optim("adam", lr=5e-3)
CPU = torch.device("cpu")


def recipe(epochs: int = 2, temperature: float = 4.0, weight: float = 0.9, **own: object) -> Recipe:
    kd_settings = KnowledgeSettings.model_validate({"kd": {"weight": weight, "temperature": temperature}})
    return dataclasses.replace(Recipe(HEADS, ADAM, epochs, knowledge=(kd_settings,)), **own)  # type: ignore[arg-type]


def generator() -> Model:
    torch.manual_seed(6)
    layers = [nn.Linear(7, 25), nn.BatchNorm1d(25), nn.ReLU(), nn.Dropout(0.2), nn.Linear(25, 25)]
    return Model(nn.Sequential(*layers, nn.Unflatten(1, (1, 5, 5))), ("noise",), ("image",))


def critic() -> Model:
    torch.manual_seed(7)
    net = nn.Sequential(nn.Linear(3, 8), nn.ReLU(), nn.Dropout(0.2), nn.Linear(8, 1))
    return Model(net, ("logits",), ("score",))


def unlabelled(rows: int = 50) -> Table:
    table = make_table(rows)
    return Table(table.inputs, {}, table.ids)


def whole_world() -> World:
    """Everything that some scheme of this file needs."""
    models = {"teacher": make_net(8, 1), "student": make_net(4, 2), "generator": generator(), "critic": critic()}
    models |= {f"client_{i}": make_net(4 + i, 10 + i) for i in range(2)}
    tables = {"train": make_table(), "unlabelled": unlabelled(), "public": unlabelled(), "target": unlabelled(60)}
    return World(models, dict(tables), HEADS)


WISHES = Wishes(features="head:in", batchnorms=("body.1",), disagreement=0.5)
SCHEMES: dict[str, Callable[[], list[Phase]]] = {
    "privileged": lambda: privileged(recipe(), teacher_epochs=1),
    "cross_modal": lambda: cross_modal(recipe(task_weight=0.0)),
    "label_free": lambda: label_free(recipe()),
    "data_free": lambda: data_free(recipe(), generator=ADAM, noise=(7,), rows=48, wishes=WISHES),
    "feddf": lambda: federated(recipe(1), clients=2, rounds=2, concentration=0.5),
    "fedmd": lambda: federated(recipe(1), clients=2, rounds=2, share_weights=False),
    "adversarial": lambda: adversarial(recipe(), critic=ADAM),
    "made critic": lambda: adversarial(recipe(), critic=ADAM, start=(Critic("logits", None, 5),)),
    "made generator": lambda: data_free(recipe(), generator=ADAM, noise=(7,), rows=48, start=(Generator(7, 4),)),
    "expansion": lambda: expansion(recipe(), rounds=2),
    "hard expansion": lambda: expansion(recipe(), rounds=2, soft=False, confident=0.36),
    "adaptation": lambda: adaptation(recipe(), rounds=2, confident=0.36),
}


@pytest.mark.parametrize("name", SCHEMES)
def test_a_scheme_killed_after_any_epoch_ends_with_the_same_bytes(name: str, tmp_path: Path) -> None:
    whole = whole_world()
    ran: list[Epoch] = []
    curves = train(whole, SCHEMES[name](), make_run(tell=ran.append))
    for stop_after in range(1, len(ran)):
        folder = tmp_path / str(stop_after)
        killed(stop_after, whole_world, SCHEMES[name](), folder)
        resumed = whole_world()
        assert train(resumed, SCHEMES[name](), make_run(folder)) == curves
        assert resumed.models.keys() == whole.models.keys()
        assert all(same(state(whole.models[model]), state(resumed.models[model])) for model in whole.models)


@pytest.mark.parametrize(
    "name", ["cross_modal", "label_free", "data_free", "adversarial", "made critic", "made generator"]
)
def test_the_teacher_keeps_its_bytes_has_no_gradients_and_is_never_in_training_mode(name: str) -> None:
    world = whole_world()
    before = state(world.models["teacher"])
    seen: list[bool] = []
    world.models["teacher"].network.register_forward_hook(lambda module, *_: seen.append(module.training))
    untouched = {other: state(world.models[other]) for other in ("client_0", "client_1")}
    train(world, SCHEMES[name](), make_run())
    assert same(before, state(world.models["teacher"]))
    assert seen and not any(seen)
    assert all(p.grad is None and p.requires_grad for p in world.models["teacher"].network.parameters())
    assert all(same(untouched[other], state(world.models[other])) for other in untouched)
    assert not same(state(world.models["student"]), state(whole_world().models["student"]))


def rate(at: int, steps: int) -> float:
    return ADAM.lr * 0.5 * (1 + math.cos(math.pi * at / steps))


def adam(network: nn.Module) -> torch.optim.Adam:
    matrices = [p for p in network.parameters() if p.dim() > 1]
    vectors = [p for p in network.parameters() if p.dim() <= 1]
    return torch.optim.Adam([{"params": matrices}, {"params": vectors}], lr=ADAM.lr)


def step(optimizer: torch.optim.Adam, loss: Tensor, at: int, steps: int) -> None:
    for group in optimizer.param_groups:
        group["lr"] = rate(at, steps)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()


def test_data_free_equals_a_hand_written_loop_bit_for_bit() -> None:
    world = whole_world()
    wishes = Wishes(features="head:in", disagreement=0.5)
    train(world, data_free(recipe(3), generator=ADAM, noise=(7,), rows=48, wishes=wishes), make_run())

    by_hand = whole_world()
    teacher, student, made = (by_hand.models[name].network for name in ("teacher", "student", "generator"))
    for network in (teacher, student, made):
        network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    teacher.eval()
    optimizers = adam(made), adam(student)
    table = NoiseTable("noise", 48, (7,), mix_seed(7, 0, "edit"))
    for epoch in range(3):
        order = permutation(7, "order/0", epoch, 48)
        for number in range(3):
            at = epoch * 3 + number
            z = table.at(epoch).take(order[number * 16 : number * 16 + 16]).inputs["noise"]
            torch.default_generator.manual_seed(mix_seed(7, 0, f"{at}/0"))
            made.train()
            student.eval()
            x = made(z)
            features = teacher.body(x).mean((2, 3))
            logits = teacher.head(features)
            loss = one_hot(logits) + 5.0 * entropy(logits) + 0.1 * activation(features)
            step(optimizers[0], loss - 0.5 * mean_absolute(student(x), logits), at, 9)
            torch.default_generator.manual_seed(mix_seed(7, 0, f"{at}/1"))
            made.eval()
            student.train()
            with torch.no_grad():
                x = made(z)
                logits = teacher(x)
            own = student(x)
            step(optimizers[1], 0.9 * kd(own, logits) + 1.0 * mean_absolute(own, logits), at, 9)
    assert same(state(world.models["generator"]), made.state_dict())
    assert same(state(world.models["student"]), student.state_dict())


def test_adversarial_equals_a_hand_written_loop_bit_for_bit() -> None:
    world = whole_world()
    train(world, adversarial(recipe(3), critic=ADAM, weight=0.3), make_run())

    by_hand = whole_world()
    teacher, student, judge = (by_hand.models[name].network for name in ("teacher", "student", "critic"))
    for network in (teacher, student):
        network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    teacher.eval()
    optimizers = adam(judge), adam(student)
    for epoch in range(3):
        order = permutation(7, "order/0", epoch, 70)
        for number in range(5):
            at = epoch * 5 + number
            rows = by_hand.tables["train"].take(order[number * 14 : number * 14 + 14])
            x = rows.inputs["image"].contiguous(memory_format=torch.channels_last)
            torch.default_generator.manual_seed(mix_seed(7, 0, f"{at}/0"))
            judge.train()
            student.eval()
            with torch.no_grad():
                said, own = teacher(x), student(x)
            step(optimizers[0], real(judge(said)) + fake(judge(own)), at, 15)
            torch.default_generator.manual_seed(mix_seed(7, 0, f"{at}/1"))
            judge.eval()
            student.train()
            own = student(x)
            with torch.no_grad():
                said = teacher(x)
            verdict = judge(own)  # before the losses: the order of operations is that of the gradients' sums
            loss = 0.1 * nn.functional.cross_entropy(own, rows.targets["label"]) + 0.9 * kd(own, said)
            step(optimizers[1], loss + 0.3 * real(verdict), at, 15)
    assert same(state(world.models["critic"]), judge.state_dict())
    assert same(state(world.models["student"]), student.state_dict())


def test_label_free_learning_does_not_look_at_labels() -> None:
    def trained(labels: bool) -> dict[str, Tensor]:
        world = whole_world()
        world.tables["unlabelled"] = make_table(50) if labels else unlabelled()
        train(world, label_free(recipe()), make_run())
        return state(world.models["student"])

    assert same(trained(True), trained(False))


def test_statistics_of_batchnorm_draw_made_batches_to_those_of_the_data() -> None:
    world = whole_world()
    for _ in range(30):
        world.models["teacher"].network.train()(make_table().inputs["image"])
    wishes = Wishes(one_hot=0.0, entropy=0.0, batchnorms=("body.1",))
    phases = data_free(recipe(30), generator=ADAM, noise=(7,), rows=64, wishes=wishes)
    losses = train(world, phases, make_run())[0]["terms"]["bn_statistics body.1"]
    assert losses[-1] < 0.3 * losses[0]


def test_the_terms_of_a_generator_are_those_that_were_wished_for() -> None:
    def names(wishes: Wishes) -> list[str]:
        (phase,) = data_free(recipe(), generator=ADAM, wishes=wishes)
        return [term.name for term in phase.moves[0].terms]

    assert names(Wishes()) == ["one_hot", "entropy"]
    assert names(Wishes(one_hot=0.0, entropy=0.0, disagreement=1.0)) == ["disagreement sought"]
    assert names(WISHES) == ["one_hot", "entropy", "activation", "bn_statistics body.1", "disagreement sought"]


def test_models_see_the_modality_that_their_inputs_name() -> None:
    torch.manual_seed(3)
    table = make_table()
    pairs = Table({"sound": table.inputs["image"].mean((2, 3)), **table.inputs}, {}, table.ids)
    models = {"teacher": make_net(8, 1), "student": Model(nn.Linear(1, 3), ("sound",), ("logits",))}
    world = World(models, {"pairs": pairs}, HEADS)
    losses = train(world, cross_modal(recipe(8, task_weight=0.0), pairs="pairs"), make_run())[0]["terms"]
    assert list(losses) == ["kd"]
    assert losses["kd"][-1] < losses["kd"][0]


def test_every_head_learns_from_the_specialist_that_knows_it() -> None:
    table = make_table()
    label = table.targets["label"]
    heads = tuple(HeadSettings(output=name, task="classification", target=name) for name in ("kind", "large"))
    both = Table(table.inputs, {"kind": label, "large": (label == 2).long()}, table.ids)

    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = make_net(8, 5).network
            self.large = nn.Linear(3, 2)

        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            kind = self.body(x)
            return kind, self.large(kind)

    torch.manual_seed(4)
    specialists = {"a": make_net(8, 1), "b": make_net(8, 2)}
    specialists["a"].outputs, specialists["b"].outputs = ("kind",), ("large",)
    specialists["b"].network.head = nn.Linear(8, 2)
    world = World({**specialists, "student": Model(Two(), ("image",), ("kind", "large"))}, {"train": both}, heads)
    plan = recipe(20, heads=heads)
    for name, head in zip("ab", heads, strict=True):
        alone = dataclasses.replace(plan, heads=(head,))
        train(world, [dataclasses.replace(alone.alone(name, name), watch=None)], make_run())
    before = {name: state(world.models[name]) for name in "ab"}
    terms = train(world, multi_task(plan, {"kind": "a", "large": "b"}), make_run())[0]["terms"]
    assert list(terms) == ["kind.cross_entropy", "large.cross_entropy", "kind.kd", "large.kd"]
    assert all(same(before[name], state(world.models[name])) for name in "ab")
    found = {name: value.value for name, value in score(world, "student", both, CPU).items()}
    assert found["kind.accuracy"] > 0.6 and found["large.accuracy"] > 0.8


def test_clients_of_a_federation_see_their_own_rows_alone_and_the_server_none_of_them() -> None:
    phases = federated(recipe(), clients=3, rounds=2)
    seen = {name: phase.data for phase in phases for move in phase.moves for name in move.learn}
    assert seen == {"client_0": "rows of client_0", "client_1": "rows of client_1", "client_2": "rows of client_2"} | {
        "student": "public rows with the consensus"
    }
    references = [term.teacher for phase in phases if "consensus" in phase.data for term in phase.moves[0].terms]
    assert references == ["consensus_logits"] * 2
    assert not [term for phase in phases if "consensus" in phase.data for term in phase.moves[0].terms if term.also]


def test_phases_of_every_scheme_are_plain_data_that_is_equal_when_made_again() -> None:
    for make in SCHEMES.values():
        assert make() == make()


def mean_gap(make_arms: Callable[[int], tuple[float, float]], seeds: range) -> float:
    arms = [make_arms(seed) for seed in seeds]
    return 100 * sum(a - b for a, b in arms) / len(arms)


@pytest.mark.slow
def test_privileged_distances_help_and_privileged_clean_features_do_not() -> None:
    """Lopez-Paz et al. 2016: d = 50, n = 200; 88 -> 95% with distances to the boundary, nothing with clean features."""

    def experiment(seed: int, distances: bool) -> tuple[float, float]:
        g = torch.Generator().manual_seed(seed)
        w, clean = torch.randn(50, generator=g), torch.randn(4200, 50, generator=g)
        distance = clean @ w
        x = clean if distances else clean + torch.randn(clean.shape, generator=g)
        label = (distance + torch.randn(4200, generator=g) * distances > 0).long()
        table = Table({"x": x, "star": distance[:, None] if distances else clean}, {"label": label}, torch.arange(4200))
        world = World({}, {"train": table.take(torch.arange(200))}, HEADS)
        torch.manual_seed(seed)
        world.models["teacher"] = Model(nn.Linear(1 if distances else 50, 2), ("star",), ("logits",))
        world.models["student"] = Model(nn.Linear(50, 2), ("x",), ("logits",))
        torch.manual_seed(seed)
        world.models["alone"] = Model(nn.Linear(50, 2), ("x",), ("logits",))
        plan = recipe(60, 1.0, weight=1.0, task_weight=0.0, optim=Optim("adam", lr=5e-2))
        run = dataclasses.replace(make_run(), batch=100)
        train(world, [*privileged(plan, teacher_epochs=60), plan.alone("alone", "alone")], run)
        test = table.take(torch.arange(200, 4200))
        student, alone = (score(world, name, test, CPU)["accuracy"].value for name in ("student", "alone"))
        return student, alone

    assert mean_gap(lambda seed: experiment(seed, True), range(3)) >= 4.5
    assert abs(mean_gap(lambda seed: experiment(seed, False), range(3))) <= 2


@pytest.mark.slow
def test_a_thousand_unlabelled_digits_teach_more_than_fifty_labels() -> None:
    """METHODS.md: a student of 16 units, at least 8 points."""
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    x, y = load_digits(return_X_y=True)
    train_rows, test_rows = train_test_split(range(len(y)), train_size=1000, random_state=0, stratify=y)
    few_rows, _ = train_test_split(train_rows, train_size=50, random_state=0, stratify=y[train_rows])
    whole = Table({"x": torch.from_numpy(x).float() / 16}, {"label": torch.from_numpy(y)}, torch.arange(len(y)))
    rows, test, few = (whole.take(torch.tensor(part)) for part in (train_rows, test_rows, few_rows))
    plan = recipe(60, 1.0, weight=1.0, optim=Optim("adam", lr=2e-3))
    run = dataclasses.replace(make_run(), batch=64)

    def mlp(*sizes: int) -> Model:
        torch.manual_seed(0)
        pairs = itertools.pairwise(sizes)
        layers = [layer for a, b in pairs for layer in (nn.Linear(a, b), nn.ReLU())]
        return Model(nn.Sequential(*layers[:-1]), ("x",), ("logits",))

    unlabelled_rows = Table(rows.inputs, {}, rows.ids)
    world = World({"teacher": mlp(64, 256, 256, 10), "student": mlp(64, 16, 10)}, {"train": rows}, HEADS)
    world.tables["unlabelled"] = unlabelled_rows
    train(world, [plan.alone("teacher", "teacher"), *label_free(plan)], run)
    scarce = World({"student": mlp(64, 16, 10)}, {"train": few}, HEADS)
    train(scarce, [plan.alone("student", "alone", epochs=400)], run)
    taught, alone = (score(one, "student", test, CPU)["accuracy"].value for one in (world, scarce))
    assert taught - alone >= 0.08


def test_a_proximal_term_and_a_term_on_generated_data_can_stand_in_one_move() -> None:
    world = whole_world()
    world.models["anchor"] = make_net(4, 2)
    near = Term("mse_logits", "student#head.weight", "anchor#head.weight", 0.1, label="near")
    (phase,) = data_free(recipe(1), generator=ADAM, noise=(7,), rows=32)
    made, learned = phase.moves
    moves = (made, Move(learned.learn, (*learned.terms, near)))
    terms = train(world, [dataclasses.replace(phase, moves=moves)], make_run())[0]["terms"]
    assert set(terms) == {"one_hot", "entropy", "kd", "near"}
