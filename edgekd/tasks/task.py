"""The table of tasks: loss, response knowledge, metric. One file per task beside this one holds the functions."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from edgekd.tasks import classification, regression


@dataclass(frozen=True)
class Score:
    """A metric on n samples with its 95% interval; `better` is +1 where more is better and -1 where less is."""

    name: str
    value: float
    unit: str
    n: int
    ci95: tuple[float, float]
    better: int


@dataclass(frozen=True)
class Task:
    """One kind of head. `loss` and `response` are names of knowledges that the trainer looks up.

    `difference`: the metric of outputs less that of others on the same samples, with an interval for pairs. `answers`:
    what outputs stand for as targets, where the data has none.
    """

    name: str
    loss: str
    response: str
    metric: Callable[[Tensor, Tensor], Score]
    agreement: Callable[[Tensor, Tensor], Score]
    check: Callable[[Tensor, Tensor, str], None]
    difference: Callable[[Tensor, Tensor, Tensor], Score]
    answers: Callable[[Tensor], Tensor]


_TASKS = {
    "classification": Task(
        "classification",
        "cross_entropy",
        "kd",
        lambda output, target: Score(*classification.accuracy(output, target)),
        lambda output, reference: Score(*classification.agreement(output, reference)),
        classification.check,
        lambda output, reference, target: Score(*classification.accuracy_difference(output, reference, target)),
        classification.answers,
    ),
    "regression": Task(
        "regression",
        "squared_error",
        "mse_logits",
        lambda output, target: Score(*regression.mean_absolute_error(output, target)),
        lambda output, reference: Score(*regression.agreement(output, reference)),
        regression.check,
        lambda output, reference, target: Score(*regression.error_difference(output, reference, target)),
        regression.answers,
    ),
}


def task_named(name: str) -> Task:
    """The task of that name; names are checked where the pipeline file is read."""
    return _TASKS[name]
