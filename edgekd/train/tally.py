"""What the terms of a phase come to in an epoch: means over the steps on which they act, and which was lost first.

Everything is summed on the device; reading it waits for the device, so that is done at intervals.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Collection, Mapping, Sequence

import torch
from torch import Tensor

from edgekd.errors import TrainingError
from edgekd.train.balance import Unequal, unequal
from edgekd.train.distributed import Ranks
from edgekd.train.named import Named
from edgekd.train.world import World

_LR_HINT = "lower the learning rate (`lr`), or look for extreme values in the data with `normalize: auto`"


class Tally:
    """Sums of one epoch of some steps.

    `turns`: how often a move adds its losses in each step. A sum that is not finite stays so: how often it was finite
    says when its term was lost, and no step waits for the device. `before`: what terms came to in earlier epochs, see
    `unequal`.
    """

    def __init__(
        self,
        terms: Sequence[Named],
        epoch: int,
        steps: int,
        turns: int,
        device: torch.device,
        ranks: Ranks,
        before: Mapping[str, float] | None = None,
    ) -> None:
        self._terms, self._turns, self._ranks, self._before = terms, turns, ranks, before
        self._epoch, self._steps = epoch, steps
        sizes = Counter(item.number for item in terms)
        self._sums = {number: torch.zeros(size, device=device) for number, size in sizes.items()}
        self._sound = {number: sums.clone() for number, sums in self._sums.items()}  # while they were finite
        self._finite = {number: torch.zeros_like(sums, dtype=torch.int32) for number, sums in self._sums.items()}

    def add(self, number: int, losses: Sequence[Tensor], share: float) -> None:
        """The losses of a move's terms, detached, over a share of a step's rows."""
        sums = self._sums[number]
        sums += torch.stack([loss.float() for loss in losses]) * share
        finite = sums - sums == 0
        self._finite[number] += finite
        self._sound[number] = torch.where(finite, sums, self._sound[number])

    def seen(self, steps: int) -> dict[str, float]:
        """Means over the first steps of the epoch by what this process has seen."""
        sums = torch.cat([*self._sums.values()]).tolist() if self._terms else []
        return self._means(sums, steps, self._ranks.count)

    def means(self, steps: int, world: World, frozen: Collection[str], phase: str) -> dict[str, float]:
        """Means over the first steps of the epoch and over all processes.

        Raises:
            TrainingError: one is not finite; the message names the terms that were lost first, with their sides and the
                step. `frozen` models are looked at for weights that are to blame.
        """
        if not self._terms:
            return {}
        sums = self._ranks.sum(torch.cat([*self._sums.values()])).tolist()
        if not all(map(math.isfinite, sums)):
            raise self._lost(sums, world, frozen, phase)
        return self._means(sums, steps, 1)

    def _means(self, sums: Sequence[float], steps: int, count: int) -> dict[str, float]:
        return {item.name: value * count / item.acted(steps) for item, value in zip(self._terms, sums, strict=True)}

    def _lost(self, sums: Sequence[float], world: World, frozen: Collection[str], phase: str) -> TrainingError:
        finite = self._ranks.least(torch.cat([*self._finite.values()])).tolist()
        when = {
            item: (turns // self._turns * item.move.every, item.number, turns % self._turns)
            for item, turns, value in zip(self._terms, finite, sums, strict=True)
            if not math.isfinite(value)
        }
        step, number, _ = first = min(when.values())
        lost = [item for item, found in when.items() if found == first]
        learners = set[str]().union(*(item.learners for item in lost))
        others = [item for item in self._terms if item.number == number and item not in lost]
        beside = [item.name for item in others if item.learners & learners]
        names = ", ".join(repr(item.name) for item in lost)
        sides = "; ".join(dict.fromkeys(item.sides for item in lost))
        what = f"the loss {names} is" if len(lost) == 1 else f"the losses {names} are"
        message = f"{what} not finite (phase {phase}, epoch {self._epoch + 1}, step {step + 1}; {sides})"
        if guide := _broken(world, frozen):
            message += f": {guide} has weights that are not finite"
            return TrainingError(message, hint=f"give the {guide} other weights")
        if beside:
            message += f", while {', '.join(beside)} still {'was' if len(beside) == 1 else 'were'}"
            hint = f"lower the weight of {lost[0].name} (now {lost[0].term.weight:g}) or the learning rate (`lr`)"
            return TrainingError(message, hint=hint)
        if len(lost) > 1:
            # Losses of several kinds are lost in one step only where what they have in common was lost before them.
            message += f", all in one step: weights of {', '.join(sorted(learners))} or the batch were lost before"
        # A term that outweighs the rest is how weights are lost.
        if (guilty := self._largest(step)) is not None:
            item = guilty.item
            message += f"; until then {item.name!r} ({item.sides}) was {guilty.factor} times the others together"
            hint = f"lower the weight of {item.name} (now {guilty.weight:g}) or the learning rate (`lr`)"
            return TrainingError(message, hint=hint)
        return TrainingError(message, hint=_LR_HINT)

    def _largest(self, step: int) -> Unequal | None:
        """The term that outweighed the others until a step, if one did."""
        sums = self._ranks.sum(torch.cat([*self._sound.values()])).tolist()
        weights = {item.name: item.weight(self._epoch, self._steps) for item in self._terms}
        return next(unequal(self._terms, self._means(sums, max(step, 1), 1), weights, self._before), None)


def _broken(world: World, names: Collection[str]) -> str:
    """The first of some models that has parameters which are not finite, or nothing."""
    for name in sorted(names):
        if not all(bool(p.isfinite().all()) for p in world.models[name].network.parameters()):
            return name
    return ""
