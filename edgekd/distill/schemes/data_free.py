"""data_free: a generator makes the samples on which the teacher teaches; nobody has the data any more."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from edgekd.distill.schemes.recipe import Recipe, Start
from edgekd.distill.schemes.soft import called, label_of
from edgekd.tasks import HeadSettings
from edgekd.train.edits import Noise
from edgekd.train.world import Move, Optim, Phase, Term

_NOISE = "noise"
_ROWS = "rows of noise"  # a name that no table of a pipeline file can have
MADE = f"generator({_NOISE})"


@dataclass(frozen=True)
class Wishes:
    """What a generator is asked for: weights, and the layers of the teacher that judge.

    Attributes:
        one_hot: samples that look like some class (DAFL, Chen et al. 2019).
        entropy: all classes alike often (DAFL).
        activation: samples that excite `features`, a layer of the teacher, as real ones do (DAFL); its outputs, or with
            ":in" its inputs.
        statistics: batches with the running statistics of `batchnorms`, layers of the teacher (DeepInversion, Yin et
            al. 2020).
        disagreement: samples on which student and teacher differ (DFAD, Fang et al. 2019).
    """

    one_hot: float = 1.0
    entropy: float = 5.0
    activation: float = 0.1
    features: str | None = None
    statistics: float = 1.0
    batchnorms: tuple[str, ...] = ()
    disagreement: float = 0.0


def data_free(
    recipe: Recipe,
    *,
    generator: Optim,
    noise: tuple[int, ...] = (100,),
    rows: int = 6400,
    wishes: Wishes = Wishes(),
    every: int = 1,
    start: Start = (),
) -> list[Phase]:
    """One phase in which the model `generator` and the student learn by turns, step by step.

    Args:
        recipe: how the student learns, and what: knowledge that needs no true targets.
        generator: how the generator learns, whose one input is `noise`, (N, *noise), and whose output is what networks
            see: normalised already.
        noise: shape of a row of noise.
        rows: made samples of an epoch.
        wishes: what the generator learns from.
        every: the generator learns in every so-manieth step of the student.
        start: edits before, such as the one that makes the generator (made.Generator).
    """
    blind = recipe.without_targets(("made samples have none", "use kd, or a scheme that looks at data"))
    learned = called(blind.teaching("student", "teacher"), MADE)
    if wishes.disagreement:
        learned += _disagreement(recipe.heads, 1.0, live=False)
    moves = (
        Move({"generator": generator}, generator_terms(recipe.heads, wishes), every),
        Move({"student": recipe.optim}, learned),
    )
    edits = (*start, Noise(_ROWS, _NOISE, noise, rows))
    return [Phase("data_free", moves, recipe.epochs, edits, _ROWS, recipe.watch("student"))]


def generator_terms(heads: Sequence[HeadSettings], wishes: Wishes) -> tuple[Term, ...]:
    """What a generator learns from; gradients go through the frozen models to it."""
    terms = []
    for head in heads:
        if head.task == "classification":
            for name, weight in (("one_hot", wishes.one_hot), ("entropy", wishes.entropy)):
                terms.append(Term(name, f"teacher[{head.output}]", None, weight, label=label_of(name, head, heads)))
    if wishes.features:
        terms.append(Term("activation", f"teacher.{wishes.features}", None, wishes.activation))
    for layer in wishes.batchnorms:
        state = {"mean": f"teacher#{layer}.running_mean", "variance": f"teacher#{layer}.running_var"}
        label = f"bn_statistics {layer}"
        terms.append(Term("bn_statistics", f"teacher.{layer}:in", None, wishes.statistics, also=state, label=label))
    wanted = called([term for term in terms if term.weight], MADE)
    return wanted + (_disagreement(heads, -wishes.disagreement, live=True) if wishes.disagreement else ())


def _disagreement(heads: Sequence[HeadSettings], weight: float, *, live: bool) -> tuple[Term, ...]:
    """L1 between student and teacher; with a negative weight the generator looks for it, and so goes through both."""
    name = "disagreement sought" if live else "disagreement"
    terms = [
        Term(
            "mean_absolute",
            f"student[{head.output}]",
            f"teacher[{head.output}]",
            weight,
            live=live,
            label=label_of(name, head, heads),
        )
        for head in heads
    ]
    return called(terms, MADE)
