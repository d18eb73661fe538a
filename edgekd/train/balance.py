"""Terms of one loss that are of very different size: the largest alone is learned, and nobody meant that."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from edgekd.train.knowledge import knowledge_named
from edgekd.train.named import Named
from edgekd.train.world import Term

MOST_TIMES = 100.0


@dataclass(frozen=True)
class Unequal:
    """A term that outweighs all others that a model learns from in the same move.

    Attributes:
        learner: the model that learns from them.
        loss: mean of the term over an epoch.
        weight: its weight in that epoch.
        others: what the other terms came to at most, weighted, by name; their sum times `times` is what this comes to.
    """

    item: Named
    learner: str
    loss: float
    weight: float
    others: Mapping[str, float]
    times: float

    @property
    def factor(self) -> str:
        """`times` as a person reads it."""
        return f"{self.times:,.0f}" if self.times < 1e6 else f"{self.times:.1e}"

    def text(self, phase: str, epoch: int) -> str:
        """One line: what outweighs what, by how much, and what to do."""
        term = self.item.term
        others = ", ".join(f"{name} {value:.3g}" for name, value in self.others.items())
        where = f"the `weight` of {term.knowledge}" if term.teacher else "`task_weight` or the scale of the targets"
        return (
            f"the loss {self.item.name!r} of {self.learner} ({self.item.sides}) is {self.factor} times as large as "
            f"the others together (phase {phase}, epoch {epoch}: {self.loss:.3g} x weight {self.weight:.3g}, beside "
            f"{others}), so these hardly count: lower {where}; {self.weight / self.times:.1g} would make them equal"
        )


def unequal(
    terms: Sequence[Named],
    means: Mapping[str, float],
    weights: Mapping[str, float],
    before: Mapping[str, float] | None = None,
) -> Iterator[Unequal]:
    """Terms that come to more than a hundred times what the others of one learner together have come to at most.

    Each of the others counts as it was in that epoch of the phase in which it was largest: one that has been learned
    away is no reason to weigh the rest less. A loss that carries temperature^2 may come to `temperature` times as much,
    for it has grown by that much more than its gradient (Hinton et al. 2015, section 2.1). Terms of one knowledge on
    several layers are judged together, too, and the largest is named. A term that has no weight yet (ramp) is neither
    judged nor counted, nor are others that are exactly 0.

    Args:
        before: what terms came to at most, weighted, in earlier epochs of the phase.
    """
    found = set()
    now = {item.name: abs(weights[item.name] * means[item.name]) for item in terms}
    most = {name: max(size, (before or {}).get(name, 0.0)) for name, size in now.items()}
    for number, learner in dict.fromkeys((item.number, name) for item in terms for name in sorted(item.learners)):
        group = [item for item in terms if item.number == number and learner in item.learners]
        for item, kin in ((each, kin) for each in group for kin in ([each], _kin(each, group))):
            size = sum(now[own.name] for own in kin)
            others = {other.name: most[other.name] for other in group if other not in kin and most[other.name]}
            rest = sum(others.values())
            largest = item is max(kin, key=lambda own: now[own.name])
            if others and largest and size > MOST_TIMES * _allowance(item.term) * rest and item.name not in found:
                found.add(item.name)
                yield Unequal(item, learner, means[item.name], weights[item.name], others, size / rest)


def _kin(item: Named, group: Sequence[Named]) -> list[Named]:
    """The terms of one knowledge: of several layers, or with several teachers. They share its weight."""
    return [other for other in group if other.term.knowledge == item.term.knowledge]


def new_warnings(
    terms: Sequence[Named],
    curve: dict[str, Any],
    epoch: int,
    weights: Mapping[str, float],
    seen: Sequence[Mapping[str, float]],
) -> list[str]:
    """Warnings of a phase that are new; its curve keeps them, so that each term has one, also after a resume.

    Args:
        terms: all of the phase.
        curve: that of the phase so far, this epoch included.
        epoch: which this is, from 1 on.
        weights: of the terms in it.
        seen: means of the terms over the epoch; and of its first step, for what diverged later diverged together.
    """
    known = {warning["term"] for warning in curve.get("warnings", [])}
    before = [largest_of(curve), *[{}] * (len(seen) - 1)]
    judged = [
        x for means, most in zip(seen, before, strict=True) if means for x in unequal(terms, means, weights, most)
    ]
    found = {x.item.name: x.text(curve["name"], epoch) for x in judged if x.item.name not in known}
    if found:
        new = [{"term": name, "epoch": epoch, "text": text} for name, text in found.items()]
        curve["warnings"] = [*curve.get("warnings", []), *new]
    return list(found.values())


def largest_of(curve: Mapping[str, Any]) -> dict[str, float]:
    """What each term has come to at most in an epoch of a phase, weighted."""
    return {
        name: max(abs(mean * weight) for mean, weight in zip(means, curve["weights"][name], strict=True))
        for name, means in curve["terms"].items()
    }


def _allowance(term: Term) -> float:
    """The temperature of a loss of ours that carries its square, else 1."""
    knowledge = knowledge_named(term.knowledge)
    if knowledge.family not in ("response", "several"):
        return 1.0
    parameter = inspect.signature(knowledge.function).parameters.get("temperature")
    return max(float(term.settings.get("temperature", parameter.default)), 1.0) if parameter is not None else 1.0
