"""The digits of METHODS.md for the benchmark of schemes: data, networks, and one way to train."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from edgekd.data.settings import AugmentSettings
from edgekd.data.table import Table
from edgekd.data.views import Views
from edgekd.distill.knowledge_settings import KnowledgeSettings
from edgekd.distill.schemes.recipe import Recipe
from edgekd.tasks import heads_of
from edgekd.train.evaluate import score
from edgekd.train.trainer import Run, train
from edgekd.train.world import Model, Optim, Phase, World

CPU = torch.device("cpu")
HEADS = heads_of("classification", ("label",))
OPTIM = Optim("adam", lr=2e-3)
BATCH, EPOCHS, SCARCE, SCARCE_EPOCHS = 64, 60, 50, 400
HIDDEN = 16
_TRAIN = 1000

Arms = dict[str, float]


@dataclass(frozen=True)
class Limit:
    """How far the first arm must lie over the second, in the arms' unit: at least, or at most, so much."""

    arm: str
    over: str
    least: float | None = None
    most: float | None = None


@dataclass(frozen=True)
class Row:
    """A scheme's line in METHODS.md: what is promised, what one seed gives, and by which differences it is judged.

    `arms` takes the seed; and, where it can be shown in less time, how long to train.
    """

    works_when: str
    arms: Callable[..., Arms]
    limits: tuple[Limit, ...]


def split(seed: int) -> tuple[Table, Table]:
    """Training (1000) and test (797) rows, stratified: `x` of 64 pixels in 0 .. 1, `label`."""
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    x, y = load_digits(return_X_y=True)
    rows = torch.arange(len(y))
    kept, held = train_test_split(rows.numpy(), train_size=_TRAIN, random_state=seed, stratify=y)
    whole = Table({"x": torch.from_numpy(x).float() / 16}, {"label": torch.from_numpy(y)}, rows)
    return whole.take(torch.as_tensor(kept)), whole.take(torch.as_tensor(held))


def scarce(table: Table, seed: int, count: int = SCARCE) -> Table:
    """So many rows of a table, stratified."""
    from sklearn.model_selection import train_test_split

    rows, _ = train_test_split(
        torch.arange(len(table)).numpy(), train_size=count, random_state=seed, stratify=table.targets["label"].numpy()
    )
    return table.take(torch.as_tensor(rows))


def without_labels(table: Table) -> Table:
    return Table(table.inputs, {}, table.ids)


def with_inputs(table: Table, inputs: Mapping[str, Tensor]) -> Table:
    """A table with other inputs."""
    return Table(dict(inputs), table.targets, table.ids)


def mlp(*sizes: int, dropout: float = 0.0) -> nn.Module:
    """Linear layers with ReLU between; inputs of any shape are flattened."""
    layers: list[nn.Module] = [nn.Flatten()]
    for number, (inputs, outputs) in enumerate(itertools.pairwise(sizes)):
        hidden: list[nn.Module] = [nn.ReLU(), nn.Dropout(dropout)] if dropout else [nn.ReLU()]
        layers += [*(hidden if number else []), nn.Linear(inputs, outputs)]
    return nn.Sequential(*layers)


class Heads(nn.Module):
    """A body with several linear heads, which gives a dictionary."""

    def __init__(self, hidden: int, classes: Mapping[str, int]) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(64, hidden), nn.ReLU())
        self.heads = nn.ModuleDict({name: nn.Linear(hidden, count) for name, count in classes.items()})

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        hidden = self.body(x)
        return {name: head(hidden) for name, head in self.heads.items()}


def model(make: Any, seed: int, inputs: Sequence[str] = ("x",), outputs: Sequence[str] = ("logits",)) -> Model:
    """A network from its own seed; `make` takes no arguments."""
    torch.manual_seed(seed)
    return Model(make(), tuple(inputs), tuple(outputs), fresh=make)


def teacher(seed: int, inputs: Sequence[str] = ("x",), dropout: float = 0.0) -> Model:
    return model(lambda: mlp(64, 256, 256, 10, dropout=dropout), 1000 + seed, inputs)


def student(seed: int, hidden: int = HIDDEN, pixels: int = 64, inputs: Sequence[str] = ("x",)) -> Model:
    return model(lambda: mlp(pixels, hidden, 10), 2000 + seed, inputs)


def recipe(
    epochs: int = EPOCHS, *, weight: float = 1.0, temperature: float = 4.0, task: float = 0.0, **own: Any
) -> Recipe:
    """How all learn: kd with this weight and temperature beside the task's own loss."""
    kd = KnowledgeSettings.model_validate({"kd": {"weight": weight, "temperature": temperature}})
    return dataclasses.replace(Recipe(HEADS, OPTIM, epochs, task_weight=task, knowledge=(kd,)), **own)


def fit(world: World, phases: Sequence[Phase], seed: int, augment: AugmentSettings | None = None) -> World:
    """Run phases on the world, each arm from the same seed."""
    # Nobody looks at a split on the way: watching takes time and changes nothing.
    train(
        world, [dataclasses.replace(p, watch=None) for p in phases], Run(seed, BATCH, CPU, "f32", Views(augment, seed))
    )
    return world


def world_of(models: Mapping[str, Model], **tables: Table) -> World:
    return World(dict(models), dict(tables), HEADS)


def accuracy(world: World, name: str, table: Table, metric: str = "accuracy") -> float:
    """Points on a table."""
    return 100 * score(world, name, table, CPU)[metric].value


_trained: dict[int, Model] = {}


def trained_teacher(seed: int) -> Model:
    """The teacher of a seed, trained on all labels; made once."""
    if seed not in _trained:
        rows, _ = split(seed)
        world = world_of({"teacher": teacher(seed)}, train=rows)
        fit(world, [recipe().alone("teacher", "teacher")], seed)
        _trained[seed] = world.models["teacher"]
    return _trained[seed]
