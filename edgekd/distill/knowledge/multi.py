"""Response knowledge whose teacher is not one network: several of them, or none at all."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from edgekd.distill.knowledge.shapes import logits, outputs
from edgekd.train.precision import full


def mean_kd(student: Tensor, teacher: Sequence[Tensor], *, temperature: float = 4.0) -> Tensor:
    """T^2 * KL(mean of the teachers' softmax(z / T) || softmax(student / T)), mean over the batch (You et al. 2017).

    Args:
        student: logits (N, C).
        teacher: logits (N, C) of each teacher; get no gradient.
        temperature: T > 0.

    Raises:
        ConfigError: shapes differ.
    """
    alike = full(student).new_full((len(student), len(teacher)), 1.0 / len(teacher))
    return _weighted_kd(student, teacher, alike, temperature, "mean_kd")


def confidence_kd(student: Tensor, teacher: Sequence[Tensor], *, target: Tensor, temperature: float = 4.0) -> Tensor:
    """`mean_kd` in which, sample by sample, a teacher counts the more the smaller its cross-entropy is.

    w_k = (1 - softmax_k(CE)) / (K - 1), which sum to 1 (CA-MKD, Zhang et al. 2022).

    Args:
        student: logits (N, C).
        teacher: logits (N, C) of each of K >= 2 teachers; get no gradient.
        target: int64 (N,), the true classes.
        temperature: T > 0.

    Raises:
        ConfigError: shapes differ.
    """
    errors = torch.stack([F.cross_entropy(full(z.detach()), target, reduction="none") for z in teacher], dim=1)
    shares = (1.0 - F.softmax(errors, dim=1)) / max(len(teacher) - 1, 1)
    return _weighted_kd(student, teacher, shares, temperature, "confidence_kd")


def _weighted_kd(student: Tensor, teacher: Sequence[Tensor], shares: Tensor, temperature: float, name: str) -> Tensor:
    """KL to a mixture of the teachers' probabilities with shares (N, K)."""
    found = torch.stack([F.log_softmax(logits(student, z, name)[1] / temperature, dim=1) for z in teacher], dim=1)
    log_p_t = torch.logsumexp(found + shares.clamp(min=1e-12).log()[:, :, None], dim=1)
    log_p_s = F.log_softmax(full(student) / temperature, dim=1)
    return F.kl_div(log_p_s, log_p_t, reduction="batchmean", log_target=True) * temperature**2


def mean_mse(student: Tensor, teacher: Sequence[Tensor]) -> Tensor:
    """Mean squared difference from the mean of the teachers' outputs, as many as the student's (N, ..)."""
    pairs = [outputs(student, z, "mean_mse") for z in teacher]
    return F.mse_loss(pairs[0][0], torch.stack([known for _, known in pairs]).mean(0))


def virtual_teacher(
    student: Tensor,
    teacher: Tensor | None = None,
    *,
    target: Tensor,
    correct: float = 0.99,
    temperature: float = 20.0,
) -> Tensor:
    """KD from a made-up teacher that gives the true class the probability `correct` (Tf-KD, Yuan et al. 2020).

    Its softened answer is softmax(log p / T), as a network's with these probabilities would be.

    Args:
        student: logits (N, C), C >= 2.
        target: int64 (N,), the true classes.
        correct: probability of the true class; the others share the rest.
        temperature: T > 0 of both softmaxes; the loss carries T^2.

    Raises:
        ConfigError: the shape is another, or there is one class.
    """
    student, _ = logits(student, student, "virtual_teacher", classes=2)
    classes = student.shape[1]
    p_t = torch.full_like(student, (1.0 - correct) / (classes - 1)).scatter(1, target[:, None], correct)
    log_p_t = F.log_softmax(p_t.log() / temperature, dim=1)
    log_p_s = F.log_softmax(student / temperature, dim=1)
    return F.kl_div(log_p_s, log_p_t, reduction="batchmean", log_target=True) * temperature**2
