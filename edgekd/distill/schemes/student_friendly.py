"""student_friendly: the teacher learns with branches of the student on its stages, then teaches (Park et al. 2021)."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from edgekd.distill.branches import Branch
from edgekd.distill.knowledge_settings import KnowledgeSettings
from edgekd.distill.scheme_settings import StudentFriendlySettings
from edgekd.distill.schemes.recipe import Recipe, Start, owned
from edgekd.distill.schemes.terms import response_of, response_terms
from edgekd.distill.term_settings import Pair
from edgekd.errors import ConfigError
from edgekd.tasks import HeadSettings
from edgekd.train.world import Copy, Move, Phase, Term

STUDENT, TEACHER, FRIENDLY = "student", "teacher", "friendly"


def student_friendly(recipe: Recipe, settings: StudentFriendlySettings, stages: Sequence[Pair]) -> list[Phase]:
    """SFTN: a copy of the teacher learns CE, and through each branch the branch's CE and KL to what it says itself.

    A branch is what the student does behind one of its stages, on the teacher's stage of the same size; it falls away
    when the teacher is trained. The teacher then teaches the student by any knowledge.

    Args:
        stages: of student and teacher, shallow to deep, with maps of one size; the deepest gets no branch where there
            are several, because the student has no stage behind it.

    Raises:
        ConfigError: the data has no targets, or there is no stage.
    """
    recipe.needs_targets("scheme student_friendly")
    joined = list(stages[:-1] or stages)
    if not joined:
        raise ConfigError("no stage of the teacher takes a branch of the student", hint="name some with `layers:`")
    branches = [f"branch_{number}" for number in range(1, len(joined) + 1)]
    terms = owned(FRIENDLY, recipe.task(FRIENDLY, settings.task_weight))
    for branch, (_, stage) in zip(branches, joined, strict=True):
        found = recipe.task(branch, settings.branch_weight)
        if settings.kl_weight:
            found += response_terms(branch, FRIENDLY, recipe.heads, lambda head: (_word(head, settings),))
        terms += tuple(_called_on(term, f"{FRIENDLY}.{stage}") for term in owned(branch, found))
    edits = [Branch(STUDENT, TEACHER, pair, branch) for branch, pair in zip(branches, joined, strict=True)]
    start: Start = (Copy(TEACHER, FRIENDLY), *edits)
    epochs = recipe.epochs if settings.epochs is None else settings.epochs
    learn = dict.fromkeys((FRIENDLY, *branches), recipe.optim)
    first = Phase("teacher with branches", (Move(learn, terms),), epochs, start, watch=recipe.watch(FRIENDLY))
    return [first, recipe.taught(STUDENT, FRIENDLY, "student_friendly", like=TEACHER)]


def _called_on(term: Term, feature: str) -> Term:
    return dataclasses.replace(term, student=f"{term.student}({feature})")


def _word(head: HeadSettings, settings: StudentFriendlySettings) -> KnowledgeSettings:
    return response_of(head, settings.kl_weight, settings.temperature)
