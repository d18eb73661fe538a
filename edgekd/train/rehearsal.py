"""A rehearsal of phases on untrained networks: what does not fit is known before anything is trained."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Sequence
from typing import Any

import torch

from edgekd.config.settings import did_you_mean
from edgekd.data.views import Views
from edgekd.errors import ConfigError, TrainingError
from edgekd.train.adapters import make_adapters, with_adapters
from edgekd.train.distributed import Ranks
from edgekd.train.edits import table_named
from edgekd.train.feed import Feed
from edgekd.train.knowledge import knowledge_named
from edgekd.train.objective import Objective, Part
from edgekd.train.phase import add_kept, references_of
from edgekd.train.references import Taps, check_references
from edgekd.train.world import Decision, Follow, Phase, Term, World


def rehearse_phases(world: World, phases: Sequence[Phase], views: Views, seed: int) -> None:
    """Make what edits make, and look every reference up, as far as it does not depend on what was trained.

    Each loss is asked for once. From the first edit on that decides by trained models, only names are looked up.

    Args:
        world: with all tables that the phases start from; it is changed.

    Raises:
        ConfigError: there is no such table, column, model or layer, an edit does not fit, or a term cannot be called.
    """
    known, made = True, set(world.models)
    for phase in phases:
        made |= set(world.models).union(*(edit.touches for edit in phase.start)) | _kept(phase)
        _check(phase, made)
        for edit in phase.start:
            if isinstance(edit, Decision):
                known = False
            elif known:
                edit(world, seed)
        references = references_of(phase)
        if known and phase.moves:
            feed = Feed(world, table_named(world, phase.data), views, torch.device("cpu"))
            check_references(world, feed.columns(), references)
            _try(world, phase, feed, seed)
            add_kept(world, phase)
        Taps(world, [r for r in references if r.name in world.models]).close()


def _kept(phase: Phase) -> set[str]:
    return {phase.watch.keep} if phase.watch and phase.watch.keep else set()


def _check(phase: Phase, made: set[str]) -> None:
    """Raise ConfigError for learners that nothing makes, unknown knowledges, and settings that these do not take."""
    followed = {rule.source for move in phase.moves for rule in move.learn.values() if isinstance(rule, Follow)}
    watched = {phase.watch.model} if phase.watch else set()
    for name in sorted(phase.learners() | followed | watched):
        if name not in made:
            message = f"the phase {phase.name!r} names the model {name!r}, which there is not"
            raise ConfigError(message, hint=did_you_mean(name, made))
    for term in (term for move in phase.moves for term in move.terms):
        _check_settings(term, phase.name)


def _check_settings(term: Term, phase: str) -> None:
    knowledge = knowledge_named(term.knowledge)
    called: Callable[..., Any] = knowledge.adapter or knowledge.function
    also = dict.fromkeys(("samples",) if knowledge.adapter is not None else term.also)
    try:
        signature = inspect.signature(called)
    except (ValueError, TypeError):  # written in C: it says nothing
        return
    try:
        signature.bind(None, None, **also, **term.settings)
    except TypeError as error:
        taken = [p.name for p in [*signature.parameters.values()][2:] if p.kind is not p.VAR_KEYWORD]
        wrong = next((name for name in (*term.settings, *also) if name not in taken), "")
        hint = did_you_mean(wrong, [name for name in taken if name != "samples"])
        raise ConfigError(f"the term {term.name!r} of phase {phase!r} cannot be called: {error}", hint=hint) from None


def _try(world: World, phase: Phase, feed: Feed, seed: int) -> None:
    """Make adapters and ask each move for its loss of two rows, in evaluation mode; nothing is learned or drawn."""
    phase = with_adapters(phase)
    modes = {name: model.network.training for name, model in world.models.items()}
    with torch.random.fork_rng(devices=()):
        torch.default_generator.manual_seed(seed)
        taps = None
        try:
            make_adapters(world, phase.moves, feed, seed, {})
            for model in world.models.values():
                model.network.eval()
            taps = Taps(world, [r for r in references_of(phase) if r.name in world.models])
            feed.start_epoch(0, torch.zeros(2, dtype=torch.int64))
            batch = feed.batch(torch.arange(2))
            for move in phase.moves:
                if move.terms:
                    objective = Objective(world, move, taps, "f32", torch.device("cpu"), Ranks())
                    objective(batch, {}, Part(math.inf, 0, 2, 2, 2, 1.0))
        except TrainingError as error:  # known before anything is trained
            raise ConfigError(f"phase {phase.name}: {error.message}", hint=error.hint) from error
        finally:
            if taps is not None:
                taps.close()
    for name, training in modes.items():
        world.models[name].network.train(training)
