"""Adapters of mutual information: a Gaussian's mean and variance, projections and memory banks."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from edgekd.distill.knowledge.adapters import Shape, check_shape, embedding, in_precision_of
from edgekd.distill.knowledge.information import crd, partition, similarities, vid
from edgekd.distill.knowledge.shapes import as_map
from edgekd.errors import ConfigError


class VidAdapter(nn.Module):
    """Mean of the teacher's map by three 1x1 convolutions, and a learned variance for each channel (Ahn et al. 2019).

    Args:
        student: (C_s,) or (C_s, H, W).
        teacher: (C_t,) or (C_t, H, W).
        samples: not used.
        variance: what all variances start from.
        eps: what softplus is added to: no variance falls below it.
    """

    def __init__(
        self, student: Shape, teacher: Shape, *, samples: int = 0, variance: float = 5.0, eps: float = 1e-5
    ) -> None:
        super().__init__()
        c_s, c_t = check_shape(student, "vid")[0], check_shape(teacher, "vid")[0]
        self.mean = nn.Sequential(
            nn.Conv2d(c_s, c_t, 1), nn.ReLU(), nn.Conv2d(c_t, c_t, 1), nn.ReLU(), nn.Conv2d(c_t, c_t, 1)
        )
        self.raw_variance = nn.Parameter(torch.full((c_t,), math.log(math.expm1(variance - eps))))
        self.eps = eps

    @property
    def variance(self) -> Tensor:
        """Variances (C_t,)."""
        return F.softplus(self.raw_variance) + self.eps

    def forward(self, student: Tensor, teacher: Tensor, **also: Tensor) -> Tensor:
        """`vid` of the mean and the variances."""
        with in_precision_of(student):
            mean = self.mean(as_map(student))
        return vid(mean, as_map(teacher), variance=self.variance, eps=self.eps)


class CrdAdapter(nn.Module):
    """Projections to unit vectors, and two banks that remember one of each sample for each side (Tian et al. 2020).

    The student is contrasted with the teacher's bank, the teacher's projection with the student's bank. Negatives are
    drawn once for the whole batch, on the device: (K, dim) numbers to gather instead of (N, K, dim). A sample's own
    entry is left out for its row and so is, where targets are given, its whole class as far as it was seen. Each side's
    Z is estimated on the first batch and kept.

    Args:
        student: (C_s,) or (C_s, H, W); of a map the mean over positions is projected.
        teacher: (C_t,) or (C_t, H, W).
        samples: how many sample ids there are; `index` holds 0 .. samples - 1.
        negatives: K; at most one for each sample.
        temperature: tau.
        momentum: share of a bank's entry that stays when its sample is seen again.
        dim: width of projections and banks.
    """

    banks: Tensor
    classes: Tensor
    log_z: Tensor

    def __init__(
        self,
        student: Shape,
        teacher: Shape,
        *,
        samples: int,
        negatives: int = 16384,
        temperature: float = 0.07,
        momentum: float = 0.5,
        dim: int = 128,
    ) -> None:
        super().__init__()
        if samples < 2:
            raise ConfigError("crd contrasts samples with each other and needs more than one", hint="give it more data")
        self.student = nn.Linear(check_shape(student, "crd")[0], dim)
        self.teacher = nn.Linear(check_shape(teacher, "crd")[0], dim)
        self.register_buffer("banks", F.normalize(torch.randn(2, samples, dim), dim=2))
        self.register_buffer("classes", torch.full((samples,), -1))
        self.register_buffer("log_z", torch.full((2,), math.inf))  # inf: not estimated yet
        self.samples, self.negatives = samples, min(negatives, samples)
        self.temperature, self.momentum = temperature, momentum
        self._has_z = False  # whether there is an estimate, on the host: read until there is, not on every pass
        self.register_load_state_dict_post_hook(_forget_z)  # type: ignore[no-untyped-call]

    def forward(
        self, student: Tensor, teacher: Tensor, *, index: Tensor | None = None, target: Tensor | None = None
    ) -> Tensor:
        """Both sides' `crd`; in training the banks then move towards this batch.

        Args:
            student: (N, C_s, ..).
            teacher: (N, C_t, ..); gets no gradient.
            index: int64 (N,), sample ids.
            target: int64 (N,), true classes, where there are any.

        Raises:
            ConfigError: no sample ids.
        """
        if index is None:
            raise ConfigError("crd needs sample ids to remember samples by", hint="give the term also={'index': ..}")
        sides = self._projected(student, teacher)
        drawn = torch.randint(self.samples, (self.negatives,), device=index.device)
        allowed = drawn != index[:, None]
        if target is not None:
            allowed = allowed & (self.classes[drawn] != target[:, None])
        log_z = self._log_z(sides, index, drawn, allowed)
        losses = [
            crd(
                anchors,
                bank[index],
                negatives=bank[drawn],
                allowed=allowed,
                samples=self.samples,
                log_z=normalizer,
                temperature=self.temperature,
            )
            for anchors, bank, normalizer in zip(sides, self._opposite(), log_z, strict=True)
        ]
        if self.training:
            self._remember(sides, index, target)
        return losses[0] + losses[1]

    def _projected(self, student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor]:
        s, t = self.student(embedding(student)), self.teacher(embedding(teacher.detach()))
        return F.normalize(s, dim=1), F.normalize(t, dim=1)

    def _opposite(self) -> tuple[Tensor, Tensor]:
        """The teacher's bank for the student, and the student's for the teacher."""
        return self.banks[1], self.banks[0]

    @torch.no_grad()
    def _log_z(self, sides: tuple[Tensor, Tensor], index: Tensor, drawn: Tensor, allowed: Tensor) -> Tensor:
        """log Z of both sides (2,): what was kept, or the estimate of this batch, which training keeps."""
        self._has_z = self._has_z or bool(self.log_z.isfinite().all())
        if self._has_z:
            return self.log_z
        estimates = []
        for anchors, bank in zip(sides, self._opposite(), strict=True):
            pair, rest = similarities(anchors, bank[index], bank[drawn], self.temperature)
            estimates.append(partition(pair, rest, allowed, self.samples))
        log_z = torch.stack(estimates)
        if self.training:
            self.log_z.copy_(log_z)
        return log_z

    @torch.no_grad()
    def _remember(self, sides: tuple[Tensor, Tensor], index: Tensor, target: Tensor | None) -> None:
        for bank, seen in zip(self.banks, sides, strict=True):
            moved = self.momentum * bank[index] + (1.0 - self.momentum) * seen
            bank.index_copy_(0, index, F.normalize(moved, dim=1).to(bank.dtype))
        if target is not None:
            self.classes.index_copy_(0, index, target)


def _forget_z(module: nn.Module, keys: object) -> None:
    assert isinstance(module, CrdAdapter)
    module._has_z = False
