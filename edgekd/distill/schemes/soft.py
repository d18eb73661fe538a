"""Terms that schemes change or make for themselves: models called on other samples, columns in a teacher's place."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Sequence

import edgekd.distill.knowledge  # noqa: F401  registers every knowledge
from edgekd.tasks import HeadSettings
from edgekd.tasks.task import task_named
from edgekd.train.world import Side, Term


def called(terms: Iterable[Term], on: str) -> tuple[Term, ...]:
    """Terms whose models are called on another reference, in place of the batch."""

    def side(of: Side | None) -> Side | None:
        return f"{of}({on})" if isinstance(of, str) else tuple(f"{text}({on})" for text in of) if of else None

    found = []
    for term in terms:
        student = side(term.student)
        assert student is not None
        found.append(dataclasses.replace(term, student=student, teacher=side(term.teacher)))
    return tuple(found)


def soft_terms(
    student: str, target: Callable[[HeadSettings], str], heads: Sequence[HeadSettings], temperature: float
) -> tuple[Term, ...]:
    """Each head learns a column of outputs by the response knowledge of its task; `target` names the column."""
    terms = []
    for head in heads:
        name = task_named(head.task).response
        settings = {"temperature": temperature} if name == "kd" else {}
        side = f"{student}[{head.output}]"
        terms.append(Term(name, side, target(head), 1.0, settings, label=label_of(name, head, heads)))
    return tuple(terms)


def label_of(name: str, head: HeadSettings, heads: Sequence[HeadSettings]) -> str:
    """What a term is called in curves: with several heads, after its head too."""
    return name if len(heads) == 1 else f"{head.output}.{name}"
