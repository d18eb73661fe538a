"""The one trainer: runs phases over a world. Every scheme of distillation is a list of phases for it (PHASES.md).

Randomness is a counter: (seed, phase, step, move) seeds each move, (seed, epoch, sample) chooses each view and
order. So a checkpoint holds no generator state, and a run that was killed ends with the same bytes as one that was not.
"""

from __future__ import annotations

import copy
import hashlib
import itertools
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from edgekd.data.table import Table
from edgekd.data.views import Views, permutation
from edgekd.errors import ConfigError, TrainingError
from edgekd.train import checkpoint
from edgekd.train.checkpoint import Progress
from edgekd.train.evaluate import score
from edgekd.train.feed import Feed
from edgekd.train.guides import CachedGuide, OutputCache
from edgekd.train.knowledge import knowledge_named
from edgekd.train.learning import Learner
from edgekd.train.precision import autocast
from edgekd.train.references import Reference, Taps, Values, parse
from edgekd.train.world import Model, Move, Optim, Phase, Term, World

_CHECK_EVERY = 50
_MASK = (1 << 63) - 1


@dataclass(frozen=True)
class Epoch:
    """What a progress line shows after an epoch."""

    phase: str
    epoch: int
    epochs: int
    loss: float
    metrics: Mapping[str, float]
    samples_per_s: float
    seconds_left: float


@dataclass(frozen=True)
class Run:
    """How phases are run: seed, batch size, device, precision, where checkpoints go, who is told."""

    seed: int
    batch: int
    device: torch.device
    precision: str
    views: Views
    folder: Path | None = None
    tell: Callable[[Epoch], None] | None = None
    caches: Mapping[str, OutputCache] = field(default_factory=dict)


def train(world: World, phases: Sequence[Phase], run: Run) -> list[dict[str, Any]]:
    """Run phases in order, from the last checkpoint if there is one.

    Returns: curves, one entry per phase: name, epochs, mean of each term, metrics of the watched model, learning rates.

    Raises:
        TrainingError: a loss is not finite; the message names the term and the epoch.
    """
    for model in world.models.values():
        model.network.to(run.device)
    progress = (checkpoint.load(run.folder) if run.folder else None) or Progress()
    touched: set[str] = set()
    for index, phase in enumerate(phases):
        # Also on the way to a checkpoint: edits make the models, the checkpoint then fills every one that was touched.
        for edit in phase.start:
            edit(world, _mix(run.seed, index, "edit"))
        touched |= phase.learners().union(*(edit.touches for edit in phase.start))
        if index < progress.phase:
            _add_kept(world, phase)
            continue
        _PhaseRun(world, phase, index, run, progress, frozenset(touched)).go()
        progress.phase, progress.epoch, progress.learners = index + 1, 0, []
    return progress.curves


def _add_kept(world: World, phase: Phase) -> None:
    watch = phase.watch
    if watch is not None and watch.keep and watch.keep not in world.models:
        world.models[watch.keep] = copy.deepcopy(world.models[watch.model])


def _restore_networks(world: World, progress: Progress) -> None:
    """Every model that was touched, as the checkpoint has it."""
    for name, state in progress.networks.items():
        if name in world.models:
            world.models[name].network.load_state_dict(state)


class _PhaseRun:
    """One phase in progress."""

    def __init__(
        self, world: World, phase: Phase, index: int, run: Run, progress: Progress, touched: frozenset[str]
    ) -> None:
        self.world, self.phase, self.index, self.run, self.progress = world, phase, index, run, progress
        self.touched = touched
        self.in_training: set[str] | None = None
        self.table = world.tables[phase.data]
        self.batch = min(run.batch, len(self.table))
        self.steps = len(self.table) // self.batch
        # Guides too: another layout is another kernel, and other bits after a resume.
        for model in world.models.values():
            _channels_last(model.network.to(run.device))
        total = self.steps * phase.epochs
        self.learners = [
            [Learner(world.models[name], rule, self.steps, total) for name, rule in move.learn.items()]
            for move in phase.moves
        ]
        self.references = _references(phase)
        self.feed = Feed(world, self.table, run.views, run.device)
        self.guides = self._cached_guides()
        self.known: dict[str, dict[str, Tensor]] = {}

    def go(self) -> None:
        """All epochs from where the checkpoint stands."""
        self._resume()
        self._set_modes(set())
        _check_references(self.world, self.table, self.references)
        taps = Taps(self.world, [r for r in self.references if r.name in self.world.models])
        try:
            for epoch in range(self.progress.epoch, self.phase.epochs):
                started = time.monotonic()
                means = self._epoch(epoch, taps)
                self._finish_epoch(epoch, means, time.monotonic() - started)
        finally:
            taps.close()
        self._keep_best()

    def _resume(self) -> None:
        if self.progress.epoch == 0:
            self.progress.best, self.progress.kept = None, None
            self.progress.curves.append({"name": self.phase.name, "epochs": [], "terms": {}, "metrics": {}, "lr": []})
            return
        _restore_networks(self.world, self.progress)
        for learners, states in zip(self.learners, self.progress.learners, strict=True):
            for learner, state in zip(learners, states, strict=True):
                learner.restore(state)

    def _set_modes(self, learners: set[str]) -> None:
        """Learners in training mode, guides in evaluation mode; switching takes time, so only on a change."""
        if learners != self.in_training:
            for name, model in self.world.models.items():
                model.network.train(name in learners)
            self.in_training = learners

    def _cached_guides(self) -> dict[str, CachedGuide]:
        """Models with a cache that nobody changes in this phase, and of which terms want outputs on the batch alone."""
        read = {r.name for r in self.references}
        inside = {r.name for r in self.references if r.path or r.argument}
        names = (self.run.caches.keys() & self.world.models.keys() & read) - self.phase.learners() - inside
        run = self.run
        return {
            name: CachedGuide(self.world, name, run.caches[name], self.feed, run.device, run.precision)
            for name in sorted(names)
        }

    def _epoch(self, epoch: int, taps: Taps) -> dict[str, float]:
        order = permutation(self.run.seed, f"order/{self.index}", epoch, len(self.table))
        self.feed.start_epoch(epoch, order)
        sums: dict[str, Tensor] = {}
        for step, batch in enumerate(self.feed.batches([self.batch] * self.steps)):
            self.known = {name: guide.outputs(batch, step * self.batch) for name, guide in self.guides.items()}
            for number, move in enumerate(self.phase.moves):
                if step % move.every == 0:
                    self._move(number, move, batch, taps, epoch, step, sums)
            if (step + 1) % _CHECK_EVERY == 0 or step + 1 == self.steps:
                _check_finite(sums, self.phase.name, epoch)
        return {name: float(total) / self.steps for name, total in sums.items()}

    def _move(
        self,
        number: int,
        move: Move,
        batch: Mapping[str, Tensor],
        taps: Taps,
        epoch: int,
        step: int,
        sums: dict[str, Tensor],
    ) -> None:
        at = epoch * self.steps + step
        torch.default_generator.manual_seed(_mix(self.run.seed, self.index, f"{at}/{number}"))
        by_gradient = {name for name, rule in move.learn.items() if isinstance(rule, Optim)}
        self._set_modes(by_gradient)
        learners = self.learners[number]
        for learner in learners:
            learner.zero()
        with autocast(self.run.precision, self.run.device):
            values = Values(self.world, taps, batch, by_gradient, self.known)
            sides = [_sides(term, values) for term in move.terms]
        total: Tensor | None = None
        for term, (student, teacher, also) in zip(move.terms, sides, strict=True):
            loss = knowledge_named(term.knowledge).function(student, teacher, **term.settings, **also)
            sums[term.name] = sums.get(term.name, torch.zeros((), device=loss.device)) + loss.detach()
            weighted = loss * (term.weight * _ramp(term, epoch + step / self.steps))
            total = weighted if total is None else total + weighted
        if total is not None:
            total.backward()  # type: ignore[no-untyped-call]
        for learner in learners:
            learner.step(self.world, at)

    def _finish_epoch(self, epoch: int, means: dict[str, float], seconds: float) -> None:
        curve = self.progress.curves[-1]
        curve["epochs"].append(epoch + 1)
        for name, value in means.items():
            curve["terms"].setdefault(name, []).append(value)
        metrics = self._watch(curve)
        rates = [x.learning_rate((epoch + 1) * self.steps - 1) for x in self._optimizing()]
        curve["lr"].append(rates[0] if rates else 0.0)
        self.progress.epoch = epoch + 1
        self._checkpoint()
        if self.run.tell is not None:
            rate, left = self.steps * self.batch / max(seconds, 1e-9), seconds * (self.phase.epochs - epoch - 1)
            weights = {term.name: term.weight for move in self.phase.moves for term in move.terms}
            total = sum(weights[name] * value for name, value in means.items())
            self.run.tell(Epoch(self.phase.name, epoch + 1, self.phase.epochs, total, metrics, rate, left))

    def _optimizing(self) -> list[Learner]:
        return [x for x in itertools.chain(*self.learners) if x.optimizer is not None]

    def _watch(self, curve: dict[str, Any]) -> dict[str, float]:
        watch = self.phase.watch
        if watch is None or watch.table not in self.world.tables:
            return {}
        scores = score(self.world, watch.model, self.world.tables[watch.table], self.run.device)
        for name, found in scores.items():
            curve["metrics"].setdefault(name, []).append(found.value)
        if watch.keep and scores:
            first = next(iter(scores.values()))
            merit = first.value * first.better
            if self.progress.best is None or merit > self.progress.best:
                self.progress.best = merit
                self.progress.kept = _snapshot(self.world.models[watch.model])
        return {name: found.value for name, found in scores.items()}

    def _keep_best(self) -> None:
        watch = self.phase.watch
        if watch is not None and watch.keep and self.progress.kept is not None:
            _add_kept(self.world, self.phase)
            self.world.models[watch.keep].network.load_state_dict(self.progress.kept)
            self.progress.networks[watch.keep] = _snapshot(self.world.models[watch.keep])

    def _checkpoint(self) -> None:
        for name in self.touched:
            if name in self.world.models:
                self.progress.networks[name] = _snapshot(self.world.models[name])
        self.progress.learners = [[learner.state() for learner in group] for group in self.learners]
        self.progress.phase = self.index
        if self.run.folder is not None:
            checkpoint.save(self.progress, self.run.folder)


def _sides(term: Term, values: Values) -> tuple[Any, Any, dict[str, Tensor]]:
    def get(side: str | tuple[str, ...] | None, live: bool) -> Any:
        if side is None:
            return None
        found = [values.get(text) for text in ((side,) if isinstance(side, str) else side)]
        found = found if live else [value.detach() for value in found]
        return found[0] if isinstance(side, str) else found

    also = {name: values.get(reference) for name, reference in term.also.items()}
    return get(term.student, True), get(term.teacher, term.live), also


def _ramp(term: Term, epoch: float) -> float:
    if term.ramp is None:
        return 1.0
    start, end = term.ramp
    return min(max((epoch - start) / max(end - start, 1e-9), 0.0), 1.0)


def _references(phase: Phase) -> list[Reference]:
    texts: list[str] = []
    for term in itertools.chain(*(move.terms for move in phase.moves)):
        for side in (term.student, term.teacher):
            texts += [] if side is None else [side] if isinstance(side, str) else list(side)
        texts += term.also.values()
    return [parse(text) for text in dict.fromkeys(texts)]


def _check_references(world: World, table: Table, references: list[Reference]) -> None:
    columns = {*table.inputs, *table.targets}
    for reference in references:
        if reference.name not in world.models and reference.name not in columns:
            raise ConfigError(
                f"a term names {reference.name!r}, which is neither a model nor a column of the data",
                hint=f"models: {', '.join(world.models)}; columns: {', '.join(sorted(columns))}",
            )


def _check_finite(sums: Mapping[str, Tensor], phase: str, epoch: int) -> None:
    values = torch.stack(list(sums.values())).tolist() if sums else []
    for name, value in zip(sums, values, strict=True):
        if not math.isfinite(value):
            raise TrainingError(
                f"the loss {name!r} is not finite (phase {phase}, epoch {epoch + 1})",
                hint="lower the learning rate (`lr`), or look for extreme values in the data with `normalize: auto`",
            )


def _snapshot(model: Model) -> dict[str, Any]:
    return {name: value.detach().cpu().clone() for name, value in model.network.state_dict().items()}


def _channels_last(network: nn.Module) -> None:
    """Kernels of images run faster with channels last; networks of volumes have no such layout."""
    if all(parameter.dim() != 5 for parameter in network.parameters()):
        network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]


def _mix(seed: int, phase: int, what: str) -> int:
    """A seed for one purpose: the counter (seed, phase, what), hashed."""
    return int.from_bytes(hashlib.sha256(f"{seed}/{phase}/{what}".encode()).digest()[:8], "big") & _MASK
