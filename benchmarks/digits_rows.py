"""Schemes by what the data is, on digits: the arms of each on one seed, and what is promised of them."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import torch
from digits_world import (
    EPOCHS,
    OPTIM,
    SCARCE_EPOCHS,
    Arms,
    Heads,
    Limit,
    Row,
    accuracy,
    fit,
    mlp,
    model,
    recipe,
    scarce,
    split,
    student,
    teacher,
    trained_teacher,
    with_inputs,
    without_labels,
    world_of,
)
from torch import nn
from torch.nn import functional

from edgekd.data.settings import AugmentSettings
from edgekd.data.table import Table
from edgekd.distill.schemes.adaptation import adaptation
from edgekd.distill.schemes.adversarial import adversarial
from edgekd.distill.schemes.cross_modal import cross_modal
from edgekd.distill.schemes.data_free import Wishes, data_free
from edgekd.distill.schemes.expansion import expansion
from edgekd.distill.schemes.federated import federated
from edgekd.distill.schemes.label_free import label_free
from edgekd.distill.schemes.multi_task import multi_task
from edgekd.distill.schemes.privileged import privileged
from edgekd.tasks import HeadSettings
from edgekd.train.world import Model, Optim, World


def alone_on_few(seed: int, few: Table, test: Table, make: Callable[[], Model]) -> float:
    """A student that has learned the labels of a few rows."""
    world = world_of({"student": make()}, train=few)
    fit(world, [recipe(SCARCE_EPOCHS).alone("student", "alone")], seed)
    return accuracy(world, "student", test)


def label_free_arms(seed: int) -> Arms:
    """At T = 1 and at the usual T = 4, with which 60 epochs are too few for 16 units."""
    train, test = split(seed)
    arms = {"50 labels": alone_on_few(seed, scarce(train, seed), test, lambda: student(seed))}
    for name, temperature in (("1000 unlabelled", 1.0), ("1000 unlabelled, T = 4", 4.0)):
        models = {"teacher": trained_teacher(seed), "student": student(seed)}
        world = world_of(models, unlabelled=without_labels(train))
        fit(world, label_free(recipe(temperature=temperature)), seed)
        arms[name] = accuracy(world, "student", test)
    return arms


def cross_modal_arms(seed: int) -> Arms:
    def pooled(table: Table) -> Table:
        small = functional.avg_pool2d(table.inputs["x"].view(-1, 1, 8, 8), 2).flatten(1)
        return with_inputs(table, {**table.inputs, "small": small})

    def make() -> Model:
        return student(seed, pixels=16, inputs=("small",))

    train, test = map(pooled, split(seed))
    world = world_of({"teacher": trained_teacher(seed), "student": make()}, train=without_labels(train))
    fit(world, cross_modal(recipe(temperature=1.0)), seed)
    few = alone_on_few(seed, scarce(train, seed), test, make)
    return {"0 labels": accuracy(world, "student", test), "50 labels": few}


def privileged_arms(seed: int) -> Arms:
    """Lopez-Paz et al. 2016, experiments 1 (x* is the distance to the boundary) and 2 (x* is x without noise)."""

    def experiment(noisy: bool) -> tuple[Table, Table]:
        g = torch.Generator().manual_seed(seed)
        w, clean = torch.randn(50, generator=g), torch.randn(10_200, 50, generator=g)
        distance, noise = clean @ w, torch.randn(10_200, generator=g)
        label = (distance > 0 if noisy else distance + noise > 0).long()
        x = clean + torch.randn(clean.shape, generator=g) if noisy else clean
        table = Table({"x": x, "star": clean if noisy else distance[:, None]}, {"label": label}, torch.arange(10_200))
        return table.take(torch.arange(200)), table.take(torch.arange(200, 10_200))

    arms = {}
    for name, noisy in (("distances", False), ("clean features", True)):
        train, test = experiment(noisy)
        models = {
            "teacher": model(lambda wide=train.inputs["star"].shape[1]: nn.Linear(wide, 2), 1000 + seed, ("star",)),
            "student": model(lambda: nn.Linear(50, 2), 2000 + seed),
        }
        # A linear model of 200 rows has so few steps that it needs a larger rate to arrive.
        plan = recipe(200, temperature=1.0, optim=dataclasses.replace(OPTIM, lr=2e-2))
        world = fit(world_of(models, train=train), privileged(plan, teacher_epochs=200), seed)
        alone = world_of({"student": model(lambda: nn.Linear(50, 2), 2000 + seed)}, train=train)
        fit(alone, [plan.alone("student", "alone")], seed)
        arms[f"{name}: privileged"] = accuracy(world, "student", test)
        arms[f"{name}: alone"] = accuracy(alone, "student", test)
    return arms


class Generator(nn.Sequential):
    """Noise (N, 100) to pixels (N, 64) in 0 .. 1; as in DAFL its last layer is normalised, so that no pixel is idle."""

    def __init__(self) -> None:
        hidden = [nn.Linear(100, 256), nn.BatchNorm1d(256), nn.ReLU(), nn.Linear(256, 256), nn.BatchNorm1d(256)]
        super().__init__(*hidden, nn.ReLU(), nn.Linear(256, 64), nn.BatchNorm1d(64, affine=False), nn.Sigmoid())


def data_free_arms(seed: int) -> Arms:
    _, test = split(seed)
    rows = 3200
    noise = torch.rand(rows, 64, generator=torch.Generator().manual_seed(seed))
    baseline = world_of(
        {"teacher": trained_teacher(seed), "student": student(seed)},
        unlabelled=Table({"x": noise}, {}, torch.arange(rows)),
    )
    fit(baseline, label_free(recipe()), seed)
    world = world_of(
        {
            "teacher": trained_teacher(seed),
            "student": student(seed),
            "generator": model(Generator, 3000 + seed, ("noise",), ("x",)),
        }
    )
    wishes = Wishes(disagreement=1.0)
    fit(world, data_free(recipe(), generator=Optim("adam", lr=1e-3), rows=rows, wishes=wishes), seed)
    return {"generator": accuracy(world, "student", test), "uniform noise": accuracy(baseline, "student", test)}


def federated_arms(seed: int, rounds: int = 10, epochs: int = EPOCHS) -> Arms:
    """Half of the training rows are the clients', half are public; alone, a client trains as long as in all rounds."""

    def run(rounds: int, client_epochs: int) -> World:
        halves = train.take(torch.arange(0, 1000, 2)), train.take(torch.arange(1, 1000, 2))
        world = world_of({"student": student(seed, 64)}, train=halves[0], public=without_labels(halves[1]))
        plan = federated(recipe(epochs), rounds=rounds, client_epochs=client_epochs, concentration=0.1, least=8)
        return fit(world, plan, seed)

    train, test = split(seed)
    alone, together = run(1, rounds * epochs), run(rounds, epochs)
    clients = [accuracy(alone, f"client_{i}", test) for i in range(5)]
    return {"server": accuracy(together, "student", test), "mean client alone": sum(clients) / len(clients)}


def adversarial_arms(seed: int) -> Arms:
    train, test = split(seed)
    arms = {}
    for name, weight in (("critic", 0.1), ("no critic", 0.0)):
        models = {
            "teacher": trained_teacher(seed),
            "student": student(seed),
            "critic": model(lambda: mlp(10, 64, 1), 3000 + seed, ("logits",), ("score",)),
        }
        world = world_of(models, train=train)
        plan = recipe(weight=0.9, task=0.1)
        fit(world, adversarial(plan, critic=Optim("adam", lr=1e-3), weight=weight), seed)
        arms[name] = accuracy(world, "student", test)
    return arms


def expansion_arms(seed: int, epochs: int = EPOCHS) -> Arms:
    def as_image(table: Table) -> Table:
        return with_inputs(table, {"x": table.inputs["x"].view(-1, 1, 8, 8)})

    train, test = map(as_image, split(seed))
    models = {"teacher": teacher(seed), "student": teacher(seed + 1, dropout=0.2)}
    world = world_of(models, train=scarce(train, seed), unlabelled=without_labels(train))
    fit(world, [recipe(SCARCE_EPOCHS).alone("teacher", "teacher")], seed)
    before = accuracy(world, "teacher", test)
    fit(world, expansion(recipe(epochs), soft=False), seed, AugmentSettings(crop=1, views="all"))
    return {"student": accuracy(world, "student", test), "teacher of 50 labels": before}


def adaptation_arms(seed: int, epochs: int = EPOCHS) -> Arms:
    angle = torch.tensor(25.0).deg2rad()

    def turned(table: Table) -> Table:
        turn = torch.tensor([[angle.cos(), -angle.sin(), 0.0], [angle.sin(), angle.cos(), 0.0]])
        images = table.inputs["x"].view(-1, 1, 8, 8)
        places = functional.affine_grid(turn.expand(len(images), -1, -1), list(images.shape), align_corners=False)
        return with_inputs(table, {"x": functional.grid_sample(images, places, align_corners=False).flatten(1)})

    train, test = split(seed)
    source, domain = train.take(torch.arange(0, 1000, 2)), train.take(torch.arange(1, 1000, 2))
    world = world_of({"teacher": teacher(seed)}, train=source, target=without_labels(turned(domain)))
    fit(world, [recipe(epochs).alone("teacher", "teacher")], seed)
    fit(world, adaptation(recipe(epochs)), seed)
    return {name: accuracy(world, who, turned(test)) for name, who in (("adapted", "student"), ("source", "teacher"))}


def multi_task_arms(seed: int) -> Arms:
    def labelled(table: Table) -> Table:
        y = table.targets["label"]
        return Table(table.inputs, {"digit": y, "even": (y % 2 == 0).long(), "large": (y >= 5).long()}, table.ids)

    classes = {"digit": 10, "even": 2, "large": 2}
    heads = tuple(HeadSettings(output=name, task="classification", target=name) for name in classes)
    train, test = map(labelled, split(seed))
    specialists: dict[str, World] = {}
    for number, head in enumerate(heads):
        count = classes[head.output]
        net = model(lambda c=count: mlp(64, 256, 256, c), 1000 + 10 * seed + number, outputs=(head.output,))
        one = World({f"knows_{head.output}": net}, {"train": train}, (head,))
        specialists[head.output] = fit(one, [recipe(heads=(head,)).alone(f"knows_{head.output}", "alone")], seed)
    models = {f"knows_{name}": one.models[f"knows_{name}"] for name, one in specialists.items()}
    many = model(lambda: Heads(128, classes), 2000 + seed, outputs=tuple(classes))
    world = World({**models, "student": many}, {"train": train}, heads)
    plan = recipe(weight=0.9, temperature=2.0, task=0.1, heads=heads)
    fit(world, multi_task(plan, {name: f"knows_{name}" for name in classes}), seed)
    arms = {f"student {name}": accuracy(world, "student", test, f"{name}.accuracy") for name in classes}
    return arms | {f"specialist {n}": accuracy(one, f"knows_{n}", test) for n, one in specialists.items()}


ROWS = {
    "privileged": Row(
        "d = 50, n = 200: 88 -> 95% with privileged distances; no gain on the clean-feature control",
        privileged_arms,
        (
            Limit("distances: privileged", "distances: alone", least=5.0),
            Limit("clean features: privileged", "clean features: alone", most=1.0),
        ),
    ),
    "cross_modal": Row(
        "0 labels vs 50-label CE on 4x4-pooled digits: >= +8",
        cross_modal_arms,
        (Limit("0 labels", "50 labels", least=8.0),),
    ),
    "label_free": Row(
        "16-unit student, 1000 unlabelled vs 50-label CE: >= +8",
        label_free_arms,
        (Limit("1000 unlabelled", "50 labels", least=8.0), Limit("1000 unlabelled, T = 4", "50 labels")),
    ),
    "data_free": Row(">= KD on uniform noise + 25", data_free_arms, (Limit("generator", "uniform noise", least=25.0),)),
    "federated": Row(
        "5 non-IID clients: server >= mean client + 30",
        federated_arms,
        (Limit("server", "mean client alone", least=30.0),),
    ),
    "adversarial": Row("student >= no discriminator", adversarial_arms, (Limit("critic", "no critic", least=0.0),)),
    "expansion": Row(
        "beats its 50-label teacher by >= 2", expansion_arms, (Limit("student", "teacher of 50 labels", least=2.0),)
    ),
    "adaptation": Row("target gain >= 5 under a mild shift", adaptation_arms, (Limit("adapted", "source", least=5.0),)),
    "multi_task": Row(
        "each head within 4 points of its specialist",
        multi_task_arms,
        tuple(Limit(f"student {n}", f"specialist {n}", least=-4.0) for n in ("digit", "even", "large")),
    ),
}
