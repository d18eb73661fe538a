"""Relational knowledge: how a teacher places samples among each other. Rows of a batch interact (`coupled`)."""

from __future__ import annotations

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from edgekd.distill.knowledge.shapes import rows, same_width, unit

_EPS = 1e-7


def similarity(student: Tensor, teacher: Tensor) -> Tensor:
    """||rownorm(F F^T)_s - rownorm(F F^T)_t||^2 / N^2 (Tung and Mori 2019).

    Args:
        student: maps or embeddings (N, ..), N >= 2.
        teacher: maps or embeddings (N, ..) of any width; gets no gradient.

    Raises:
        ConfigError: batches differ, or one sample.
    """
    student, teacher = rows(student, teacher, "similarity", at_least=2)
    return F.mse_loss(unit(student @ student.t()), unit(teacher @ teacher.t()))


def rkd(student: Tensor, teacher: Tensor, *, distance_weight: float = 25.0, angle_weight: float = 50.0) -> Tensor:
    """Huber loss between distances of pairs, over their mean, and between angles of triples (Park et al. 2019).

    Args:
        student: embeddings or maps (N, ..), N >= 2; two samples have no angle.
        teacher: embeddings or maps (N, ..) of any width; gets no gradient.
        distance_weight: weight of the distances.
        angle_weight: weight of the angles; they take memory for N^3 numbers.

    Raises:
        ConfigError: batches differ, or one sample.
    """
    student, teacher = rows(student, teacher, "rkd", at_least=2)
    s, t = _compact(student), _compact(teacher)
    loss = student.new_zeros(())
    if distance_weight:
        loss = loss + distance_weight * F.smooth_l1_loss(_distances(s), _distances(t))
    if angle_weight:
        loss = loss + angle_weight * F.smooth_l1_loss(_cosines(s), _cosines(t))
    return loss


def _distances(x: Tensor) -> Tensor:
    """Distances of all pairs over the mean of those that are not 0."""
    # The default way of cdist leaves up to 2e-3 on the diagonal, which spoils the mean.
    d = torch.cdist(x, x, compute_mode="donot_use_mm_for_euclid_dist")
    return d / (d.sum() / (d > 0).sum().clamp(min=1)).clamp(min=1e-12)


def _cosines(x: Tensor) -> Tensor:
    """Cosine of the angle at i between j and k, (N, N, N); 0 where a side has no length."""
    sides = x[None] - x[:, None]
    length = torch.linalg.vector_norm(sides, dim=2, keepdim=True)
    # The rotation leaves equal rows a rounding apart, which has no direction and would get an endless gradient.
    apart = length > 100 * torch.finfo(x.dtype).eps * length.max()
    sides = sides * torch.where(apart, 1.0 / torch.where(apart, length, 1.0), 0.0)
    return torch.bmm(sides, sides.transpose(1, 2))


def _compact(x: Tensor) -> Tensor:
    """Rows around 0 in at most N dimensions, with all their distances and angles.

    Wide rows are turned into the space that they span. The rotation needs no gradient: what leaves that space changes
    no product of two rows to first order.
    """
    x = x - x.mean(0)
    return x if x.shape[1] <= len(x) else x @ torch.linalg.qr(x.detach().t()).Q


def correlation(student: Tensor, teacher: Tensor) -> Tensor:
    """Mean over neighbours in the batch of sum_d |s - t|_i |s - t|_(i+1) (Peng et al. 2019, as RepDistiller ships it).

    Args:
        student: embeddings (N, D), N >= 2; CorrelationAdapter makes them of maps.
        teacher: embeddings (N, D); gets no gradient.

    Raises:
        ConfigError: batches or widths differ, or one sample.
    """
    student, teacher = rows(student, teacher, "correlation", at_least=2)
    same_width(student, teacher, "correlation", "CorrelationAdapter embeds both in as many dimensions")
    apart = (student - teacher).abs()
    return (apart[:-1] * apart[1:]).sum(1).mean()


def pkt(student: Tensor, teacher: Tensor) -> Tensor:
    """KL between distributions of cosine similarity to the other samples, mean over N^2 (Passalis and Tefas 2018).

    Args:
        student: embeddings or maps (N, ..), N >= 2.
        teacher: embeddings or maps (N, ..) of any width; gets no gradient.

    Raises:
        ConfigError: batches differ, or one sample.
    """
    student, teacher = rows(student, teacher, "pkt", at_least=2)
    p_s, p_t = _neighbours(student), _neighbours(teacher)
    return (p_t * ((p_t + _EPS) / (p_s + _EPS)).log()).mean()


def _neighbours(x: Tensor) -> Tensor:
    """Cosine similarities, moved to 0..1, as a distribution in each row."""
    x = unit(x, eps=_EPS)
    similar: Tensor = (x @ x.t() + 1.0) / 2.0
    return similar / similar.sum(1, keepdim=True)


def graph(student: Tensor, teacher: Tensor, *, node_weight: float = 1.0, edge_weight: float = 1.0) -> Tensor:
    """Mean squared difference of nodes (unit feature vectors) and of edges (their squared distances) (Liu et al. 2019).

    Args:
        student: embeddings or maps (N, ..), N >= 2.
        teacher: embeddings or maps (N, ..); gets no gradient. GraphAdapter brings the student to the teacher's width.
        node_weight: weight of the nodes; at 0 widths may differ.
        edge_weight: weight of the edges.

    Raises:
        ConfigError: batches differ, widths differ under a node weight, or one sample.
    """
    student, teacher = rows(student, teacher, "graph", at_least=2)
    s, t = unit(student), unit(teacher)
    loss = student.new_zeros(())
    if node_weight:
        same_width(s, t, "graph", "GraphAdapter brings the student's width to the teacher's, or set node_weight: 0")
        loss = loss + node_weight * (s - t).square().sum(1).mean()
    if edge_weight:
        # |a - b|^2 = 2 - 2 a.b for unit vectors.
        loss = loss + edge_weight * 4.0 * F.mse_loss(s @ s.t(), t @ t.t())
    return loss
