"""Response knowledge: what a teacher's outputs say."""

from __future__ import annotations

import torch.nn.functional as F  # noqa: N812
from torch import Tensor


def kd(student: Tensor, teacher: Tensor, *, temperature: float = 4.0) -> Tensor:
    """T^2 * KL(softmax(teacher / T) || softmax(student / T)), mean over the batch (Hinton et al. 2015).

    Args:
        student: logits (N, C).
        teacher: logits (N, C); gets no gradient.
        temperature: T > 0.
    """
    log_p_s = F.log_softmax(student / temperature, dim=1)
    log_p_t = F.log_softmax(teacher.detach() / temperature, dim=1)
    return F.kl_div(log_p_s, log_p_t, reduction="batchmean", log_target=True) * temperature**2


def mse_logits(student: Tensor, teacher: Tensor) -> Tensor:
    """Mean squared difference of outputs of one shape (Ba and Caruana 2014); the response knowledge of regression."""
    return F.mse_loss(student, teacher.detach())
