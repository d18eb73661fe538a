"""The loss of one move as a module: what is differentiated, and what DistributedDataParallel wraps."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from edgekd.train.adapters import adapter_name
from edgekd.train.blame import blamed, check_scalar
from edgekd.train.distributed import Ranks
from edgekd.train.feed import Batch
from edgekd.train.knowledge import knowledge_named
from edgekd.train.precision import autocast, full
from edgekd.train.references import Taps, Values
from edgekd.train.world import Move, Optim, Side, Term, World, texts_of

Known = Mapping[str, dict[str, Tensor]]


@dataclass(frozen=True)
class Part:
    """Which part of a step a batch is.

    Attributes:
        epoch: where the step lies in the phase, in epochs.
        start: its first row among the rows of all processes in this turn.
        total: how many those are.
        rows: how many of them are this part's.
        full: rows of the largest part of the epoch.
        share: its rows over those of the whole step.
    """

    epoch: float
    start: int
    total: int
    rows: int
    full: int
    share: float


class Objective(nn.Module):
    """The sum of a move's terms. Its parameters are those of the move's learners; guides stay outside."""

    def __init__(
        self, world: World, move: Move, taps: Taps, precision: str, device: torch.device, ranks: Ranks
    ) -> None:
        super().__init__()
        self.names = {name for name, rule in move.learn.items() if isinstance(rule, Optim)}
        self.learners = nn.ModuleDict({name: world.models[name].network for name in sorted(self.names)})
        self._world, self._terms, self._taps = world, move.terms, taps
        self._knowledges = [knowledge_named(term.knowledge) for term in move.terms]
        self._precision, self._device, self._ranks = precision, device, ranks

    def forward(self, batch: Batch, known: Known, part: Part) -> tuple[Tensor, list[Tensor]]:
        """What to differentiate, and the mean of each term over this part, detached.

        The gradient that processes average and parts add up is that of the mean over the whole step.
        """
        with autocast(self._precision, self._device):
            values = Values(self._world, self._taps, batch, self.names, known, part.full)
            pairs = zip(self._terms, self._knowledges, strict=True)
            arguments = [_arguments(term, values, half=k.half) for term, k in pairs]
        total = torch.zeros((), device=self._device)
        means = []
        for term, knowledge, found in zip(self._terms, self._knowledges, arguments, strict=True):
            weight = term.weight * ramp(term, part.epoch)
            if knowledge.coupled and self._ranks.count > 1:
                # All processes differentiate the loss over all rows; averaging over them undoes the sum.
                given, scale = self._gathered(found, part), part.share * part.total / part.rows
            else:
                given, scale = found, part.share * self._ranks.count
            with blamed(term, knowledge):
                if knowledge.adapter is not None:
                    loss = self._world.models[adapter_name(term)].network(*given.sides, **given.also)
                else:
                    loss = knowledge.function(*given.sides, **term.settings, **given.also)
            check_scalar(loss, term)
            means.append(loss.detach())
            total = total + loss * (weight * scale)
        return total, means

    def _gathered(self, given: _Arguments, part: Part) -> _Arguments:
        def gather(value: Tensor | list[Tensor] | None) -> Any:
            if isinstance(value, list):
                return [gather(item) for item in value]
            return None if value is None else self._ranks.gathered(value, part.start, part.total)

        student, teacher = given.sides
        return _Arguments((gather(student), gather(teacher)), {name: gather(x) for name, x in given.also.items()})


@dataclass(frozen=True)
class _Arguments:
    """What a term's knowledge is called with: student and teacher side, and more by name."""

    sides: tuple[Any, Any]
    also: dict[str, Tensor]


def _arguments(term: Term, values: Values, *, half: bool) -> _Arguments:
    def get(side: Side | None, live: bool) -> Any:
        if side is None:
            return None
        found = [values.get(text) for text in texts_of(side)]
        found = found if half else [full(value) for value in found]
        found = found if live else [value.detach() for value in found]
        return found[0] if isinstance(side, str) else found

    also = {name: get(reference, True) for name, reference in term.also.items()}
    return _Arguments((get(term.student, True), get(term.teacher, term.live)), also)


def ramp(term: Term, epoch: float) -> float:
    """Share of a term's weight that acts at a time in epochs."""
    if term.ramp is None:
        return 1.0
    start, end = term.ramp
    return min(max((epoch - start) / max(end - start, 1e-9), 0.0), 1.0)
