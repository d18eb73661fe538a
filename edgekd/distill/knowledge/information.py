"""Mutual information: how much of the teacher can be told from the student. Adapters: information_adapters.py."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from edgekd.distill.knowledge.shapes import as_map, check_batch, maps, rows, same_width, unit
from edgekd.train.precision import full


def vid(student: Tensor, teacher: Tensor, *, variance: float | Tensor = 5.0, eps: float = 1e-5) -> Tensor:
    """Negative log-likelihood of the teacher under a Gaussian around the student, no constant (Ahn et al. 2019).

    1/2 [(f_t - mu)^2 / var + log var], mean over all elements.

    Args:
        student: mu, maps (N, C, H, W) or embeddings (N, C); VidAdapter regresses them from the student's features.
        teacher: as many channels; gets no gradient.
        variance: var > 0, one number or one for each channel (C,).
        eps: var is never below it.

    Raises:
        ConfigError: channels differ.
    """
    student, teacher = maps(as_map(student), as_map(teacher), "vid")
    same_width(student, teacher, "vid", "VidAdapter brings the student's channels to the teacher's")
    var = torch.as_tensor(variance, dtype=student.dtype, device=student.device).clamp(min=eps).reshape(1, -1, 1, 1)
    return 0.5 * ((teacher - student).square() / var + var.log()).mean()


def crd(
    student: Tensor,
    teacher: Tensor,
    *,
    negatives: Tensor | None = None,
    allowed: Tensor | None = None,
    samples: int | None = None,
    log_z: float | Tensor | None = None,
    temperature: float = 0.07,
) -> Tensor:
    """Noise-contrastive estimation: is this the teacher's embedding of the same sample? (Tian et al. 2020)

    With x = exp(cosine / temperature) / Z and noise probability m / n for m negatives out of n samples, the mean over
    anchors of -log x / (x + m / n) for the pair, and of -log (m / n) / (x + m / n) summed over the negatives. Not 0 for
    equal embeddings: smallest where pairs agree and all else is far away.

    Args:
        student: anchors (N, D).
        teacher: embeddings (N, D) of the same samples; get no gradient.
        negatives: embeddings (K, D) of other samples; without them each row's are the other rows of the batch.
        allowed: bool (N, K), which of them are negatives of which row; a row's own sample must not be among them.
        samples: n, the number of samples that negatives are drawn from; N without a memory bank.
        log_z: log Z; without it the estimate of this batch, see `partition`.
        temperature: tau > 0.

    Raises:
        ConfigError: shapes differ, or one sample without negatives.
    """
    student, teacher = rows(student, teacher, "crd")
    same_width(student, teacher, "crd", "CrdAdapter projects both to as many dimensions")
    count = samples or len(student)
    others = teacher if negatives is None else full(negatives.detach())
    if negatives is None:
        check_batch(student, "crd without a memory bank", 2)
        allowed = ~torch.eye(len(student), dtype=torch.bool, device=student.device)
    pair, rest = similarities(student, teacher, others, temperature)
    if allowed is None:
        allowed = torch.ones_like(rest, dtype=torch.bool)
    if log_z is None:
        log_z = partition(pair, rest, allowed, count)
    log_noise = (allowed.sum(1, keepdim=True).clamp(min=1).to(rest.dtype) / count).log()
    # -log x / (x + c) = softplus(log c - log x): nothing overflows however near embeddings are.
    pulled = F.softplus(log_noise - (pair - log_z))
    pushed = F.softplus((rest - log_z) - log_noise) * allowed
    return (pulled.sum() + pushed.sum()) / len(student)


def similarities(anchors: Tensor, positives: Tensor, others: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    """Cosines over the temperature: of pairs (N, 1), and of anchors (N, D) with all others (K, D) as (N, K)."""
    a, p, o = (unit(x) for x in (anchors, positives, others))
    return (a * p).sum(1, keepdim=True) / temperature, a @ o.t() / temperature


def partition(pair: Tensor, rest: Tensor, allowed: Tensor, count: int) -> Tensor:
    """The paper's estimate of Z from one batch as log Z: n times the mean of exp over pairs and negatives."""
    values = torch.cat((pair, rest.masked_fill(~allowed, -math.inf)), dim=1).detach()
    return values.logsumexp((0, 1)) - (allowed.sum() + len(pair)).to(values.dtype).log() + math.log(count)
