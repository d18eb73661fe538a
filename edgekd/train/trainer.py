"""The one trainer: runs phases over a world. Every scheme of distillation is a list of phases for it (PHASES.md).

Randomness is a counter: (seed, phase, step, move) seeds each move, (seed, epoch, sample) chooses each view and
order. So a checkpoint holds no generator state, and a run that was killed ends with the same bytes as one that was not.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from edgekd.data.derived import origin
from edgekd.data.table import place
from edgekd.train import checkpoint
from edgekd.train.checkpoint import Progress
from edgekd.train.phase import PhaseRun, add_kept, mix_seed
from edgekd.train.run import Epoch, Run
from edgekd.train.world import Decision, Edit, Phase, World

__all__ = ["Epoch", "Run", "train"]


def train(world: World, phases: Sequence[Phase], run: Run) -> list[dict[str, Any]]:
    """Run phases in order, from the last checkpoint if there is one.

    Returns: curves, one entry per phase: name, epochs, mean of each term over the steps on which it acts, weights of
        the terms, metrics of the watched model, learning rates, and warnings (balance.py) where there were any.

    Raises:
        TrainingError: a loss is not finite; the message names the term that was lost first, its sides, and the step.
    """
    for model in world.models.values():
        model.network.to(run.device)
    for name, table in world.tables.items():
        world.tables[name] = place(table, run.device, run.memory)
    # As they are now: an edit may put other samples under the name of a table that caches know.
    cached = tuple(origin(world.tables[name]) for name in run.cached if name in world.tables)
    # Rank 0's checkpoint counts, so that the others need not see its disk.
    found = checkpoint.load(run.folder) if run.folder and run.ranks.first else None
    progress = run.ranks.shared(found) or Progress()
    touched: set[str] = set()
    for index, phase in enumerate(phases):
        # Also on the way to a checkpoint: edits make the models, the checkpoint then fills every one that was touched.
        for number, edit in enumerate(phase.start):
            _edit(world, edit, run, progress, index, number)
        touched |= phase.learners().union(*(edit.touches for edit in phase.start))
        if index < progress.phase:
            add_kept(world, phase)
            continue
        PhaseRun(world, phase, index, run, progress, frozenset(touched), cached).go()
        progress.phase, progress.epoch, progress.learners = index + 1, 0, []
    return progress.curves


def _edit(world: World, edit: Edit, run: Run, progress: Progress, index: int, number: int) -> None:
    # Each edit of a phase has a seed of its own: two models that start afresh must not start alike.
    seed = mix_seed(run.seed, index, f"edit/{number}" if number else "edit")
    if not isinstance(edit, Decision):
        edit(world, seed)
        return
    key = f"{index}/{number}"
    if key not in progress.decisions:
        progress.decisions[key] = edit.decide(world, run)
    edit.apply(world, progress.decisions[key])
