"""The plain data of training: a world of models and tables, and phases that change it (PHASES.md).

A scheme of distillation is a list of phases; the one trainer (trainer.py) runs them all. Everything but the world
is frozen.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from edgekd.config.settings import did_you_mean
from edgekd.data.table import Normalization, Rows
from edgekd.errors import ConfigError
from edgekd.tasks import HeadSettings

if TYPE_CHECKING:
    from edgekd.train.run import Run

Side = str | tuple[str, ...]


def texts_of(side: Side | None) -> tuple[str, ...]:
    """The references of a side."""
    return () if side is None else (side,) if isinstance(side, str) else side


@dataclass
class Model:
    """A network with named inputs and outputs; `fresh` builds an untrained one of the same kind."""

    network: nn.Module
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    fresh: Callable[[], nn.Module] | None = None

    def __call__(self, feeds: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Named inputs, each (N, ..), to named outputs; the network itself is called by position."""
        return named_outputs(self.network(*(feeds[name] for name in self.inputs)), self.outputs)

    @torch.no_grad()
    def answer(self, feeds: Mapping[str, Tensor], rows: int) -> dict[str, Tensor]:
        """The outputs of a network that guides, for feeds of at most `rows` rows.

        The last bits of a row may depend on how many there are, so a guide always sees `rows` of them: a batch that is
        a little shorter is filled up with its own first rows.
        """
        inputs = [feeds[name] for name in self.inputs]
        count = len(inputs[0])
        if count < rows:
            places = torch.arange(rows, device=inputs[0].device) % count
            inputs = [_in_layout(x[places], like=x) for x in inputs]
        outputs = named_outputs(self.network(*inputs), self.outputs)
        return {name: value[:count] for name, value in outputs.items()} if count < rows else outputs


def _in_layout(x: Tensor, *, like: Tensor) -> Tensor:
    """Indexing forgets channels-last, and another layout is another kernel."""
    last = like.dim() == 4 and like.is_contiguous(memory_format=torch.channels_last)
    return x.contiguous(memory_format=torch.channels_last) if last else x


def named_outputs(result: Any, names: tuple[str, ...]) -> dict[str, Tensor]:
    """What a network returned (a tensor, a tuple, a dictionary) as a dictionary by output names."""
    if isinstance(result, Mapping):
        return {name: result[name] for name in names}
    values = tuple(result) if isinstance(result, (tuple, list)) else (result,)
    return dict(zip(names, values, strict=True))


@dataclass
class World:
    """Everything that phases read and change: models by name, tables by name, and what is needed to feed them."""

    models: dict[str, Model]
    tables: dict[str, Rows]
    heads: tuple[HeadSettings, ...]
    normalization: Mapping[str, Normalization] = field(default_factory=dict)


def model_named(world: World, name: str) -> Model:
    """A model of the world; raises ConfigError for one that it has not."""
    if name not in world.models:
        raise ConfigError(f"there is no model {name!r}", hint=did_you_mean(name, world.models))
    return world.models[name]


@dataclass(frozen=True)
class Term:
    """One addend of a loss: weight * knowledge(student side, teacher side, **settings).

    Sides are references (references.py): "student", "student[logits]", "student.layer2", "teacher.bn1:in".
    The teacher side never gets a gradient unless `live`. `also` maps further keyword arguments to references, e.g.
    {"target": "label"}. `ramp` (a, b): the weight rises linearly from 0 at epoch a to its full value at epoch b.
    """

    knowledge: str
    student: Side
    teacher: Side | None = None
    weight: float = 1.0
    settings: Mapping[str, Any] = field(default_factory=dict)
    also: Mapping[str, str] = field(default_factory=dict)
    ramp: tuple[float, float] | None = None
    live: bool = False
    label: str = ""

    @property
    def name(self) -> str:
        """How the term is called in curves and messages."""
        return self.label or self.knowledge


@dataclass(frozen=True)
class Optim:
    """A model learns by gradient: optimizer, peak learning rate, schedule over the phase, weight decay, clipping.

    `warmup` is in epochs, None is one that fits the phase; `milestones` are shares of the phase at which the step
    schedule multiplies by `gamma`.
    """

    name: str = "sgd"
    lr: float = 0.1
    schedule: str = "cosine"
    milestones: tuple[float, ...] = ()
    gamma: float = 0.1
    warmup: float | None = 0.0
    weight_decay: float = 0.0
    momentum: float = 0.9
    clip: float | None = None


@dataclass(frozen=True)
class Follow:
    """A model learns by following another: an average of its weights with `decay`; 0 copies.

    `rising`: early steps have a smaller decay, (1 + step) / (10 + step), so that a short run forgets where it began.
    """

    source: str
    decay: float = 0.0
    rising: bool = False


@dataclass(frozen=True)
class Move:
    """Who learns how, and from which terms; acts on every k-th step."""

    learn: Mapping[str, Optim | Follow]
    terms: tuple[Term, ...] = ()
    every: int = 1


@dataclass(frozen=True)
class Watch:
    """Score a model on a table after each epoch; the best state is kept under the name `keep`.

    `patience`: the phase ends after so many epochs in a row without a better score.
    """

    model: str
    table: str = "validation"
    keep: str | None = None
    patience: int | None = None


class Change(Protocol):
    """An edit that follows from the world's make-up and a seed of its own, whatever the models have learned.

    On the way to a checkpoint it runs again, on models that are not trained yet, only to make what the checkpoint
    fills: `touches` names every model that it makes or changes. Tables it makes anew.
    """

    @property
    def touches(self) -> tuple[str, ...]:
        """Names of the models that are made or changed."""

    def __call__(self, world: World, seed: int) -> None:
        """Change the world."""


@runtime_checkable
class Decision(Protocol):
    """An edit that looks at trained models: it decides once, and checkpoints keep what was decided."""

    @property
    def touches(self) -> tuple[str, ...]:
        """Names of the models that are made or changed."""

    def decide(self, world: World, run: Run) -> dict[str, Any]:
        """What is found, as strings, numbers, and tensors on the CPU."""

    def apply(self, world: World, decision: dict[str, Any]) -> None:
        """Change the world as was decided, now or when a checkpoint is taken up."""


Edit = Change | Decision  # of models or tables, at the start of a phase; each is a frozen dataclass


@dataclass(frozen=True)
class Phase:
    """First the edits, then for some epochs the moves on batches of one table, in order."""

    name: str
    moves: tuple[Move, ...] = ()
    epochs: int = 0
    start: tuple[Edit, ...] = ()
    data: str = "train"
    watch: Watch | None = None

    def learners(self) -> set[str]:
        """Names of the models that change in this phase; all others are frozen guides."""
        kept = {self.watch.keep} if self.watch and self.watch.keep else set()
        return {name for move in self.moves for name in move.learn} | kept


@dataclass(frozen=True)
class Copy:
    """Edit: the target becomes a copy of the source."""

    source: str
    target: str

    @property
    def touches(self) -> tuple[str, ...]:
        return (self.target,)

    def __call__(self, world: World, seed: int) -> None:
        world.models[self.target] = copy.deepcopy(model_named(world, self.source))


@dataclass(frozen=True)
class Fresh:
    """Edit: a model starts again from seeded, untrained weights."""

    model: str

    @property
    def touches(self) -> tuple[str, ...]:
        return (self.model,)

    def __call__(self, world: World, seed: int) -> None:
        model = model_named(world, self.model)
        if model.fresh is None:
            raise ValueError(f"{self.model} has no recipe to build it afresh")
        torch.default_generator.manual_seed(seed)
        model.network = model.fresh()
