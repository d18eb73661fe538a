"""The rows of knowledge_cifar10.py: sizes, networks, and the phases of each knowledge and scheme."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from edgekd.data.settings import AugmentSettings, DataSettings, LimitSettings, ParquetSettings
from edgekd.data.source import Data, open_data
from edgekd.data.views import Views
from edgekd.distill.knowledge_settings import KnowledgeSettings
from edgekd.distill.pairing import pair, stages_of
from edgekd.distill.schemes.choose import Cast, phases_of
from edgekd.distill.schemes.recipe import Recipe
from edgekd.distill.settings import DistillationSettings
from edgekd.models.resolve import build
from edgekd.models.settings import ModelSettings
from edgekd.tasks import heads_of
from edgekd.train.feed import to_input
from edgekd.train.trainer import Run
from edgekd.train.world import Model, Optim, Phase, World

HEADS = heads_of("classification", ("label",))
_PAPER_EPOCHS = 240  # of the CIFAR recipes that the default ramps belong to


@dataclass(frozen=True)
class Size:
    """How large the experiment is. `images`: of the training split; None takes all."""

    images: int | None
    epochs: int
    teacher_epochs: int
    batch: int
    teacher: str
    student: str
    assistant: str
    validation: int = 1000
    test: int | None = None
    lr: float = 0.05

    def optim(self) -> Optim:
        return Optim("sgd", lr=self.lr * self.batch / 64, warmup=1.0, weight_decay=5e-4)


SIZES = {
    "small": Size(10_000, 6, 30, 64, "resnet20", "resnet8", "resnet14"),
    "large": Size(None, 100, 160, 128, "resnet56", "resnet20", "resnet32", validation=5000),
    "trial": Size(512, 1, 1, 64, "resnet14", "resnet8", "resnet8", validation=128, test=512),
}


@dataclass(frozen=True)
class Row:
    """One line of the table.

    Attributes:
        family: of the knowledge, or `scheme`.
        settings: of distillation, as in a pipeline file; none: the task's own loss alone.
        longer: how many times the epochs of the others, where there are no settings.
        shares: a row with the same phases up to the last, which are then run once for both.
    """

    family: str
    settings: Mapping[str, Any] | None = None
    longer: int = 1
    shares: str | None = None
    sizes: tuple[str, ...] = tuple(SIZES)


def _offline(family: str, name: str, task_weight: float = 1.0, *, only: str | None = None, **own: Any) -> Row:
    settings = {"task_weight": task_weight, "knowledge": ({name: own},)}
    return Row(family, settings, sizes=(only,) if only else tuple(SIZES))


_TERMS = ("task", "distance", "angle", "peer", "past")


def _without(term: str) -> Row:
    left = tuple(name for name in _TERMS if name != term)
    settings = {"scheme": "collaborative", "collaborative": {"terms": left}}
    return Row("scheme", settings, shares="collaborative")


ROWS: dict[str, Row] = {
    "cross_entropy": Row("task"),
    "cross_entropy, epochs x2": Row("task", longer=2),
    "kd": _offline("response", "kd", 0.1),
    "dkd": _offline("response", "dkd"),
    "dist": _offline("response", "dist"),
    "logit_std": _offline("response", "logit_std", 0.1),
    "hint": _offline("intermediate", "hint"),
    "attention": _offline("intermediate", "attention"),
    "nst": _offline("intermediate", "nst"),
    "review": _offline("intermediate", "review"),
    "similarity": _offline("relation", "similarity"),
    "rkd": _offline("relation", "rkd"),
    "correlation": _offline("relation", "correlation"),
    "pkt": _offline("relation", "pkt"),
    "vid": _offline("information", "vid"),
    "crd": _offline("information", "crd"),
    "online": Row("scheme", {"scheme": "online"}),
    "self": Row("scheme", {"scheme": "self"}),
    "assistant": Row("scheme", {"scheme": "assistant"}),
    "student_friendly": Row("scheme", {"scheme": "student_friendly"}),
    "collaborative": Row("scheme", {"scheme": "collaborative"}),
    **{f"collaborative without {term}": _without(term) for term in _TERMS},
    "reverse_kl": _offline("response", "reverse_kl", 0.1, only="large"),
    "jensen_shannon": _offline("response", "jensen_shannon", 0.1, only="large"),
    "mse_logits": _offline("response", "mse_logits", 0.1, only="large"),
    "factor": _offline("intermediate", "factor", only="large"),
    "boundary": _offline("intermediate", "boundary", only="large"),
    "fsp": _offline("intermediate", "fsp", only="large"),
    "hierarchical_context": _offline("intermediate", "hierarchical_context", only="large"),
    "graph": _offline("relation", "graph", only="large"),
    "multi_teacher": Row("scheme", {"scheme": "multi_teacher", "teachers": 3}, sizes=("large",)),
}


@dataclass
class Bench:
    """The data and networks of one size, on one device."""

    parquet: Path
    size: Size
    device: torch.device
    precision: str
    teacher_state: Mapping[str, torch.Tensor] = field(default_factory=dict)

    @functools.cached_property
    def data(self) -> Data:
        size = self.size
        settings = DataSettings(
            parquet=ParquetSettings(path=str(self.parquet.resolve()), image="img", label="label"),
            validation=0.1,
            augment=self.augment,
            limit=LimitSettings(train=size.images, validation=size.validation, test=size.test),
            stream="never",
        )
        return open_data(settings, base=Path(), seed=0)

    @property
    def augment(self) -> AugmentSettings:
        return AugmentSettings(crop=4, flip=True, views="all")

    def run(self, seed: int, **more: Any) -> Run:
        return Run(seed, self.size.batch, self.device, self.precision, Views(self.augment, seed), **more)

    def model(self, settings: ModelSettings, seed: int) -> Model:
        image = self.data.load("train").inputs["image"]
        classes = self.data.classes()["label"].count
        facts = {"num_classes": classes, "in_channels": image.shape[1], "image_size": image.shape[-1]}

        def fresh() -> torch.nn.Module:
            return build(settings.model, settings.args, Path(), facts)

        torch.manual_seed(seed)
        return Model(fresh(), ("image",), ("logits",), fresh)

    def world(self) -> World:
        tables = {split: self.data.load(split) for split in ("train", "validation")}
        return World({}, tables, HEADS, self.data.normalization())

    def teacher(self) -> Model:
        """The trained teacher, the same for all."""
        model = self.model(ModelSettings(model=self.size.teacher), 0)
        model.network.load_state_dict(self.teacher_state)
        return model

    def recipe(self, world: World, settings: DistillationSettings | None, longer: int = 1) -> Recipe:
        size = self.size
        recipe = Recipe(HEADS, size.optim(), size.epochs * longer)
        if settings is None:
            return recipe

        def pairs(item: KnowledgeSettings, student: str, teacher: str) -> Sequence[tuple[str, str]]:
            return self._pairs(world, student, teacher, item.name)

        taught = settings.taught()
        knowledge = None if taught is None else tuple(self._ramped(item) for item in taught)
        return dataclasses.replace(recipe, task_weight=settings.task(), knowledge=knowledge, pairs=pairs)

    def cast(self, row: Row, seed: int) -> tuple[World, list[Phase]]:
        """A world with the untrained networks of a row, and its phases; networks of one seed start alike in all."""
        world = self.world()
        student = ModelSettings(model=self.size.student)
        world.models["student"] = self.model(student, 100 * seed + 1)
        if row.settings is None:
            return world, [self.recipe(world, None, row.longer).alone("student", "alone")]
        given = dict(row.settings)
        if given.get("scheme") == "assistant":
            given["assistants"] = ({"model": self.size.assistant},)
        settings = DistillationSettings.model_validate(given)
        if settings.uses_teacher:
            world.models["teacher"] = self.teacher()
        beside = settings.beside(student, ModelSettings(model=self.size.teacher))
        for number, (name, network) in enumerate(beside.items(), start=2):
            world.models[name] = self.model(network, 100 * seed + number)
        recipe = self.recipe(world, settings)

        def stages() -> Sequence[tuple[str, str]]:
            return self._pairs(world, "student", "teacher", "student_friendly")

        return world, phases_of(recipe, settings, Cast([*beside], settings.uses_teacher, stages))

    def _pairs(self, world: World, student: str, teacher: str, knowledge: str) -> Sequence[tuple[str, str]]:
        """Stages of two models of the world that a knowledge or a scheme joins."""
        found = [stages_of(world.models[name], self._example(world)) for name in (student, teacher)]
        return pair(found[0], found[1], knowledge)

    def _example(self, world: World) -> dict[str, torch.Tensor]:
        images = world.tables["train"].take(torch.arange(2)).inputs["image"]
        return {"image": to_input(world, "image", images, self.device).contiguous()}

    def _ramped(self, item: KnowledgeSettings) -> KnowledgeSettings:
        """A ramp takes the same share of the run as in the papers."""
        if not item.ramp:
            return item
        ramp = item.ramp * self.size.epochs / _PAPER_EPOCHS
        return KnowledgeSettings.model_validate({item.name: {**item.settings.canonical(), "ramp": ramp}})


def with_chosen(phases: Sequence[Phase]) -> list[Phase]:
    """Phases of which the one that trains the student last also keeps its best epoch, by validation, as `chosen`."""
    last = max(n for n, p in enumerate(phases) if p.epochs and p.watch is not None and p.watch.model == "student")
    watch = phases[last].watch
    assert watch is not None
    changed = dataclasses.replace(phases[last], watch=dataclasses.replace(watch, keep="chosen"))
    return [changed if n == last else phase for n, phase in enumerate(phases)]
