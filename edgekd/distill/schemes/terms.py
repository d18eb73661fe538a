"""Terms that schemes are made of: the task's own loss, and what a teacher's heads say."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import edgekd.distill.knowledge  # noqa: F401  registers every knowledge
from edgekd.distill.knowledge_settings import KdSettings, KnowledgeSettings, MseLogitsSettings
from edgekd.distill.term_settings import Pair
from edgekd.errors import ConfigError
from edgekd.tasks import HeadSettings
from edgekd.tasks.task import task_named
from edgekd.train.feed import MIX_SHARE, SAMPLE_IDS, other_name
from edgekd.train.knowledge import knowledge_named
from edgekd.train.world import Side, Term

Lack = tuple[str, str]
"""Why no knowledge sees true classes, and what mends it."""

UNLABELLED: Lack = ("the data has none", "use kd, or data with labels")
MIXED: Lack = ("samples are mixed, so that none has one", "use kd, or mix nothing")

PairOf = Callable[[KnowledgeSettings, str, str], Sequence[Pair]]
"""Layers that a knowledge compares between two models of the world: (knowledge, student, teacher)."""


def no_pairs(item: KnowledgeSettings, student: str, teacher: str) -> Sequence[Pair]:
    """Layers of a knowledge that names them itself."""
    assert item.layers is not None, f"nobody says which layers {item.name} compares"
    return item.layers


def task_terms(
    model: str, heads: Sequence[HeadSettings], weight: float, *, mixed: bool = False, label_smoothing: float = 0.0
) -> tuple[Term, ...]:
    """The loss of each head that has a target; none when the weight is 0.

    Args:
        mixed: whether batches are mixed with other samples (feed.py); classes then are learned in their shares, while
            real targets are mixed already.
        label_smoothing: share of each true class that is spread over all.
    """
    terms = []
    for head in heads:
        if head.target is not None and weight > 0:
            name = task_named(head.task).loss
            also, settings = {"target": head.target}, {}
            if head.task == "classification":
                also |= {"other": other_name(head.target), "share": MIX_SHARE} if mixed else {}
                settings = {"label_smoothing": label_smoothing} if label_smoothing else {}
            label = _label(name, head, heads)
            terms.append(Term(name, f"{model}[{head.output}]", None, weight, settings, also, label=label))
    return tuple(terms)


def response_terms(
    student: str,
    teacher: Side,
    heads: Sequence[HeadSettings],
    knowledge: Callable[[HeadSettings], Sequence[KnowledgeSettings]],
    lack: Lack = UNLABELLED,
) -> tuple[Term, ...]:
    """What the teacher's heads teach the student's: `knowledge` says which knowledges a head uses.

    Raises:
        ConfigError: one needs true classes, and its head has no target; `lack` says why.
    """
    terms = []
    for head in heads:
        for item in knowledge(head):
            also = _also(item.name, head, lack)
            sides = f"{student}[{head.output}]", _each(teacher, f"[{head.output}]")
            terms.append(_term(item, *sides, also, _label(item.name, head, heads)))
    return tuple(terms)


def feature_terms(
    student: str,
    teacher: str,
    heads: Sequence[HeadSettings],
    knowledge: Sequence[KnowledgeSettings],
    pairs: Callable[[KnowledgeSettings], Sequence[Pair]],
    lack: Lack = UNLABELLED,
) -> tuple[Term, ...]:
    """What the teacher's layers teach the student's: `pairs` says which layers a knowledge compares.

    Knowledge of outputs among them is left out. A knowledge of one pair is a term for each pair, one over several
    stages a single term.
    """
    terms = []
    for item in (item for item in knowledge if item.features):
        found = [(f"{student}.{s}", f"{teacher}.{t}") for s, t in pairs(item)]
        also = _also(item.name, heads[0], lack)
        if knowledge_named(item.name).levels == "several":
            terms.append(_term(item, tuple(s for s, _ in found), tuple(t for _, t in found), also, item.name))
            continue
        for s, t in found:
            place = f" {s.partition('.')[2]}" if len(found) > 1 else ""
            terms.append(_term(item, s, t, also, f"{item.name}{place}"))
    return tuple(terms)


def _term(item: KnowledgeSettings, student: Side, teacher: Side, also: Mapping[str, str], label: str) -> Term:
    ramp = (0.0, item.ramp) if item.ramp else None
    return Term(item.name, student, teacher, item.weight, item.arguments, also, ramp, label=label)


def _also(name: str, head: HeadSettings, lack: Lack) -> dict[str, str]:
    """What a knowledge needs besides its two sides: true classes, and which samples these are."""
    knowledge = knowledge_named(name)
    if "target" in knowledge.needs and head.target is None:
        raise ConfigError(f"{name} needs true classes, and {lack[0]}", hint=lack[1])
    wanted = knowledge.needs | knowledge.takes
    also = {"index": SAMPLE_IDS} if "index" in wanted else {}
    if "target" in wanted and head.target is not None and head.task == "classification":
        also["target"] = head.target
    return also


def _each(side: Side, ending: str) -> Side:
    return f"{side}{ending}" if isinstance(side, str) else tuple(f"{text}{ending}" for text in side)


def knowledge_of(head: HeadSettings, given: Sequence[KnowledgeSettings] | None) -> Sequence[KnowledgeSettings]:
    """The given knowledges of outputs that fit a head; its task's own where none is given, or none that fits."""
    outputs = [item for item in given or () if not item.features]
    fitting = [item for item in outputs if head.task == "classification" or not item.of_classes]
    if fitting or (given is not None and not outputs):
        return fitting
    return (KnowledgeSettings.model_validate_json(f'{{"{task_named(head.task).response}": {{}}}}'),)


def response_of(head: HeadSettings, weight: float, temperature: float) -> KnowledgeSettings:
    """The response knowledge of a head's task with a weight, and a temperature where it has one."""
    if task_named(head.task).response == "kd":
        return KnowledgeSettings(kd=KdSettings(weight=weight, temperature=temperature))
    return KnowledgeSettings(mse_logits=MseLogitsSettings(weight=weight))


def _label(name: str, head: HeadSettings, heads: Sequence[HeadSettings]) -> str:
    return name if len(heads) == 1 else f"{head.output}.{name}"
