"""What knowledges learn and remember beside a student: modules of their own that are trained and resumed with it."""

from __future__ import annotations

import dataclasses
import re
import zlib
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from edgekd.train.blame import blamed
from edgekd.train.feed import Feed
from edgekd.train.knowledge import knowledge_named
from edgekd.train.references import Taps, Values, parse_all
from edgekd.train.world import Model, Move, Optim, Phase, Side, Term, World, texts_of

Shape = tuple[int, ...]


def adapter_name(term: Term) -> str:
    """The model of the world that is the adapter of a term; the same in every phase that has the term."""
    sides = (*texts_of(term.student), *texts_of(term.teacher))
    return re.sub(r"\W+", "_", f"adapter {term.knowledge} {' '.join(sides)}").strip("_")


def with_adapters(phase: Phase) -> Phase:
    """The phase in which each move also learns the adapters of its terms, by the rule of the first model it learns."""
    moves = []
    for move in phase.moves:
        rule = next((rule for rule in move.learn.values() if isinstance(rule, Optim)), None)
        names = [adapter_name(term) for term in move.terms if knowledge_named(term.knowledge).adapter is not None]
        learn = {**move.learn, **dict.fromkeys(names, rule)} if rule is not None else move.learn
        moves.append(dataclasses.replace(move, learn=learn))
    return dataclasses.replace(phase, moves=tuple(moves))


def make_adapters(
    world: World, moves: tuple[Move, ...], feed: Feed, seed: int, states: Mapping[str, dict[str, Any]]
) -> None:
    """Make the adapters that the world has not yet, for the shapes that its models give.

    Args:
        seed: of their first weights.
        states: what checkpoints know of models by name; an adapter of an earlier phase goes on from there.
    """
    for term in [term for move in moves for term in move.terms]:
        knowledge = knowledge_named(term.knowledge)
        build = knowledge.adapter
        name = adapter_name(term)
        if build is None or name in world.models:
            continue
        student, teacher = _shapes(world, term, feed)
        torch.default_generator.manual_seed(seed ^ zlib.crc32(name.encode()))
        with blamed(term, knowledge):
            adapter = build(student, teacher, samples=feed.samples, **term.settings)
        if name in states:
            adapter.load_state_dict(states[name])
        world.models[name] = Model(adapter, (), ())


@torch.no_grad()
def _shapes(world: World, term: Term, feed: Feed) -> tuple[Any, Any]:
    """Shapes of both sides of a term, without the batch axis; a list where a side has several."""
    feed.start_epoch(0, torch.zeros(2, dtype=torch.int64))
    for model in world.models.values():
        model.network.eval()
    texts = (*texts_of(term.student), *texts_of(term.teacher))
    taps = Taps(world, [r for r in parse_all(texts) if r.name in world.models])
    try:
        values = Values(world, taps, feed.batch(torch.arange(2)), set(), {})
        found = {text: values.get(text) for text in texts}
    finally:
        taps.close()
    return _of(term.student, found), _of(term.teacher, found)


def _of(side: Side | None, found: Mapping[str, Tensor]) -> Shape | list[Shape] | None:
    if side is None or isinstance(side, str):
        return None if side is None else tuple(found[side].shape[1:])
    return [tuple(found[text].shape[1:]) for text in side]
