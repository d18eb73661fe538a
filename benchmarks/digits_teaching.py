"""Schemes by who teaches whom, on digits: the arms of each on one seed, and what is promised of them."""

from __future__ import annotations

import copy
import dataclasses

import torch
from digits_world import (
    CPU,
    EPOCHS,
    SCARCE_EPOCHS,
    Arms,
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
    with_inputs,
    without_labels,
    world_of,
)
from torch import nn

from edgekd.data.counters import hash_counter
from edgekd.data.table import Table
from edgekd.distill.knowledge import kd
from edgekd.distill.scheme_settings import CollaborativeSettings, CollaborativeTerm, StudentFriendlySettings
from edgekd.distill.schemes.multi_teacher import multi_teacher
from edgekd.distill.schemes.peers import collaborative, online
from edgekd.distill.schemes.self_distillation import self_distillation
from edgekd.distill.schemes.student_friendly import student_friendly
from edgekd.quantize.phases import Quantize, quantization_aware
from edgekd.quantize.settings import QuantizationSettings
from edgekd.train.evaluate import outputs
from edgekd.train.world import Model, World


def offline_arms(seed: int) -> Arms:
    """How many bytes of the teacher differ afterwards."""
    train, test = split(seed)
    net = nn.Sequential(nn.Flatten(), nn.Linear(64, 256), nn.BatchNorm1d(256), nn.ReLU(), nn.Linear(256, 10))
    world = world_of({"teacher": model(lambda: net, 1000 + seed), "student": student(seed)}, train=train)
    fit(world, [recipe(10).alone("teacher", "teacher")], seed)
    before = copy.deepcopy(world.models["teacher"].network.state_dict())
    fit(world, [recipe(weight=0.9, task=0.1).taught("student", "teacher", "offline")], seed)
    after = world.models["teacher"].network.state_dict()
    changed = sum(
        a.numpy().tobytes() != b.numpy().tobytes() for a, b in zip(before.values(), after.values(), strict=True)
    )
    return {"changed tensors": float(changed), "none": 0.0, "student": accuracy(world, "student", test)}


def multi_teacher_arms(seed: int, teacher_epochs: int = SCARCE_EPOCHS, epochs: int = EPOCHS) -> Arms:
    """Teachers are trained on bootstraps of 50 labelled rows; the student learns on 1000 unlabelled ones."""
    train, test = split(seed)
    arms = {}
    for count in (5, 1):
        names = {f"teacher_{i}": teacher_epochs for i in range(count)}
        models = {name: teacher(100 * seed + i) for i, name in enumerate(names)}
        world = world_of(
            {**models, "student": student(seed)}, train=scarce(train, seed), unlabelled=without_labels(train)
        )
        *alone, last = multi_teacher(recipe(epochs), names)
        fit(world, [*alone, dataclasses.replace(last, data="unlabelled")], seed)
        arms[f"{count} teachers"] = accuracy(world, "student", test)
    return arms


def self_arms(seed: int, epochs: int = 200) -> Arms:
    """40% of the labels are drawn anew among the other classes."""
    train, test = split(seed)
    label, ids = train.targets["label"], torch.arange(len(train))
    wrong = hash_counter(seed, "wrong", 0, ids) % 1000 < 400
    other = (label + 1 + hash_counter(seed, "other", 0, ids) % 9) % 10
    noisy = Table(train.inputs, {"label": torch.where(wrong, other, label)}, train.ids)

    def make() -> Model:
        return model(lambda: mlp(64, 256, 256, 10), 2000 + seed)

    again, alone = world_of({"student": make()}, train=noisy), world_of({"student": make()}, train=noisy)
    fit(again, self_distillation(recipe(epochs), snapshot_epochs=15), seed)
    fit(alone, [recipe(epochs).alone("student", "alone")], seed)
    return {"born again": accuracy(again, "student", test), "CE": accuracy(alone, "student", test)}


def online_arms(seed: int) -> Arms:
    """Two peers on 50 labels; alone each has as many steps."""
    train, test = split(seed)
    few = scarce(train, seed)

    def peers() -> World:
        return world_of({"student": student(seed), "peer": student(seed + 50)}, train=few)

    plan = recipe(400, temperature=1.0, task=1.0)
    together, alone = fit(peers(), online(plan, ["peer"]), seed), peers()
    for name in ("student", "peer"):
        fit(alone, [plan.alone(name, name)], seed)
    return {
        name: sum(accuracy(world, who, test) for who in ("student", "peer")) / 2
        for name, world in (("peers", together), ("the same alone", alone))
    }


_TERMS: tuple[CollaborativeTerm, ...] = ("task", "distance", "angle", "peer", "past")


def collaborative_arms(seed: int) -> Arms:
    """Two peers on 50 labels, with all terms and with each left out."""
    train, test = split(seed)
    arms = {}
    for left_out in (None, *_TERMS):
        settings = CollaborativeSettings(terms=tuple(term for term in _TERMS if term != left_out))
        world = world_of({"student": student(seed, 64), "peer": student(seed + 50, 64)}, train=scarce(train, seed))
        fit(world, collaborative(recipe(200), ["peer"], settings), seed)
        found = [accuracy(world, name, test) for name in ("student", "peer")]
        arms["all terms" if left_out is None else f"without {left_out}"] = sum(found) / 2
    return arms


class Stages(nn.Module):
    """Two stages of convolutions on 8 x 8 pixels."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.first = nn.Sequential(nn.Conv2d(1, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU())
        self.second = nn.Sequential(
            nn.Conv2d(width, 2 * width, 3, 2, 1), nn.BatchNorm2d(2 * width), nn.ReLU(), nn.AdaptiveAvgPool2d(2)
        )
        self.head = nn.Linear(8 * width, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.second(self.first(x)).flatten(1))


def student_friendly_arms(seed: int) -> Arms:
    """KL(teacher, student) on test rows in 1/100 nats; the plain teacher learns as long, but without branches."""

    def as_image(table: Table) -> Table:
        return with_inputs(table, {"x": table.inputs["x"].view(-1, 1, 8, 8)})

    def distance(world: World, elder: str) -> float:
        said, own = (outputs(world, name, test, CPU)["logits"] for name in (elder, "student"))
        return 100 * float(kd(own, said, temperature=1.0))

    train, test = map(as_image, split(seed))
    plan = recipe(30, weight=0.9, task=0.1)
    world = world_of({"teacher": model(lambda: Stages(16), 1000 + seed)}, train=train)
    fit(world, [plan.alone("teacher", "teacher")], seed)
    plain, friendly = (
        world_of({**copy.deepcopy(world.models), "student": model(lambda: Stages(4), 2000 + seed)}, train=train)
        for _ in range(2)
    )
    fit(plain, [plan.alone("teacher", "longer"), plan.taught("student", "teacher", "offline")], seed)
    fit(friendly, student_friendly(plan, StudentFriendlySettings(), [("first", "first"), ("second", "second")]), seed)
    arms = {"KL to plain teacher": distance(plain, "teacher"), "KL to friendly teacher": distance(friendly, "friendly")}
    arms |= {"85% of it": 0.85 * arms["KL to plain teacher"], "plain teacher": accuracy(plain, "teacher", test)}
    return arms | {"friendly teacher": accuracy(friendly, "friendly", test)}


def quantization_aware_arms(seed: int, epochs: int = EPOCHS) -> Arms:
    """W2A2 of a student of 64 units: calibrated alone, taught by its float self without labels, and by labels.

    Plain PTQ takes the largest values as ranges; PTQ is what edgekd does unless told otherwise.
    """
    train, test = split(seed)
    original = world_of({"student": student(seed, 64)}, train=train)
    fit(original, [recipe(epochs).alone("student", "float")], seed)
    arms = {"float": accuracy(original, "student", test)}
    two = QuantizationSettings(weights=2, activations=2)
    plain = two.model_copy(update={"ranges": "minmax", "weight_ranges": "minmax", "bias_correction": False})
    plans = {
        "plain PTQ": (plain, 0, 0.0, True),
        "PTQ": (two, 0, 0.0, True),
        "KL without labels": (two, epochs, 0.0, True),
        "labels": (two, epochs, 1.0, False),
    }
    for name, (settings, learns, task, distill) in plans.items():
        quantize = Quantize("student", "quantized", settings)
        world = world_of(copy.deepcopy(original.models), train=train)
        guides = ["student"] if distill and learns else []
        phases = quantization_aware(recipe(learns, temperature=1.0, task=task), quantize, guides)
        arms[name] = accuracy(fit(world, phases, seed), "quantized", test)
    return arms


ROWS = {
    "offline": Row(
        "teacher weights and BatchNorm buffers are bit-identical afterwards",
        offline_arms,
        (Limit("changed tensors", "none", most=0.0),),
    ),
    "online": Row("peer mean >= the same peers alone", online_arms, (Limit("peers", "the same alone", least=0.0),)),
    "self": Row(
        "40% label noise, 200 epochs, 15-epoch snapshot: >= +12 points over CE",
        self_arms,
        (Limit("born again", "CE", least=12.0),),
    ),
    "collaborative": Row(
        "five ablation switches reported",
        collaborative_arms,
        tuple(Limit("all terms", f"without {term}") for term in _TERMS),
    ),
    "multi_teacher": Row(
        "5 bootstrap teachers vs 1: >= +2", multi_teacher_arms, (Limit("5 teachers", "1 teachers", least=2.0),)
    ),
    "student_friendly": Row(
        "KL(teacher, student) falls >= 15%, teacher loses <= 1 point",
        student_friendly_arms,
        (
            Limit("KL to friendly teacher", "85% of it", most=0.0),
            Limit("friendly teacher", "plain teacher", least=-1.0),
        ),
    ),
    "quantization_aware": Row(
        "W2A2, no labels, T = 1: >= PTQ + 8 and within .5 of full-label QAT",
        quantization_aware_arms,
        (
            Limit("KL without labels", "plain PTQ", least=8.0),
            Limit("KL without labels", "PTQ"),
            Limit("KL without labels", "labels", least=-0.5),
        ),
    ),
}
