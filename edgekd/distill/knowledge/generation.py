"""Losses of generators and critics: what data-free and adversarial schemes ask of made data.

None of them detaches the teacher: a generator learns through it (`live` terms), and the trainer detaches otherwise.
Each is called like a knowledge, with the tensor to judge first; most need no second side.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from edgekd.errors import ConfigError
from edgekd.train.precision import full


def one_hot(student: Tensor, teacher: Tensor | None = None) -> Tensor:
    """Cross-entropy of logits (N, C) with their own largest class: made data must look like some class (DAFL, 2019)."""
    student = full(student)
    return F.cross_entropy(student, student.detach().argmax(1))


def activation(student: Tensor, teacher: Tensor | None = None) -> Tensor:
    """-mean |features| (N, ..): real data excites a trained network more than noise does (DAFL, Chen et al. 2019)."""
    return -full(student).abs().mean()


def entropy(student: Tensor, teacher: Tensor | None = None) -> Tensor:
    """Negative entropy in nats of the mean class distribution of logits (N, C): all classes alike (DAFL, 2019)."""
    log_p = F.log_softmax(full(student), dim=1).logsumexp(0) - math.log(len(student))
    return (log_p.exp() * log_p).sum()


def mean_absolute(student: Tensor, teacher: Tensor) -> Tensor:
    """Mean |student - teacher| of one shape; a generator that maximises it finds where they differ (DFAD, 2019)."""
    return F.l1_loss(full(student), full(teacher))


def bn_statistics(student: Tensor, teacher: Tensor | None = None, *, mean: Tensor, variance: Tensor) -> Tensor:
    """||mean - running mean|| + ||variance - running variance|| of a BatchNorm's input (DeepInversion, 2020).

    Args:
        student: what the layer is given, (N, C, ..), more than one value per channel.
        mean: its running mean (C,).
        variance: its running variance (C,).

    Raises:
        ConfigError: other channels than the layer has.
    """
    if student.dim() < 2 or student.shape[1:2] != mean.shape:
        raise ConfigError(
            f"bn_statistics of {tuple(student.shape)} for a BatchNorm of {len(mean)} channels",
            hint="name the layer's own input, e.g. teacher.bn1:in",
        )
    own = full(student).transpose(0, 1).flatten(1)
    spread = own.var(1, unbiased=False)
    distance: Tensor = torch.linalg.vector_norm(own.mean(1) - mean) + torch.linalg.vector_norm(spread - variance)
    return distance


def real(student: Tensor, teacher: Tensor | None = None) -> Tensor:
    """Binary cross-entropy of a critic's logits with "real", mean -log sigmoid (Goodfellow et al. 2014)."""
    return F.softplus(-full(student)).mean()


def fake(student: Tensor, teacher: Tensor | None = None) -> Tensor:
    """Binary cross-entropy of a critic's logits with "fake", mean -log(1 - sigmoid) (Goodfellow et al. 2014)."""
    return F.softplus(full(student)).mean()
