"""Terms that schemes are made of: the task's own loss, and what a teacher's heads say."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import edgekd.distill.knowledge  # noqa: F401  registers every knowledge
from edgekd.distill.settings import KnowledgeSettings
from edgekd.tasks import HeadSettings
from edgekd.tasks.task import task_named
from edgekd.train.feed import MIX_SHARE, other_name
from edgekd.train.world import Term


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
    teacher: str,
    heads: Sequence[HeadSettings],
    knowledge: Callable[[HeadSettings], Sequence[KnowledgeSettings]],
) -> tuple[Term, ...]:
    """What the teacher's heads teach the student's: `knowledge` says which knowledges a head uses."""
    terms = []
    for head in heads:
        sides = f"{student}[{head.output}]", f"{teacher}[{head.output}]"
        for item in knowledge(head):
            settings = item.settings.canonical()
            weight = settings.pop("weight")
            terms.append(Term(item.name, *sides, weight, settings, label=_label(item.name, head, heads)))
    return tuple(terms)


def knowledge_of(head: HeadSettings, given: Sequence[KnowledgeSettings] | None) -> Sequence[KnowledgeSettings]:
    """The given knowledges that fit a head (logits: all; real values: no softmax), else its task's own, weight .9."""
    response = task_named(head.task).response
    fitting = [item for item in given or () if head.task == "classification" or item.name == response]
    return fitting or (KnowledgeSettings.model_validate_json(f'{{"{response}": {{}}}}'),)


def _label(name: str, head: HeadSettings, heads: Sequence[HeadSettings]) -> str:
    return name if len(heads) == 1 else f"{head.output}.{name}"
