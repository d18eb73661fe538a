"""Intermediate knowledge: what a teacher's layers say.

Maps are (N, C, H, W); of two sizes the larger is average-pooled to the smaller. Functions over several stages take two
lists, shallow to deep. What must be learned or remembered beside a function is in intermediate_adapters.py.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from edgekd.distill.knowledge.shapes import as_map, at_size, both, maps, same_width, smaller, stages

_LEVELS = (4, 2, 1)


def hint(student: Tensor, teacher: Tensor) -> Tensor:
    """Mean squared difference of maps or embeddings (Romero et al. 2015); HintAdapter regresses the student's first.

    Args:
        student: maps (N, C, H, W) or embeddings (N, C).
        teacher: as many channels; gets no gradient.

    Raises:
        ConfigError: channels differ.
    """
    student, teacher = maps(as_map(student), as_map(teacher), "hint")
    same_width(student, teacher, "hint", "HintAdapter brings the student's channels to the teacher's")
    return F.mse_loss(student, teacher)


def attention(student: Tensor, teacher: Tensor, *, power: float = 2.0) -> Tensor:
    """Mean squared difference of normalised maps of mean_c |f|^power (Zagoruyko and Komodakis 2017).

    Args:
        student: maps (N, C_s, H, W).
        teacher: maps (N, C_t, H, W); gets no gradient.
        power: at least 1; the larger, the more the strongest activations count.

    Raises:
        ConfigError: something other than maps, or maps of one position.
    """
    student, teacher = maps(student, teacher, "attention", positions=2)
    return (_attention_map(student, power) - _attention_map(teacher, power)).square().mean()


def _attention_map(x: Tensor, power: float) -> Tensor:
    """Where a map is active, as unit vectors (N, H * W)."""
    return F.normalize(x.abs().pow(power).mean(1).flatten(1), dim=1)


def nst(student: Tensor, teacher: Tensor) -> Tensor:
    """MMD between the channels' normalised activation patterns, kernel (a . b)^2 (Huang and Wang 2017).

    Args:
        student: maps (N, C_s, H, W).
        teacher: maps (N, C_t, H, W); gets no gradient.

    Raises:
        ConfigError: something other than maps, or maps of one position.
    """
    student, teacher = maps(student, teacher, "nst", positions=2)
    s, t = F.normalize(student.flatten(2), dim=2), F.normalize(teacher.flatten(2), dim=2)
    return _kernel(s, s) + _kernel(t, t) - 2.0 * _kernel(s, t)


def _kernel(a: Tensor, b: Tensor) -> Tensor:
    """Mean of (a_i . b_j)^2 over all pairs of channels: a batch of matrix products, (N, C_a, C_b) in memory."""
    return torch.bmm(a, b.transpose(1, 2)).square().mean()


def factor(student: Tensor, teacher: Tensor, *, power: float = 1.0) -> Tensor:
    """Mean |difference|^power of normalised factors (Kim et al. 2018); FactorAdapter makes factors of maps first.

    Args:
        student: factors (N, C_s, H, W) of the student's map.
        teacher: factors (N, C_t, H, W) of the teacher's map; get no gradient.
        power: 1, or 2 for the squared difference.

    Raises:
        ConfigError: something other than maps, or maps of one position.
    """
    student, teacher = maps(student, teacher, "factor", positions=2)
    return (_attention_map(student, 2.0) - _attention_map(teacher, 2.0)).abs().pow(power).mean()


def boundary(student: Sequence[Tensor], teacher: Sequence[Tensor], *, margin: float = 1.0) -> Tensor:
    """Squared hinge on the signs of the teacher's activations: where neurons switch on (Heo et al. 2019).

    The deepest stage counts fully, each one before it half as much; the sum is per sample and times 3/1000.

    Args:
        student: stages (N, C, H, W) before their activation function, shallow to deep.
        teacher: as many stages with as many channels; get no gradient.
        margin: how far beyond 0 the student must be on the teacher's side.

    Raises:
        ConfigError: the lists or the channels differ.
    """
    pairs = stages(student, teacher, "boundary")
    total = pairs[0][0].new_zeros(())
    for level, (s, t) in enumerate(reversed(pairs)):
        f_s, f_t = maps(as_map(s), as_map(t), "boundary")
        same_width(f_s, f_t, "boundary", "BoundaryAdapter brings the student's channels to the teacher's")
        side = torch.where(f_t > 0, 1.0, -1.0)
        total = total + 0.5**level * F.relu(margin - side * f_s).square().sum() / len(f_s)
    return total * 3 / 1000


def fsp(student: Sequence[Tensor], teacher: Sequence[Tensor]) -> Tensor:
    """Mean squared difference of Gram matrices between neighbouring stages: how features flow (Yim et al. 2017).

    Args:
        student: two or more stages (N, C, H, W), shallow to deep; the larger of two neighbours is average-pooled.
        teacher: as many stages with as many channels; get no gradient.

    Raises:
        ConfigError: fewer than two stages, or channels differ.
    """
    pairs = stages(student, teacher, "fsp", at_least=2)
    for s, t in pairs:
        maps(s, t, "fsp")
        same_width(s, t, "fsp", "name layers with as many channels in both networks")
    found = [both(s, t) for s, t in pairs]
    grams = [(_gram(s0, s1), _gram(t0, t1)) for (s0, t0), (s1, t1) in pairwise(found)]
    return torch.stack([F.mse_loss(s, t) for s, t in grams]).sum()


def _gram(a: Tensor, b: Tensor) -> Tensor:
    """Mean over positions of the product of every channel of one map with every channel of another, (N, C_a, C_b)."""
    a, b = smaller(a, b)
    a, b = a.flatten(2), b.flatten(2)
    return torch.bmm(a, b.transpose(1, 2)) / a.shape[2]


def hierarchical_context(student: Sequence[Tensor], teacher: Sequence[Tensor]) -> Tensor:
    """Mean squared differences of stages whole and pooled to 4x4, 2x2 and 1x1, weighted 1, 1/2, .. (Chen et al. 2021).

    Args:
        student: stages (N, C, H, W) or (N, C).
        teacher: as many stages with as many channels; get no gradient.

    Raises:
        ConfigError: the lists or the channels differ.
    """
    return _context(student, teacher, "hierarchical_context")


def _context(student: Sequence[Tensor], teacher: Sequence[Tensor], name: str) -> Tensor:
    losses = []
    for s, t in stages(student, teacher, name):
        f_s, f_t = maps(as_map(s), as_map(t), name)
        same_width(f_s, f_t, name, "use `review`, whose adapter ReviewAdapter brings the channels together")
        loss, weight, weights = F.mse_loss(f_s, f_t), 1.0, 1.0
        for size in _LEVELS:
            if size < min(f_s.shape[2:]):
                weight /= 2
                weights += weight
                loss = loss + weight * F.mse_loss(at_size(f_s, (size, size)), at_size(f_t, (size, size)))
        losses.append(loss / weights)
    return torch.stack(losses).sum()


def review(student: Sequence[Tensor], teacher: Sequence[Tensor]) -> Tensor:
    """ReviewKD's loss (Chen et al. 2021) of stages that are fused already; ReviewAdapter fuses the student's first.

    Args:
        student: fused stages (N, C, H, W) or (N, C).
        teacher: as many stages with as many channels; get no gradient.

    Raises:
        ConfigError: the lists or the channels differ.
    """
    return _context(student, teacher, "review")
