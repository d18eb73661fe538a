"""One phase in progress: its epochs, steps and moves, from where a checkpoint stands."""

from __future__ import annotations

import contextlib
import copy
import hashlib
import itertools
import math
import time
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn
from torch.amp import GradScaler

from edgekd.data.derived import origin
from edgekd.data.table import Rows
from edgekd.data.views import permutation
from edgekd.errors import ConfigError
from edgekd.train import checkpoint
from edgekd.train.adapters import make_adapters, with_adapters
from edgekd.train.balance import largest_of, new_warnings
from edgekd.train.checkpoint import Progress
from edgekd.train.distributed import Shares
from edgekd.train.evaluate import score
from edgekd.train.feed import Batch, Feed
from edgekd.train.guides import CachedGuide
from edgekd.train.learning import Learner
from edgekd.train.named import named_terms
from edgekd.train.objective import Known, Objective, Part
from edgekd.train.precision import choose_compile, compiled
from edgekd.train.references import Reference, Taps, check_references, parse_all
from edgekd.train.run import Epoch, Run
from edgekd.train.tally import Tally
from edgekd.train.world import Model, Move, Optim, Phase, World, texts_of

_CHECK_EVERY = 50
_SHOW_S = 1.0
_MASK = (1 << 63) - 1
_Turn = tuple[Batch, Known, Part]


class PhaseRun:
    """One phase in progress.

    `touched`: the models that phases so far have made or changed. `cached`: the tables of whose samples caches are.
    """

    def __init__(
        self,
        world: World,
        phase: Phase,
        index: int,
        run: Run,
        progress: Progress,
        touched: frozenset[str],
        cached: Sequence[Rows] = (),
    ) -> None:
        self.world, self.index, self.run, self.progress = world, index, run, progress
        self.phase = with_adapters(phase)
        self.touched = touched | self.phase.learners()
        self.in_training: set[str] | None = None
        self.table = world.tables[phase.data]
        self.shares = Shares(len(self.table), min(run.batch, len(self.table)), run.accumulate, run.ranks)
        if len(self.table) < self.shares.parts:
            raise ConfigError(
                f"phase {phase.name}: {len(self.table)} samples cannot be shared out in {self.shares.parts} parts",
                hint="lower train.accumulate or --nproc, or add data",
            )
        # Guides too: another layout is another kernel, and other bits after a resume.
        for model in world.models.values():
            _channels_last(model.network.to(run.device))
        self.feed = Feed(world, self.table, run.views, run.device)
        self.terms = named_terms(self.phase)
        self.references = references_of(phase)
        check_references(world, self.feed.columns(), self.references)
        make_adapters(world, self.phase.moves, self.feed, mix_seed(run.seed, index, "adapters"), progress.networks)
        for name in self.phase.learners() & world.models.keys():
            _channels_last(world.models[name].network.to(run.device))  # adapters among them
        if run.sync_batchnorm and run.ranks.count > 1 and run.device.type == "cuda":
            for name in self.phase.learners() & world.models.keys():
                network = world.models[name].network
                world.models[name].network = nn.SyncBatchNorm.convert_sync_batchnorm(network)  # type: ignore[no-untyped-call]
        steps = self.shares.steps
        self.learners = [
            [Learner(world.models[name], rule, steps, steps * phase.epochs) for name, rule in move.learn.items()]
            for move in self.phase.moves
        ]
        self.scalers = [GradScaler(run.device.type, enabled=run.precision == "f16") for _ in phase.moves]
        # Rows of a cached table, seen by models as they were given; tables by identity, for edits may take their names.
        self.guides = self._cached_guides() if any(origin(self.table) is table for table in cached) else {}
        self.objectives: list[nn.Module] = []
        self.first: dict[str, float] = {}  # means of the first step: later ones may have diverged together
        self.graphs = False

    def go(self) -> None:
        """All epochs from where the checkpoint stands."""
        self._resume()
        self._set_modes(set())
        taps = Taps(self.world, [r for r in self.references if r.name in self.world.models])
        try:
            networks, mode = self._to_compile(taps)
            self.graphs = mode == "graphs"
            with compiled(networks, mode):
                self.objectives = [self._objective(move, taps) for move in self.phase.moves]
                for epoch in range(self.progress.epoch, self.phase.epochs):
                    if self._stale():
                        break
                    started = time.monotonic()
                    means = self._epoch(epoch)
                    self._finish_epoch(epoch, means, time.monotonic() - started)
        finally:
            taps.close()
            self.objectives = []
        self._keep_best()

    def _resume(self) -> None:
        if self.progress.epoch == 0:
            self.progress.best, self.progress.kept, self.progress.stale = None, None, 0
            empty: dict[str, Any] = {"epochs": [], "terms": {}, "weights": {}, "metrics": {}, "lr": []}
            self.progress.curves.append({"name": self.phase.name, **empty})
            return
        for name, state in self.progress.networks.items():  # every model that was touched
            if name in self.world.models:
                self.world.models[name].network.load_state_dict(state)
        for learners, states in zip(self.learners, self.progress.learners, strict=True):
            for learner, state in zip(learners, states, strict=True):
                learner.restore(state)
        for scaler, state in zip(self.scalers, self.progress.scalers, strict=True):
            scaler.load_state_dict(state)

    def _set_modes(self, learners: set[str]) -> None:
        """Learners in training mode, guides in evaluation mode; switching takes time, so only on a change."""
        if learners != self.in_training:
            for name, model in self.world.models.items():
                model.network.train(name in learners)
            self.in_training = learners

    def _cached_guides(self) -> dict[str, CachedGuide]:
        """Models with a cache that nobody changes in this phase, and of which terms want outputs on the batch alone."""
        read = {r.name for r in self.references if not r.state}
        inside = {r.name for r in self.references if r.path or r.argument}
        names = (self.run.caches.keys() & self.world.models.keys() & read) - self.touched - inside
        run = self.run
        return {
            name: CachedGuide(
                self.world, name, run.caches[name], self.feed, run.device, run.precision, self.shares.largest
            )
            for name in sorted(names)
        }

    def _to_compile(self, taps: Taps) -> tuple[list[nn.Module], str]:
        """The networks that learn, and how they are compiled; guides are not, for a cache holds what they say as is."""
        names = {r.name for r in self.references} & self.world.models.keys() & self.phase.learners()
        networks = [self.world.models[name].network for name in sorted(names)]
        run = self.run
        mode = choose_compile(
            run.compile,
            run.device,
            # A model that is called on another reference runs more than once in a step, over a graph's own memory.
            alone=self.shares.parts == 1 and not taps.installed and not any(r.argument for r in self.references),
            parameters=max((sum(p.numel() for p in network.parameters()) for network in networks), default=0),
            steps=self.shares.steps * self.phase.epochs,
        )
        return networks, mode

    def _objective(self, move: Move, taps: Taps) -> nn.Module:
        run = self.run
        objective = Objective(self.world, move, taps, run.precision, run.device, run.ranks)
        if run.ranks.count == 1 or not objective.names or not move.terms:
            return objective  # nothing is differentiated
        shared = [m for m in self.phase.moves if m is not move and objective.names & m.learn.keys()]
        if any(isinstance(rule, Optim) for m in shared for rule in m.learn.values()):
            raise ConfigError(
                f"phase {self.phase.name}: two moves train one model, which several processes cannot do",
                hint="run it without --nproc",
            )
        return run.ranks.wrap(objective, unused=self._unused(objective))

    def _unused(self, objective: Objective) -> bool:
        """Whether some parameters take no part in the loss; seen on one row, in evaluation mode: nothing moves."""
        ranks = self.run.ranks
        self.feed.start_epoch(0, torch.zeros(2, dtype=torch.int64))
        batch = self.feed.batch(torch.arange(2))
        self._set_modes(set())
        with torch.compiler.set_stance("force_eager"):
            total, _ = objective(batch, {}, Part(math.inf, 2 * ranks.rank, 2 * ranks.count, 2, 2, 1.0))
        learning = [p for p in objective.parameters() if p.requires_grad]
        return any(g is None for g in torch.autograd.grad(total, learning, allow_unused=True))

    def _epoch(self, epoch: int) -> dict[str, float]:
        order = permutation(self.run.seed, f"order/{self.index}", epoch, len(self.table))
        parts = self.shares.mine()
        self.feed.start_epoch(epoch, torch.cat([order[start:stop] for start, stop in parts]))
        batches = self.feed.batches([stop - start for start, stop in parts])
        run, frozen = self.run, self.world.models.keys() - self.touched
        curve = self.progress.curves[-1]
        tally = Tally(self.terms, epoch, self.shares.steps, run.accumulate, run.device, run.ranks, largest_of(curve))
        means: dict[str, float] = {}
        started = shown = time.monotonic()
        place = 0
        for step in range(self.shares.steps):
            if self.graphs:
                torch.compiler.cudagraph_mark_step_begin()  # type: ignore[no-untyped-call]
            turns: list[_Turn] = []
            for turn in range(self.run.accumulate):
                batch = next(batches)
                known = {name: guide.outputs(batch, place) for name, guide in self.guides.items()}
                turns.append((batch, known, self._part(epoch, step, turn)))
                place += len(next(iter(batch.values())))
            for number, move in enumerate(self.phase.moves):
                if step % move.every == 0:
                    self._move(number, move, turns, epoch * self.shares.steps + step, tally)
            if (step + 1) % _CHECK_EVERY == 0 or step + 1 == self.shares.steps or step == epoch == 0:
                means = tally.means(step + 1, self.world, frozen, self.phase.name)
                self.first = self.first or means
            if self.run.show is not None and time.monotonic() - shown > _SHOW_S:
                shown = time.monotonic()
                self._show(epoch, step + 1, tally, shown - started)
        return means

    def _part(self, epoch: int, step: int, turn: int) -> Part:
        """Where a turn's rows lie among those of all processes in the same turn."""
        ranks = self.run.ranks
        sizes = []
        for rank in range(ranks.count):
            start, stop = self.shares.part(step, turn, rank)
            sizes.append(stop - start)
        low, high = self.shares.step(step)
        rows = sizes[ranks.rank]
        at, before = epoch + step / self.shares.steps, sum(sizes[: ranks.rank])
        return Part(at, before, sum(sizes), rows, self.shares.largest, rows / (high - low))

    def _move(self, number: int, move: Move, turns: Sequence[_Turn], at: int, tally: Tally) -> None:
        objective, scaler, learners = self.objectives[number], self.scalers[number], self.learners[number]
        self._set_modes({name for name, rule in move.learn.items() if isinstance(rule, Optim)})
        for learner in learners:
            learner.zero()
        for turn, (batch, known, part) in enumerate(turns):
            place = self.run.ranks.rank * len(turns) + turn
            _seed(mix_seed(self.run.seed, self.index, f"{at}/{number}" + (f"/{place}" if place else "")), self.run)
            if not move.terms:
                break
            waits = turn + 1 < len(turns) and hasattr(objective, "no_sync")
            with objective.no_sync() if waits else contextlib.nullcontext():  # type: ignore[operator]
                total, losses = objective(batch, known, part)
                scaler.scale(total).backward()
            tally.add(number, losses, part.share)
        for learner in learners:
            learner.step(self.world, at, scaler)
        if any(learner.learned for learner in learners):
            scaler.update()

    def _show(self, epoch: int, steps: int, tally: Tally, seconds: float) -> None:
        """How far the epoch is, by what this process has seen of it."""
        assert self.run.show is not None
        total = self.shares.steps
        rate = len(self.table) * steps / total / max(seconds, 1e-9)
        left = seconds / steps * (total * (self.phase.epochs - epoch) - steps)
        loss = self._loss(tally.seen(steps), epoch)
        self.run.show(Epoch(self.phase.name, epoch + 1, self.phase.epochs, loss, {}, rate, left, steps / total))

    def _loss(self, means: Mapping[str, float], epoch: int) -> float:
        return sum(item.weight(epoch, self.shares.steps) * means[item.name] for item in self.terms)

    def _finish_epoch(self, epoch: int, means: dict[str, float], seconds: float) -> None:
        curve = self.progress.curves[-1]
        curve["epochs"].append(epoch + 1)
        weights = {item.name: item.weight(epoch, self.shares.steps) for item in self.terms}
        for kind, values in (("terms", means), ("weights", weights)):
            for name, value in values.items():
                curve[kind].setdefault(name, []).append(value)
        first = self.first if epoch == 0 else {}
        warnings = new_warnings(self.terms, curve, epoch + 1, weights, (means, first))
        models = self.world.models
        self.run.ranks.same_buffers(models[name].network for name in sorted(self.touched & models.keys()))
        metrics = self._watch(curve)
        rates = [x.learning_rate((epoch + 1) * self.shares.steps - 1) for x in self._optimizing()]
        curve["lr"].append(rates[0] if rates else 0.0)
        self.progress.epoch = epoch + 1
        self._checkpoint()
        if self.run.curves is not None:
            self.run.curves(self.progress.curves)
        if self.run.warn is not None:
            for text in warnings:
                self.run.warn(text)
        if self.run.tell is not None:
            rate, left = len(self.table) / max(seconds, 1e-9), seconds * (self.phase.epochs - epoch - 1)
            loss = self._loss(means, epoch)
            self.run.tell(Epoch(self.phase.name, epoch + 1, self.phase.epochs, loss, metrics, rate, left))

    def _optimizing(self) -> list[Learner]:
        return [x for x in itertools.chain(*self.learners) if x.optimizer is not None]

    def _watch(self, curve: dict[str, Any]) -> dict[str, float]:
        watch = self.phase.watch
        if watch is None or watch.table not in self.world.tables:
            return {}
        with torch.compiler.set_stance("force_eager"):
            scores = score(self.world, watch.model, self.world.tables[watch.table], self.run.device, self.run.ranks)
        self.in_training = None
        for name, found in scores.items():
            curve["metrics"].setdefault(name, []).append(found.value)
        if scores:
            first = next(iter(scores.values()))
            merit = first.value * first.better
            self.progress.stale += 1
            if self.progress.best is None or merit > self.progress.best:
                self.progress.best, self.progress.stale = merit, 0
                if watch.keep:
                    self.progress.kept = _snapshot(self.world.models[watch.model])
        return {name: found.value for name, found in scores.items()}

    def _stale(self) -> bool:
        """Whether the watched score has not become better for as long as the phase is patient."""
        patience = self.phase.watch.patience if self.phase.watch else None
        return patience is not None and self.progress.stale >= patience

    def _keep_best(self) -> None:
        watch = self.phase.watch
        if watch is not None and watch.keep and self.progress.kept is not None:
            add_kept(self.world, self.phase)
            self.world.models[watch.keep].network.load_state_dict(self.progress.kept)
            self.progress.networks[watch.keep] = _snapshot(self.world.models[watch.keep])

    def _checkpoint(self) -> None:
        if not self.run.ranks.first:
            return
        for name in self.touched:
            if name in self.world.models:
                self.progress.networks[name] = _snapshot(self.world.models[name])
        self.progress.learners = [[learner.state() for learner in group] for group in self.learners]
        self.progress.scalers = [scaler.state_dict() for scaler in self.scalers]
        self.progress.phase = self.index
        if self.run.folder is not None:
            checkpoint.save(self.progress, self.run.folder)


def add_kept(world: World, phase: Phase) -> None:
    """Make the model that a phase keeps its best state in."""
    watch = phase.watch
    if watch is not None and watch.keep and watch.keep not in world.models:
        world.models[watch.keep] = copy.deepcopy(world.models[watch.model])


def reads_inside(phases: Sequence[Phase], model: str) -> bool:
    """Whether a term wants more of a model than its outputs on the batch: a submodule's, or those on another input."""
    return any(r.name == model and (r.path or r.argument) for phase in phases for r in references_of(phase))


def mix_seed(seed: int, phase: int, what: str) -> int:
    """A seed for one purpose: the counter (seed, phase, what), hashed."""
    return int.from_bytes(hashlib.sha256(f"{seed}/{phase}/{what}".encode()).digest()[:8], "big") & _MASK


def _seed(seed: int, run: Run) -> None:
    """Start the generators that a move draws from; `torch.manual_seed` would take eighty times as long."""
    torch.default_generator.manual_seed(seed)
    if run.device.type == "cuda":
        torch.cuda.default_generators[run.device.index or 0].manual_seed(seed)


def references_of(phase: Phase) -> list[Reference]:
    """Everything that the terms of a phase refer to, each once."""
    texts: list[str] = []
    for term in itertools.chain(*(move.terms for move in phase.moves)):
        for side in (term.student, term.teacher):
            texts += texts_of(side)
        texts += term.also.values()
    return parse_all(texts)


def _snapshot(model: Model) -> dict[str, Any]:
    return {name: value.detach().cpu().clone() for name, value in model.network.state_dict().items()}


def _channels_last(network: nn.Module) -> None:
    """Kernels of images run faster with channels last; networks of volumes have no such layout."""
    if all(parameter.dim() != 5 for parameter in network.parameters()):
        network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
