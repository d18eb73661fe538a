"""edgekd's arm of the benchmarks of training: one epoch of its trainer on a table of images."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from plain_loop import CPU, MEAN, STD, Samples, decoded
from torch import nn

from edgekd.data.settings import AugmentSettings
from edgekd.data.table import Normalization, Table
from edgekd.data.views import Views
from edgekd.distill.schemes.offline import offline, supervised
from edgekd.distill.settings import DistillationSettings
from edgekd.distill.teacher_cache import Head, TeacherCache, open_cache
from edgekd.store import Store
from edgekd.tasks import heads_of
from edgekd.train.precision import choose_precision
from edgekd.train.settings import TrainSettings
from edgekd.train.trainer import Epoch, Run, train
from edgekd.train.world import Model, Optim, World

HEADS = heads_of("classification", ("label",))
OPTIM = Optim("sgd", lr=0.05, weight_decay=5e-4)


def table_of(rows: Samples) -> Table:
    """Images and labels as edgekd keeps them: decoded once, uint8."""
    pixels = np.stack([np.array(decoded(data)) for data, _ in rows])
    image = torch.from_numpy(pixels).permute(0, 3, 1, 2).contiguous()
    return Table({"image": image}, {"label": torch.tensor([label for _, label in rows])}, torch.arange(len(rows)))


def precision_on(device: torch.device) -> str:
    return choose_precision(TrainSettings(), device)


def epochs(
    student: nn.Module,
    teacher: nn.Module | None,
    table: Table,
    *,
    batch: int,
    cache: TeacherCache | None = None,
    device: torch.device = CPU,
    count: int = 1,
    views: int | Literal["all"] = 16,
    optim: Optim = OPTIM,
    compile: str = "off",
    tell: Callable[[Epoch], None] | None = None,
) -> None:
    """Epochs of edgekd's trainer: the student learns from the teacher and the labels, without a teacher from labels."""
    world = World({"student": Model(student, ("image",), ("logits",))}, {"train": table}, HEADS)
    world.normalization = {"image": Normalization(MEAN, STD, 1 / 255)}
    phases = supervised("student", HEADS, optim, count, None)
    if teacher is not None:
        world.models["teacher"] = Model(teacher.eval(), ("image",), ("logits",))
        phases = offline(HEADS, DistillationSettings(), optim, count, None)
    caches = {"teacher": cache} if cache is not None else {}
    seen = views_of(views)
    train(
        world,
        phases,
        Run(0, batch, device, precision_on(device), seen, tell=tell, caches=caches, compile=compile),
    )


def views_of(views: int | Literal["all"]) -> Views:
    """Crops from 4 pixels of padding, and flips."""
    return Views(AugmentSettings(crop=4, flip=True, views=views), 0)


def new_cache(samples: int, folder: Path, views: int = 16) -> TeacherCache:
    """An empty cache of a teacher's logits for 10 classes, in a folder of its own."""
    heads, ids = [Head("logits", (10,))], torch.arange(samples)
    cache, words = open_cache(Store(folder), {}, heads, dtype="f32", ids=ids, views=views, max_bytes=10**10)
    if cache is None:
        raise SystemExit(words)
    return cache
