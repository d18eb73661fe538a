"""Edits between phases: the best of several models, their average, and tables made of others (PHASES.md)."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from edgekd.data.counters import hash_counter, permutation
from edgekd.data.derived import derive
from edgekd.data.noise import NoiseTable
from edgekd.data.table import Rows
from edgekd.errors import ConfigError, TrainingError
from edgekd.train.evaluate import outputs, score
from edgekd.train.references import parse
from edgekd.train.run import Run
from edgekd.train.world import World

_TRIES = 1000


@dataclass(frozen=True)
class Best:
    """Edit: the target becomes a copy of the model that scores best on a table; of equals, the first.

    Without that table the training split decides, and without targets the first model is taken.
    """

    models: tuple[str, ...]
    target: str
    table: str = "validation"

    @property
    def touches(self) -> tuple[str, ...]:
        return (self.target,)

    def decide(self, world: World, run: Run) -> dict[str, Any]:
        table = table_named(world, self.table if self.table in world.tables else "train")
        merits = []
        for name in self.models:
            first = next(iter(score(world, name, table, run.device, run.ranks).values()), None)
            merits.append(first.value * first.better if first is not None else 0.0)
        return {"model": self.models[merits.index(max(merits))]}

    def apply(self, world: World, decision: dict[str, Any]) -> None:
        world.models[self.target] = copy.deepcopy(world.models[decision["model"]])


@dataclass(frozen=True)
class Average:
    """Edit: the target becomes the mean of models of one kind, weights and buffers (McMahan et al. 2017, FedAvg).

    `shares`: how much each counts, by default all alike. Whole numbers (counts of batches) are those of the first.
    """

    models: tuple[str, ...]
    target: str
    shares: tuple[float, ...] = ()

    @property
    def touches(self) -> tuple[str, ...]:
        return (self.target,)

    @torch.no_grad()
    def __call__(self, world: World, seed: int) -> None:
        shares = self.shares or (1.0,) * len(self.models)
        mean = copy.deepcopy(world.models[self.models[0]])
        states = [world.models[name].network.state_dict() for name in self.models]
        if any(_kind(other) != _kind(states[0]) for other in states):
            raise ConfigError(
                f"{', '.join(self.models)} cannot be averaged: they are not networks of one kind",
                hint="give them the same model, or let them share their outputs instead of their weights",
            )
        for name, value in mean.network.state_dict().items():
            if value.is_floating_point():
                parts = [state[name] * (s / sum(shares)) for s, state in zip(shares, states, strict=True)]
                value.copy_(torch.stack(parts).sum(0))
        world.models[self.target] = mean


def _kind(state: dict[str, Tensor]) -> dict[str, torch.Size]:
    return {name: value.shape for name, value in state.items()}


@dataclass(frozen=True)
class Bootstrap:
    """Edit: a table of as many rows, drawn with replacement (Breiman 1996); other targets draw other rows."""

    table: str
    target: str

    @property
    def touches(self) -> tuple[str, ...]:
        return ()

    def __call__(self, world: World, seed: int) -> None:
        table = table_named(world, self.table)
        drawn = hash_counter(seed, f"bootstrap {self.target}", 0, torch.arange(len(table))) % len(table)
        world.tables[self.target] = derive(table, drawn)


@dataclass(frozen=True)
class Subset:
    """Edit: a table of the rows that have one of some classes in a column, and of these a share drawn by seed."""

    table: str
    target: str
    share: float = 1.0
    classes: tuple[int, ...] = ()
    column: str = "label"

    @property
    def touches(self) -> tuple[str, ...]:
        return ()

    def __call__(self, world: World, seed: int) -> None:
        table = table_named(world, self.table)
        rows = torch.arange(len(table))
        if self.classes:
            rows = rows[torch.isin(_classes(table, self.column, self.table), torch.tensor(self.classes))]
        order = permutation(seed, f"subset {self.target}", 0, len(rows))[: round(self.share * len(rows))]
        world.tables[self.target] = derive(table, rows[torch.sort(order).values])


@dataclass(frozen=True)
class Split:
    """Edit: a table is dealt out, each row to one of several tables.

    Evenly, or with a `concentration` unevenly by class: the shares of each class in the column are drawn from a
    symmetric Dirichlet distribution (Hsu et al. 2019); small values leave each target with few classes. `least` is how
    many rows each must have; shares are drawn anew until it is so.
    """

    table: str
    targets: tuple[str, ...]
    concentration: float | None = None
    column: str = "label"
    least: int = 1

    @property
    def touches(self) -> tuple[str, ...]:
        return ()

    def __call__(self, world: World, seed: int) -> None:
        table = table_named(world, self.table)
        order = permutation(seed, "split", 0, len(table))
        parts = list(torch.tensor_split(order, len(self.targets)))
        if self.concentration is not None:
            labels = _classes(table, self.column, self.table)[order]
            parts = self._uneven([order[labels == label] for label in torch.unique(labels)], self.concentration, seed)
        for target, rows in zip(self.targets, parts, strict=True):
            world.tables[target] = derive(table, torch.sort(rows).values)

    def _uneven(self, classes: Sequence[Tensor], concentration: float, seed: int) -> list[Tensor]:
        """Rows of each target, from the rows of each class."""
        draw = np.random.default_rng(seed)
        count = len(self.targets)
        for _ in range(_TRIES):
            parts: list[list[Tensor]] = [[] for _ in self.targets]
            for rows in classes:
                ends = np.cumsum(draw.dirichlet([concentration] * count))[:-1] * len(rows)
                for part, own in zip(parts, torch.tensor_split(rows, ends.round().astype(int).tolist()), strict=True):
                    part.append(own)
            found = [torch.cat(part) for part in parts]
            if min(map(len, found)) >= self.least:
                return found
        raise ConfigError(
            f"{self.table} cannot be split so that each of {count} has {self.least} rows",
            hint="raise the concentration, or split among fewer",
        )


@dataclass(frozen=True)
class Relabel:
    """Edit: a table with a column of what a model says of each row, seen without augmentation (Lee 2013).

    The column holds the most probable class, or with `soft` the output itself. `model` is a reference of an output,
    "teacher" or "teacher[logits]"; of several the outputs are averaged (FedMD, Li and Wang 2019). `confident`: only
    rows that are given a class with at least this probability are kept.
    """

    model: str | tuple[str, ...]
    table: str
    target: str
    column: str
    confident: float | None = None
    soft: bool = False

    @property
    def touches(self) -> tuple[str, ...]:
        return ()

    def decide(self, world: World, run: Run) -> dict[str, Any]:
        table = table_named(world, self.table)
        texts = (self.model,) if isinstance(self.model, str) else self.model
        output = torch.stack([_output(world, text, table, run) for text in texts]).mean(0)
        values = output if self.soft else output.argmax(1)
        rows = torch.arange(len(table))
        if self.confident is not None:
            sure = output.softmax(1).amax(1).flatten(1) if output.dim() > 2 else output.softmax(1).amax(1)[:, None]
            rows = rows[sure.mean(1) >= self.confident]
            if not len(rows):
                raise TrainingError(
                    f"{self.model} is sure of no row of {self.table}: none has a probability of {self.confident}",
                    hint="lower `confident`, or train the model further",
                )
        return {"rows": rows, "values": values[rows]}

    def apply(self, world: World, decision: dict[str, Any]) -> None:
        table = table_named(world, self.table)
        world.tables[self.target] = derive(table, decision["rows"], {self.column: decision["values"]})


@dataclass(frozen=True)
class Noise:
    """Edit: a table of standard normal rows in the input `column`, new ones in each epoch (noise.py)."""

    target: str
    column: str
    shape: tuple[int, ...]
    rows: int

    @property
    def touches(self) -> tuple[str, ...]:
        return ()

    def __call__(self, world: World, seed: int) -> None:
        world.tables[self.target] = NoiseTable(self.column, self.rows, self.shape, seed)


def table_named(world: World, name: str) -> Rows:
    """A table of the world; raises ConfigError for one that it has not."""
    if name not in world.tables:
        raise ConfigError(f"there is no table {name!r}", hint=f"there are: {', '.join(sorted(world.tables))}")
    return world.tables[name]


def _classes(table: Rows, column: str, name: str) -> Tensor:
    """A column of classes, int64 (N,), on the CPU."""
    found = table.targets.get(column)
    if found is None or found.is_floating_point() or found.dim() != 1:
        raise ConfigError(
            f"the table {name!r} has no column {column!r} of classes",
            hint=f"its columns are: {', '.join(sorted(table.targets)) or 'none'}",
        )
    return found.cpu()


def _output(world: World, text: str, table: Rows, run: Run) -> Tensor:
    """One output of a model over a table, on the CPU."""
    reference = parse(text)
    if reference.name not in world.models:
        raise ConfigError(f"there is no model {reference.name!r}", hint=f"there are: {', '.join(world.models)}")
    if not len(table):
        raise TrainingError(f"{text} has nothing to label: the table is empty", hint="use a table with rows")
    found = outputs(world, reference.name, table, run.device, run.ranks)
    if reference.output is None and len(found) > 1:
        raise ConfigError(
            f"{text!r} has several outputs: {', '.join(found)}", hint=f"write e.g. {text}[{next(iter(found))}]"
        )
    return found[reference.output or next(iter(found))]
