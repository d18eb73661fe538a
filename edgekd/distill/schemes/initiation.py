"""Knowledge that a student begins with: boundaries (AB) and flows (FSP) are learned in a phase before all else."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

from edgekd.distill.schemes.recipe import Recipe
from edgekd.errors import ConfigError
from edgekd.train.references import parse_all
from edgekd.train.world import Follow, Move, Optim, Phase, Term, texts_of


def with_initiation(phases: Sequence[Phase], recipe: Recipe) -> list[Phase]:
    """Phases in which each that teaches such a knowledge is parted: that knowledge alone, then the rest.

    Several of one length are learned together, of several lengths one after the other. Moves of other models, such as a
    generator's, are made in all parts. A phase in which those who learn it would learn nothing else stays whole.

    Raises:
        ConfigError: one knowledge is to be learned for two lengths.
    """
    return [part for phase in phases for part in _parted(phase, _lengths(recipe, phase.epochs))]


def _lengths(recipe: Recipe, epochs: int) -> dict[str, int]:
    """Epochs of the phase before one of so many, by knowledge, for each that has one."""
    found: dict[str, int] = {}
    for item in recipe.knowledge or ():
        length = item.init_epochs(epochs)
        if found.setdefault(item.name, length) != length:
            raise ConfigError(
                f"{item.name} stands in knowledge twice, with init_epochs {found[item.name]} and {length}",
                hint="give both the same init_epochs, or one item several pairs of layers",
            )
    return {name: length for name, length in found.items() if length}


def _parted(phase: Phase, lengths: Mapping[str, int]) -> list[Phase]:
    own = [move for move in phase.moves if any(term.knowledge in lengths for term in move.terms)]
    if not any(term.knowledge not in lengths for move in own for term in move.terms):
        return [phase]
    first = [name for name in lengths if any(term.knowledge == name for move in own for term in move.terms)]
    groups: dict[int, list[str]] = {}
    for name in first:
        groups.setdefault(lengths[name], []).append(name)
    parts: list[Phase] = []
    for epochs, names in groups.items():
        moves = [_only(move, names) if move in own else move for move in phase.moves]
        title = "first" if len(groups) == 1 else f"{' and '.join(names)} first"
        start = () if parts else phase.start
        parts.append(Phase(f"{phase.name}, {title}", _acting(moves), epochs, start, phase.data))
    rest = [
        dataclasses.replace(move, terms=tuple(term for term in move.terms if term.knowledge not in first))
        for move in phase.moves
    ]
    return [*parts, dataclasses.replace(phase, moves=_acting(rest), start=())]


def _only(move: Move, names: Sequence[str]) -> Move:
    """A move with the terms of some knowledges, those learners that learn from them, and who follows these."""
    terms = tuple(term for term in move.terms if term.knowledge in names)
    named = _named(terms)
    learn = {name: rule for name, rule in move.learn.items() if isinstance(rule, Optim) and name in named}
    follow = {name: rule for name, rule in move.learn.items() if isinstance(rule, Follow) and rule.source in learn}
    return dataclasses.replace(move, learn={**learn, **follow}, terms=terms)


def _named(terms: Sequence[Term]) -> set[str]:
    return {reference.name for term in terms for reference in parse_all(texts_of(term.student))}


def _acting(moves: Sequence[Move]) -> tuple[Move, ...]:
    """Moves in which something happens."""
    return tuple(move for move in moves if move.terms or any(isinstance(rule, Follow) for rule in move.learn.values()))
