"""What adapters share. An adapter is the one module beside a knowledge that holds what it must learn or remember.

    XAdapter(student, teacher, *, samples, **settings)      shapes without the batch axis, or lists of them;
                                                            samples: ids of samples are 0 .. samples - 1
    forward(student, teacher, *, target, index) -> scalar   calls the pure function

It is trained, saved and resumed with the student and never exported. In eval mode nothing in it changes; what it draws
comes from the global generator of its input's device.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from edgekd.errors import ConfigError
from edgekd.train.precision import HALF, full

Shape = tuple[int, ...]


class Connector(nn.Sequential):
    """1x1 convolution and BatchNorm from one number of channels to another, with `relu` a ReLU behind them."""

    def __init__(self, channels: int, out: int, *, kernel: int = 1, relu: bool = False) -> None:
        layers = [nn.Conv2d(channels, out, kernel, padding=kernel // 2, bias=False), nn.BatchNorm2d(out)]
        super().__init__(*layers, *([nn.ReLU()] if relu else []))

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) to (N, out, H, W)."""
        if self.training and x.numel() == x.shape[1]:
            raise ConfigError(
                "an adapter's BatchNorm is not defined for one sample of one position",
                hint="raise train.batch or lower train.accumulate, or name layers with larger maps",
            )
        for layer in self:
            x = layer(x)
        return x


def in_precision_of(x: Tensor) -> torch.autocast:
    """A context in which learned layers run as the network did that gave `x`: in half precision where `x` is."""
    return torch.autocast(x.device.type, dtype=x.dtype if x.dtype in HALF else None, enabled=x.dtype in HALF)


def check_shape(shape: Shape, name: str) -> Shape:
    """An embedding's (C,) or a map's (C, H, W), else a ConfigError."""
    if len(shape) not in (1, 3):
        raise ConfigError(
            f"{name} adapts embeddings (C,) and maps (C, H, W), not {tuple(shape)}",
            hint="name other layers with `layers: [student_layer, teacher_layer]`",
        )
    return shape


def check_shapes(student: Sequence[Shape], teacher: Sequence[Shape], name: str) -> list[tuple[Shape, Shape]]:
    """Pairs of shapes from two lists of one length."""
    if not student or len(student) != len(teacher):
        raise ConfigError(
            f"{name} pairs {len(student)} stages of the student with {len(teacher)} of the teacher",
            hint="write layers: [[student_1, teacher_1], ..]",
        )
    return [(check_shape(s, name), check_shape(t, name)) for s, t in zip(student, teacher, strict=True)]


def embedding(x: Tensor) -> Tensor:
    """An embedding (N, C) as it is, of a map (N, C, H, W) the mean over positions."""
    return full(x).flatten(2).mean(2) if x.dim() > 2 else full(x)
