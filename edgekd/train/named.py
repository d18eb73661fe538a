"""The terms of a phase one by one: their names in curves and messages, their sides, who learns from them, how much."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass

from edgekd.train.objective import ramp
from edgekd.train.references import parse_all
from edgekd.train.world import Move, Optim, Phase, Term, texts_of


@dataclass(frozen=True, eq=False)
class Named:
    """A term in its move, under a name that no other term of the phase has."""

    name: str
    term: Term
    number: int
    move: Move

    @property
    def sides(self) -> str:
        """What it compares, as references."""
        student, teacher = (" and ".join(texts_of(side)) for side in (self.term.student, self.term.teacher))
        return f"{student} against {teacher}" if teacher else student

    @property
    def learners(self) -> set[str]:
        """The models of its move that learn from it."""
        texts = texts_of(self.term.student) + (texts_of(self.term.teacher) if self.term.live else ())
        learning = {name for name, rule in self.move.learn.items() if isinstance(rule, Optim)}
        return learning & {reference.name for reference in parse_all(texts)}

    def acted(self, steps: int) -> int:
        """On how many of the first steps of an epoch it acts."""
        return math.ceil(steps / self.move.every)

    def weight(self, epoch: int, steps: int) -> float:
        """Its weight in an epoch: with a ramp, the mean over the steps on which it acts."""
        if self.term.ramp is None:
            return self.term.weight
        shares = [ramp(self.term, epoch + step / steps) for step in range(0, steps, self.move.every)]
        return self.term.weight * sum(shares) / len(shares)


def named_terms(phase: Phase) -> list[Named]:
    """All terms of a phase in the order of its moves; of several with one name, the later ones get a number."""
    seen: Counter[str] = Counter()
    found = []
    for number, move in enumerate(phase.moves):
        for term in move.terms:
            seen[term.name] += 1
            name = term.name if seen[term.name] == 1 else f"{term.name} {seen[term.name]}"
            found.append(Named(name, term, number, move))
    return found
