"""Regression: squared error, mean absolute error."""

from __future__ import annotations

import math

import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from edgekd.errors import DataError
from edgekd.tasks.classification import ScoreFields
from edgekd.tasks.intervals import Z


def squared_error(student: Tensor, teacher: Tensor | None = None, *, target: Tensor) -> Tensor:
    """Mean squared error of outputs (N, D) or (N,) with real targets of as many values; there is no teacher."""
    return F.mse_loss(student.reshape(len(student), -1), target.reshape(len(target), -1).to(student.dtype))


def mean_absolute_error(output: Tensor, target: Tensor) -> ScoreFields:
    """Mean absolute error of outputs (N, D) or (N,), in the target's unit, with a normal 95% interval."""
    return _mean_absolute("mae", output, target)


def agreement(output: Tensor, reference: Tensor) -> ScoreFields:
    """Mean absolute difference to a reference's outputs: what is measured without labels."""
    return _mean_absolute("difference", output, reference)


def error_difference(output: Tensor, reference: Tensor, target: Tensor) -> ScoreFields:
    """Mean absolute error of outputs (N, D) or (N,) less that of others on the same samples, with a normal interval for
    pairs, by the differences from sample to sample."""
    return "mae", *_mean(_errors(output, target) - _errors(reference, target)), -1


def answers(output: Tensor) -> Tensor:
    """The targets that outputs stand for where there are no others: themselves."""
    return output


def check(output: Tensor, target: Tensor, where: str) -> None:
    """Raise DataError when outputs (N, ..) and targets (M, ..) hold different numbers of values per sample."""
    if output[0].numel() != target[0].numel():
        raise DataError(
            f"{where}: the network gives {tuple(output.shape)} for targets of shape {tuple(target.shape)}",
            hint="a regression output needs as many values per sample as its target has",
        )


def _mean_absolute(name: str, output: Tensor, target: Tensor) -> ScoreFields:
    value, unit, n, (low, high) = _mean(_errors(output, target))
    return name, value, unit, n, (max(0.0, low), high), -1


def _errors(output: Tensor, target: Tensor) -> Tensor:
    """Mean absolute error of each sample, float64 (N,)."""
    return (output.reshape(len(output), -1).double() - target.reshape(len(target), -1).double()).abs().mean(1)


def _mean(values: Tensor) -> tuple[float, str, int, tuple[float, float]]:
    """Mean of values (N,) with unit, N, and a normal interval."""
    n, value = len(values), float(values.mean())
    half = Z * float(values.std()) / math.sqrt(n) if n > 1 else 0.0
    return value, "target unit", n, (value - half, value + half)
