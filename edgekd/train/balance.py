"""Terms of one loss that are of very different size: the largest alone is learned, and nobody meant that."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from edgekd.train.named import Named

MOST_TIMES = 100.0


@dataclass(frozen=True)
class Unequal:
    """A term that outweighs all others that a model learns from in the same move.

    Attributes:
        learner: the model that learns from them.
        loss: mean of the term over an epoch.
        weight: its weight in that epoch.
        others: weighted means of the other terms by name; their sum times `times` is what the term comes to.
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


def unequal(terms: Sequence[Named], means: Mapping[str, float], weights: Mapping[str, float]) -> Iterator[Unequal]:
    """Terms whose weighted mean is more than a hundred times the sum of the others', among those of one learner.

    A term that has no weight yet (ramp) is neither judged nor counted, nor are others that are exactly 0: a loss that
    has nothing left to learn says nothing about the scale of the rest.
    """
    found = set()
    for number, learner in dict.fromkeys((item.number, name) for item in terms for name in sorted(item.learners)):
        sizes = {
            item: abs(weights[item.name] * means[item.name])
            for item in terms
            if item.number == number and learner in item.learners and weights[item.name] and means[item.name]
        }
        for item, size in sizes.items():
            others = {other.name: value for other, value in sizes.items() if other is not item}
            rest = sum(others.values())
            if others and size > MOST_TIMES * rest and item.name not in found:
                found.add(item.name)
                yield Unequal(item, learner, means[item.name], weights[item.name], others, size / rest)
