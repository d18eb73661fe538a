"""What knowledges ask of the tensors they compare: shapes, sizes, precision; a wrong one is a ConfigError."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from edgekd.errors import ConfigError
from edgekd.train.precision import full

_MIDDLE = "name layers that give maps (N, C, H, W) with `layers: [student_layer, teacher_layer]`"


def both(student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor]:
    """Student and teacher in at least float32; the teacher without a gradient."""
    return full(student), full(teacher.detach())


def logits(student: Tensor, teacher: Tensor, name: str, *, classes: int = 1) -> tuple[Tensor, Tensor]:
    """Logits (N, C) of one shape, with at least so many classes."""
    if student.shape != teacher.shape or student.dim() != 2:
        raise ConfigError(
            f"{name} compares logits (N, C) of one shape, not {tuple(student.shape)} with {tuple(teacher.shape)}",
            hint="student and teacher need the same classes; flatten pixels or tokens into rows",
        )
    if student.shape[1] < classes:
        raise ConfigError(f"{name} needs at least {classes} classes, not {student.shape[1]}", hint="use mse_logits")
    return both(student, teacher)


def rows(student: Tensor, teacher: Tensor, name: str, *, at_least: int = 1) -> tuple[Tensor, Tensor]:
    """Embeddings or maps (N, ..) as rows (N, D_s) and (N, D_t), of at least so many samples."""
    if student.dim() < 2 or teacher.dim() < 2 or len(student) != len(teacher):
        raise ConfigError(
            f"{name} compares rows of one batch, not {tuple(student.shape)} with {tuple(teacher.shape)}",
            hint="both layers must give tensors (N, ..) with the batch first",
        )
    check_batch(student, name, at_least)
    student, teacher = both(student, teacher)
    return student.flatten(1), teacher.flatten(1)


def check_batch(x: Tensor, name: str, at_least: int) -> None:
    """Raise ConfigError where a knowledge between samples has too few of them."""
    if len(x) < at_least:
        raise ConfigError(
            f"{name} compares samples with each other and is not defined for {len(x)}; it needs {at_least}",
            hint="raise train.batch or lower train.accumulate, or leave this knowledge out",
        )


def unit(x: Tensor, *, least: Tensor | float = 0.0, eps: float = 0.0) -> Tensor:
    """Each row over its length plus eps; one that is no longer than `least` stays as it is.

    The usual floor under the length, 1e-12, gives a row of zeros (a sample that excites nothing) a gradient of 1e12.
    """
    length = torch.linalg.vector_norm(x, dim=1, keepdim=True)
    return x / torch.where(length > least, length + eps, 1.0)


def outputs(student: Tensor, teacher: Tensor, name: str) -> tuple[Tensor, Tensor]:
    """Outputs of one shape; (N,) and (N, 1) hold the same values, which torch would stretch to (N, N)."""
    if student.shape != teacher.shape and student.dim() and teacher.dim():
        student, teacher = student.reshape(len(student), -1), teacher.reshape(len(teacher), -1)
    if student.shape != teacher.shape:
        raise ConfigError(
            f"{name} compares as many outputs, not {tuple(student.shape)} with {tuple(teacher.shape)}",
            hint="give student and teacher heads of one size",
        )
    return both(student, teacher)


def same_width(student: Tensor, teacher: Tensor, name: str, hint: str) -> None:
    """Raise ConfigError where axis 1 (channels, features) differs."""
    if student.shape[1] != teacher.shape[1]:
        raise ConfigError(
            f"{name} needs as many channels on both sides, not {student.shape[1]} (student) and "
            f"{teacher.shape[1]} (teacher)",
            hint=hint,
        )


def maps(student: Tensor, teacher: Tensor, name: str, *, positions: int = 1) -> tuple[Tensor, Tensor]:
    """Maps (N, C, H, W) of one size: the larger is average-pooled to the smaller. Channels may differ.

    `positions`: fewest that they need; what is normalised over positions says nothing of a single one.
    """
    if student.dim() != 4 or teacher.dim() != 4 or len(student) != len(teacher):
        raise ConfigError(
            f"{name} compares maps (N, C, H, W), not {tuple(student.shape)} with {tuple(teacher.shape)}", hint=_MIDDLE
        )
    student, teacher = smaller(*both(student, teacher))
    if student.shape[2] * student.shape[3] < positions:
        raise ConfigError(f"{name} compares positions of a map, and there is one", hint=_MIDDLE)
    return student, teacher


def smaller(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """Two maps at the smaller height and width of both, averaged over windows."""
    size = min(a.shape[2], b.shape[2]), min(a.shape[3], b.shape[3])
    return at_size(a, size), at_size(b, size)


def at_size(x: Tensor, size: tuple[int, int]) -> Tensor:
    """A map (N, C, H, W) adaptively average-pooled to a smaller (height, width), or as it is."""
    (height, width), (h, w) = x.shape[2:], size
    if (height, width) == (h, w):
        return x
    if height % h == 0 and width % w == 0:
        return F.avg_pool2d(x, (height // h, width // w))
    # torch's adaptive pooling adds up the gradients of windows that overlap in no fixed order on a GPU.
    return _windows(height, h, x) @ x @ _windows(width, w, x).t()


def _windows(size: int, count: int, like: Tensor) -> Tensor:
    """The averages over adaptive pooling's windows as a matrix (count, size)."""
    number, place = torch.arange(count, device=like.device), torch.arange(size, device=like.device)
    start, stop = number * size // count, ((number + 1) * size + count - 1) // count
    inside = (place >= start[:, None]) & (place < stop[:, None])
    return inside.to(like.dtype) / (stop - start)[:, None]


def as_map(x: Tensor) -> Tensor:
    """An embedding (N, C) as a map (N, C, 1, 1); a map as it is."""
    return x[:, :, None, None] if x.dim() == 2 else x


def stages(
    student: Sequence[Tensor], teacher: Sequence[Tensor], name: str, *, at_least: int = 1
) -> list[tuple[Tensor, Tensor]]:
    """Pairs of stages from two lists of one length, shallow to deep."""
    if isinstance(student, Tensor) or isinstance(teacher, Tensor) or len(student) != len(teacher):
        raise ConfigError(
            f"{name} compares two lists of as many stages", hint="write layers: [[student_1, teacher_1], ..]"
        )
    if len(student) < at_least:
        raise ConfigError(
            f"{name} needs at least {at_least} stages, not {len(student)}",
            hint="write layers: [[student_1, teacher_1], [student_2, teacher_2]]",
        )
    return list(zip(student, teacher, strict=True))
