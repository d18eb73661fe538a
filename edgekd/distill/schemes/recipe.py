"""What every scheme needs to make its phases: the heads, how a network learns, and what is taught."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from edgekd.distill.knowledge_settings import KnowledgeSettings
from edgekd.distill.schemes.terms import (
    MIXED,
    UNLABELLED,
    Lack,
    PairOf,
    feature_terms,
    knowledge_of,
    no_pairs,
    response_terms,
    task_terms,
)
from edgekd.errors import ConfigError
from edgekd.tasks import HeadSettings
from edgekd.train.world import Decision, Edit, Move, Optim, Phase, Term, Watch

Start = tuple[Edit | Decision, ...]


@dataclass(frozen=True)
class Recipe:
    """How the networks of a scheme learn.

    Attributes:
        epochs: of a phase, unless the scheme says otherwise.
        keep: whether the best state on the validation split goes on, in place of the last.
        task_weight: of the task's own loss beside a teacher.
        knowledge: what is taught; None: the response knowledge of each head.
        pairs: layers that a knowledge compares between two models.
        mixed: see `task_terms`.
        label_smoothing: see `task_terms`.
        lack: why heads without a target have none.
    """

    heads: tuple[HeadSettings, ...]
    optim: Optim
    epochs: int
    keep: bool = False
    task_weight: float = 0.1
    knowledge: tuple[KnowledgeSettings, ...] | None = None
    pairs: PairOf = no_pairs
    mixed: bool = False
    label_smoothing: float = 0.0
    lack: Lack = UNLABELLED

    def without_targets(self, lack: Lack, names: Iterable[str] | None = None) -> Recipe:
        """The same where nobody looks at true targets: at those of some names, or at any."""
        gone = {head.target for head in self.heads} if names is None else {*names}
        heads = tuple(h.model_copy(update={"target": None}) if h.target in gone else h for h in self.heads)
        return dataclasses.replace(self, heads=heads, lack=lack)

    def task(self, model: str, weight: float | None = None) -> tuple[Term, ...]:
        """The task's own loss of a model; without a weight, that beside a teacher."""
        weight = self.task_weight if weight is None else weight
        return task_terms(model, self.heads, weight, mixed=self.mixed, label_smoothing=self.label_smoothing)

    def teaching(self, student: str, teacher: str, *, like: str | None = None) -> tuple[Term, ...]:
        """What one model teaches another. `like`: a model of the teacher's kind, where it is made in a later phase."""

        def pairs(item: KnowledgeSettings) -> Sequence[tuple[str, str]]:
            return self.pairs(item, student, like or teacher)

        # Where samples are mixed no class is theirs alone: what could use classes (crd) goes without.
        seen = self.without_targets(MIXED) if self.mixed else self
        terms = response_terms(student, teacher, seen.heads, lambda head: knowledge_of(head, self.knowledge), seen.lack)
        return terms + feature_terms(student, teacher, seen.heads, self.knowledge or (), pairs, seen.lack)

    def phase(
        self,
        name: str,
        model: str,
        terms: tuple[Term, ...],
        *,
        epochs: int | None = None,
        start: Start = (),
        data: str = "train",
    ) -> Phase:
        """One model learns from some terms, and is watched."""
        move = Move({model: self.optim}, terms)
        return Phase(name, (move,), self.epochs if epochs is None else epochs, start, data, self.watch(model))

    def alone(
        self, model: str, name: str, *, epochs: int | None = None, start: Start = (), data: str = "train"
    ) -> Phase:
        """One model learns its task from the true targets alone."""
        return self.phase(name, model, self.task(model, 1.0), epochs=epochs, start=start, data=data)

    def taught(
        self,
        student: str,
        teacher: str,
        name: str,
        *,
        epochs: int | None = None,
        start: Start = (),
        like: str | None = None,
    ) -> Phase:
        """One model learns from the targets and from another, which is frozen."""
        terms = self.task(student) + self.teaching(student, teacher, like=like)
        return self.phase(name, student, terms, epochs=epochs, start=start)

    def together(self, name: str, models: Iterable[str], terms: tuple[Term, ...], start: Start = ()) -> Phase:
        """Several models learn in every step, each from its own terms; the first is watched."""
        learn = dict.fromkeys(models, self.optim)
        return Phase(name, (Move(learn, terms),), self.epochs, start, watch=self.watch(next(iter(learn))))

    def watch(self, model: str) -> Watch:
        """Score a model after each epoch, and keep its best state where that is wanted."""
        return Watch(model, keep=model if self.keep else None)

    def needs_targets(self, who: str) -> None:
        """Raise ConfigError where the data has no true targets to learn from."""
        if not any(head.target for head in self.heads):
            raise ConfigError(f"{who} learns from true targets, and the data has none", hint="give labelled data")

    def needs_whole_samples(self, who: str, hint: str) -> None:
        """Raise ConfigError where samples are mixed and a head has classes: what is said of each does not mix."""
        if self.mixed and any(head.task == "classification" for head in self.heads):
            raise ConfigError(f"{who}, and data.augment mixes samples", hint=hint)


def owned(model: str, terms: Iterable[Term]) -> tuple[Term, ...]:
    """Terms under the name of the model that learns from them, where several learn in one phase."""
    return tuple(dataclasses.replace(term, label=f"{model}.{term.name}") for term in terms)


def scaled(terms: Iterable[Term], factor: float) -> tuple[Term, ...]:
    """Terms with their weights times a factor."""
    return tuple(dataclasses.replace(term, weight=term.weight * factor) for term in terms)


def shared(teachers: Sequence[str], teaching: Callable[[str], Iterable[Term]]) -> tuple[Term, ...]:
    """What each of some teachers teaches, with its share of the weight and, where there are several, under its name."""
    found: list[Term] = []
    for name in teachers:
        for term in scaled(teaching(name), 1 / len(teachers)):
            found.append(dataclasses.replace(term, label=f"{term.name} to {name}") if len(teachers) > 1 else term)
    return tuple(found)
