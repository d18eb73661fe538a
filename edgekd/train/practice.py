"""Training practice that is a change of phases: weights are averaged, a phase that stands still ends."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from edgekd.train.world import Copy, Follow, Optim, Phase


def averaged(phases: Sequence[Phase], model: str, decay: float) -> list[Phase]:
    """The phases with `model` followed by an average of decay per step, which takes its place after each of them.

    Tarvainen and Valpola (2017). Running statistics of BatchNorm are those of the model itself.
    """
    average = f"{model}_average"
    found = []
    for phase in phases:
        moves = tuple(
            dataclasses.replace(move, learn={**move.learn, average: Follow(model, decay, rising=True)})
            if isinstance(move.learn.get(model), Optim)
            else move
            for move in phase.moves
        )
        if moves == phase.moves:
            found.append(phase)
            continue
        watch = phase.watch
        if watch is not None and watch.model == model:
            watch = dataclasses.replace(watch, model=average, keep=average if watch.keep else None)
        start = (*phase.start, Copy(model, average))
        found.append(dataclasses.replace(phase, moves=moves, start=start, watch=watch))
        # At once, because a later phase may hand the model over, copy it or go on from it.
        found.append(Phase("average", start=(Copy(average, model),)))
    return found


def patient(phases: Sequence[Phase], patience: int) -> list[Phase]:
    """The phases, each ending after `patience` epochs in a row without a better watched score."""
    return [
        dataclasses.replace(phase, watch=dataclasses.replace(phase.watch, patience=patience)) if phase.watch else phase
        for phase in phases
    ]
