"""Knowledge that a student begins with: boundaries (AB) and flows (FSP) are learned in a phase before all else."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

from edgekd.distill.schemes.recipe import Recipe
from edgekd.train.references import parse_all
from edgekd.train.world import Move, Optim, Phase, Term, texts_of


def with_initiation(phases: Sequence[Phase], recipe: Recipe) -> list[Phase]:
    """Phases in which each that teaches such a knowledge is parted in two: that knowledge alone, then the rest.

    A phase that teaches nothing else stays whole.
    """
    items = recipe.knowledge or ()
    epochs = {item.name: item.init_epochs(recipe.epochs) for item in items if item.init_epochs(recipe.epochs)}
    return [part for phase in phases for part in _parted(phase, epochs)]


def _parted(phase: Phase, epochs: Mapping[str, int]) -> list[Phase]:
    terms = [term for move in phase.moves for term in move.terms]
    first = [term for term in terms if term.knowledge in epochs]
    if not first or len(first) == len(terms):
        return [phase]
    before = tuple(_only(move, [term for term in move.terms if term in first]) for move in phase.moves)
    after = tuple(
        dataclasses.replace(move, terms=tuple(term for term in move.terms if term not in first)) for move in phase.moves
    )
    longest = max(epochs[term.knowledge] for term in first)
    begin = Phase(
        f"{phase.name}, first", tuple(move for move in before if move.terms), longest, phase.start, phase.data
    )
    return [begin, dataclasses.replace(phase, moves=after, start=())]


def _only(move: Move, terms: Sequence[Term]) -> Move:
    """A move with some of its terms, and those learners that learn from them."""
    named = {reference.name for term in terms for reference in parse_all(texts_of(term.student))}
    learn = {name: rule for name, rule in move.learn.items() if name in named and isinstance(rule, Optim)}
    return dataclasses.replace(move, learn=learn, terms=tuple(terms))
