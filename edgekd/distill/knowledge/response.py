"""Response knowledge: what a teacher's outputs say."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from edgekd.distill.knowledge.shapes import check_batch, logits, outputs, unit

_ROUNDING = 10  # units in the last place by which equal numbers may differ


def kd(student: Tensor, teacher: Tensor, *, temperature: float = 4.0) -> Tensor:
    """T^2 * KL(softmax(teacher / T) || softmax(student / T)), mean over the batch (Hinton et al. 2015).

    Args:
        student: logits (N, C).
        teacher: logits (N, C); gets no gradient.
        temperature: T > 0.

    Raises:
        ConfigError: shapes differ.
    """
    student, teacher = logits(student, teacher, "kd")
    log_p_s, log_p_t = F.log_softmax(student / temperature, dim=1), F.log_softmax(teacher / temperature, dim=1)
    return _kl(log_p_t, log_p_s) * temperature**2


def mse_logits(student: Tensor, teacher: Tensor) -> Tensor:
    """Mean squared difference of outputs (Ba and Caruana 2014); the response knowledge of regression.

    Args:
        student: outputs (N, ..).
        teacher: as many outputs, (N, ..); get no gradient.

    Raises:
        ConfigError: numbers of outputs differ.
    """
    return F.mse_loss(*outputs(student, teacher, "mse_logits"))


def dkd(
    student: Tensor,
    teacher: Tensor,
    *,
    target: Tensor,
    alpha: float = 1.0,
    beta: float = 8.0,
    temperature: float = 4.0,
) -> Tensor:
    """T^2 * (alpha * TCKD + beta * NCKD): the target class and the other classes apart (Zhao et al. 2022).

    Args:
        student: logits (N, C), C >= 2.
        teacher: logits (N, C); gets no gradient.
        target: int64 (N,), the true classes.
        alpha: weight of the binary KL between the target class and all others together.
        beta: weight of the KL among the other classes.
        temperature: T > 0.

    Raises:
        ConfigError: shapes differ, or there is one class.
    """
    student, teacher = logits(student, teacher, "dkd", classes=2)
    # The target's column is left out, not masked by a large negative number: that number would have to outgrow logits.
    others = torch.arange(student.shape[1] - 1, device=target.device).expand(len(target), -1)
    others = others + (others >= target[:, None])
    log_s, other_s = _split(student / temperature, target, others)
    log_t, other_t = _split(teacher / temperature, target, others)
    return (alpha * _kl(log_t, log_s) + beta * _kl(other_t, other_s)) * temperature**2


def _split(z: Tensor, target: Tensor, others: Tensor) -> tuple[Tensor, Tensor]:
    """Log-probabilities (N, 2) of target and rest, and (N, C - 1) within the rest."""
    rest = z.gather(1, others)
    binary = torch.stack((z.gather(1, target[:, None])[:, 0], rest.logsumexp(1)), dim=1)
    return F.log_softmax(binary, dim=1), F.log_softmax(rest, dim=1)


def dist(
    student: Tensor, teacher: Tensor, *, beta: float = 2.0, gamma: float = 2.0, temperature: float = 4.0
) -> Tensor:
    """T^2 * (beta * (1 - mean row Pearson) + gamma * (1 - mean column Pearson)) of probabilities (Huang et al. 2022).

    Args:
        student: logits (N, C), C >= 2; N >= 2 unless gamma is 0.
        teacher: logits (N, C); gets no gradient.
        beta: weight of the correlation within each sample.
        gamma: weight of the correlation within each class, over the batch.
        temperature: T > 0.

    Raises:
        ConfigError: shapes differ, one class, or one sample.
    """
    student, teacher = logits(student, teacher, "dist", classes=2)
    if gamma:
        check_batch(student, "dist", 2)
    p_s, p_t = F.softmax(student / temperature, dim=1), F.softmax(teacher / temperature, dim=1)
    between = 1.0 - _pearson(p_s, p_t).mean()
    within = 1.0 - _pearson(p_s.t(), p_t.t()).mean() if gamma else 0.0
    return (beta * between + gamma * within) * temperature**2


def _pearson(a: Tensor, b: Tensor) -> Tensor:
    """Pearson correlation of each row of two matrices; 0 for a constant row."""
    return (_centered(a) * _centered(b)).sum(1)


def _centered(x: Tensor) -> Tensor:
    """Unit rows around 0; about 0 for rows that differ by no more than rounding, e.g. those of an untrained head."""
    least = _ROUNDING * torch.finfo(x.dtype).eps * torch.linalg.vector_norm(x.detach(), dim=1, keepdim=True)
    return unit(x - x.mean(1, keepdim=True), least=least)


def logit_std(student: Tensor, teacher: Tensor, *, temperature: float = 2.0, scale_by_t2: bool = True) -> Tensor:
    """KL of softened z-scores of the logits: the student need not match their scale (Sun et al. 2024).

    Args:
        student: logits (N, C), C >= 2.
        teacher: logits (N, C); gets no gradient.
        temperature: T > 0, the standard deviation that the softened logits have is 1 / T.
        scale_by_t2: whether the loss carries T^2.

    Raises:
        ConfigError: shapes differ, or there is one class.
    """
    student, teacher = logits(student, teacher, "logit_std", classes=2)
    log_p_s = F.log_softmax(_standard(student) / temperature, dim=1)
    log_p_t = F.log_softmax(_standard(teacher) / temperature, dim=1)
    return _kl(log_p_t, log_p_s) * (temperature**2 if scale_by_t2 else 1.0)


def _standard(z: Tensor) -> Tensor:
    """z-scores of each row; about 0 for rows that differ by no more than rounding, whose gradient would be 1e7."""
    spread = z.std(1, keepdim=True)
    least = _ROUNDING * torch.finfo(z.dtype).eps * z.detach().abs().amax(1, keepdim=True)
    return (z - z.mean(1, keepdim=True)) / torch.where(spread > least, spread + 1e-7, 1.0)


def reverse_kl(student: Tensor, teacher: Tensor, *, temperature: float = 4.0) -> Tensor:
    """T^2 * KL(softmax(student / T) || softmax(teacher / T)), mean over the batch (Gu et al. 2024, MiniLLM).

    Args:
        student: logits (N, C).
        teacher: logits (N, C); gets no gradient.
        temperature: T > 0.

    Raises:
        ConfigError: shapes differ.
    """
    student, teacher = logits(student, teacher, "reverse_kl")
    log_p_s, log_p_t = F.log_softmax(student / temperature, dim=1), F.log_softmax(teacher / temperature, dim=1)
    return _kl(log_p_s, log_p_t) * temperature**2


def jensen_shannon(student: Tensor, teacher: Tensor, *, temperature: float = 4.0) -> Tensor:
    """T^2 * Jensen-Shannon divergence of softened outputs, mean over the batch; at most T^2 ln 2 (Lin 1991).

    Args:
        student: logits (N, C).
        teacher: logits (N, C); gets no gradient.
        temperature: T > 0.

    Raises:
        ConfigError: shapes differ.
    """
    student, teacher = logits(student, teacher, "jensen_shannon")
    log_p_s, log_p_t = F.log_softmax(student / temperature, dim=1), F.log_softmax(teacher / temperature, dim=1)
    log_m = torch.logaddexp(log_p_s, log_p_t) - math.log(2.0)
    return 0.5 * (_kl(log_p_s, log_m) + _kl(log_p_t, log_m)) * temperature**2


def _kl(log_p: Tensor, log_q: Tensor) -> Tensor:
    """KL(p || q) of log-probabilities (N, C), mean over the batch."""
    return F.kl_div(log_q, log_p, reduction="batchmean", log_target=True)
