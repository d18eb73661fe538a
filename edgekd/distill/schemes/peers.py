"""online and collaborative: networks that learn side by side and teach each other; targets are detached."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from edgekd.distill.knowledge_settings import KnowledgeSettings
from edgekd.distill.scheme_settings import CollaborativeSettings
from edgekd.distill.schemes.recipe import Recipe, owned, scaled
from edgekd.distill.schemes.terms import response_of, response_terms
from edgekd.tasks import HeadSettings
from edgekd.tasks.task import task_named
from edgekd.train.edits import Best
from edgekd.train.world import Copy, Phase, Term

STUDENT = "student"


def online(recipe: Recipe, peers: Sequence[str], *, best: bool = False) -> list[Phase]:
    """Deep mutual learning (Zhang et al. 2018): each learns from the targets and from what all others say, on average.

    Args:
        recipe: its knowledge is that among peers.
        peers: models beside `student`.
        best: whether the best of all becomes the student.
    """
    recipe.needs_targets("scheme online")
    models = (STUDENT, *peers)
    terms: list[Term] = []
    for model in models:
        terms += owned(model, recipe.task(model))
        for other in _others(models, model):
            terms += _from(other, model, scaled(recipe.teaching(model, other), 1.0 / len(peers)), models)
    return [recipe.together("online", models, tuple(terms)), *_hand_over(models, best)]


def collaborative(
    recipe: Recipe, peers: Sequence[str], settings: CollaborativeSettings, *, best: bool = False
) -> list[Phase]:
    """CTSL-MKT (Sun and Gou 2021): each alone; then together, also from each other's relations and from one's own past.

    L_k = alpha CE + beta (L_DD + beta1 L_AD + beta2 KL_1 to the peer) + gamma KL_t to the own pre-trained output. With
    more than one peer, what comes from them is their mean. Relations are those between the outputs of a batch.

    Args:
        peers: models beside `student`.
        best: whether the best of all becomes the student.
    """
    recipe.needs_targets("scheme collaborative")
    models = (STUDENT, *peers)
    past = settings.gamma > 0 and "past" in settings.terms
    phases = [recipe.alone(model, f"{model} alone", epochs=settings.alone_epochs) for model in models]
    terms: list[Term] = []
    for model in models:
        terms += owned(model, recipe.task(model, settings.alpha) if "task" in settings.terms else ())
        for other in _others(models, model):
            found = scaled(_peer_terms(recipe, model, other, settings), settings.beta / len(peers))
            terms += _from(other, model, found, models)
        if past:
            terms += owned(model, _past_terms(recipe, model, settings))
    copies = tuple(Copy(model, _past(model)) for model in models if past)
    return [*phases, recipe.together("together", models, tuple(terms), copies), *_hand_over(models, best)]


def _peer_terms(recipe: Recipe, model: str, peer: str, settings: CollaborativeSettings) -> tuple[Term, ...]:
    """L_DD, beta1 L_AD and beta2 KL_1, of each head; without those that are left out or weigh nothing."""
    terms: list[Term] = []
    for head in recipe.heads:
        sides = f"{model}[{head.output}]", f"{peer}[{head.output}]"
        ending = "" if len(recipe.heads) == 1 else f" of {head.output}"
        for name, weight, other in (("distance", 1.0, "angle"), ("angle", settings.beta1, "distance")):
            if name in settings.terms and weight > 0:
                only = {f"{name}_weight": 1.0, f"{other}_weight": 0.0}
                terms.append(Term("rkd", *sides, weight, only, label=f"{name}{ending}"))
    if "peer" in settings.terms and settings.beta2 > 0:
        terms += response_terms(model, peer, recipe.heads, lambda head: (response_of(head, settings.beta2, 1.0),))
    return tuple(terms)


def _past_terms(recipe: Recipe, model: str, settings: CollaborativeSettings) -> tuple[Term, ...]:
    def knowledge(head: HeadSettings) -> tuple[KnowledgeSettings]:
        t = settings.temperature
        softened = task_named(head.task).response == "kd" and not settings.scale_by_t2
        # kd carries T^2, the paper's KL does not.
        return (response_of(head, settings.gamma / t**2 if softened else settings.gamma, t),)

    terms = response_terms(model, _past(model), recipe.heads, knowledge)
    return tuple(_labelled(term, f"past {term.name}") for term in terms)


def _labelled(term: Term, label: str) -> Term:
    return dataclasses.replace(term, label=label)


def _past(model: str) -> str:
    return f"{model}_past"


def _others(models: Sequence[str], model: str) -> list[str]:
    return [other for other in models if other != model]


def _from(other: str, model: str, terms: Sequence[Term], models: Sequence[str]) -> tuple[Term, ...]:
    """The terms of one model with another, named after both where there are more than two."""
    named = terms if len(models) == 2 else [_labelled(term, f"{term.name} to {other}") for term in terms]
    return owned(model, named)


def _hand_over(models: tuple[str, ...], best: bool) -> list[Phase]:
    return [Phase("best", start=(Best(models, STUDENT),))] if best else []
