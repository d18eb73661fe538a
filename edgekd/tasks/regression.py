"""Regression: squared error, mean absolute error."""

from __future__ import annotations

import math

import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from edgekd.errors import DataError
from edgekd.tasks.classification import ScoreFields


def squared_error(student: Tensor, teacher: Tensor | None = None, *, target: Tensor) -> Tensor:
    """Mean squared error of outputs (N, D) or (N,) with real targets of as many values; there is no teacher."""
    return F.mse_loss(student.reshape(len(student), -1), target.reshape(len(target), -1).to(student.dtype))


def mean_absolute_error(output: Tensor, target: Tensor) -> ScoreFields:
    """Mean absolute error of outputs (N, D) or (N,), in the target's unit, with a normal 95% interval."""
    return _mean_absolute("mae", output, target)


def agreement(output: Tensor, reference: Tensor) -> ScoreFields:
    """Mean absolute difference to a reference's outputs: what is measured without labels."""
    return _mean_absolute("difference", output, reference)


def check(output: Tensor, target: Tensor, where: str) -> None:
    """Raise DataError when outputs (N, ..) and targets (M, ..) hold different numbers of values per sample."""
    if output[0].numel() != target[0].numel():
        raise DataError(
            f"{where}: the network gives {tuple(output.shape)} for targets of shape {tuple(target.shape)}",
            hint="a regression output needs as many values per sample as its target has",
        )


def _mean_absolute(name: str, output: Tensor, target: Tensor) -> ScoreFields:
    per_sample = (output.reshape(len(output), -1).double() - target.reshape(len(target), -1).double()).abs().mean(1)
    n, value = len(per_sample), float(per_sample.mean())
    half = 1.959964 * float(per_sample.std()) / math.sqrt(n) if n > 1 else 0.0
    return name, value, "target unit", n, (max(0.0, value - half), value + half), -1
