"""Adapters of intermediate knowledge: regressor, paraphraser and translator, connectors, attention fusion."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from edgekd.distill.knowledge.adapters import Connector, Shape, check_shape, check_shapes, in_precision_of
from edgekd.distill.knowledge.intermediate import boundary, factor, hint, review
from edgekd.distill.knowledge.shapes import as_map
from edgekd.errors import ConfigError
from edgekd.train.precision import full

_WIDEST_FUSION = 512


class HintAdapter(nn.Module):
    """Regresses the student's map to the teacher's channels: 1x1 convolution, BatchNorm, ReLU (Romero et al. 2015)."""

    def __init__(self, student: Shape, teacher: Shape, *, samples: int = 0) -> None:
        super().__init__()
        self.regressor = Connector(check_shape(student, "hint")[0], check_shape(teacher, "hint")[0], relu=True)

    def forward(self, student: Tensor, teacher: Tensor, **also: Tensor) -> Tensor:
        """`hint` of (N, C_s, H, W) or (N, C_s) against (N, C_t, ..)."""
        with in_precision_of(student):
            regressed = self.regressor(as_map(student))
        return hint(regressed, as_map(teacher))


class FactorAdapter(nn.Module):
    """Paraphraser of the teacher's map and translator of the student's (Kim et al. 2018).

    The paraphraser, an autoencoder, is trained first: for so many forward passes the value is how badly it gives the
    teacher's map back, and the student learns nothing from it. Then it is frozen. That loss is times
    `reconstruction`, which undoes the weight of the term: 1/200 by default.

    Args:
        student: (C_s, H, W).
        teacher: (C_t, H, W).
        samples: not used.
        rate: channels of a factor over those of the teacher.
        power: 1 or 2, see `factor`.
        paraphraser_steps: forward passes in which the paraphraser learns.
        reconstruction: weight of the autoencoder's loss.
    """

    steps: Tensor

    def __init__(
        self,
        student: Shape,
        teacher: Shape,
        *,
        samples: int = 0,
        rate: float = 0.5,
        power: float = 1.0,
        paraphraser_steps: int = 500,
        reconstruction: float = 0.005,
    ) -> None:
        super().__init__()
        # Now and not in `factor`, which is first called when the paraphraser has learned.
        if any(len(check_shape(shape, "factor")) == 1 or shape[1:] == (1, 1) for shape in (student, teacher)):
            raise ConfigError(
                "factor compares positions of a map, and there is one",
                hint="name layers that give maps (C, H, W) with `layers: [student_layer, teacher_layer]`",
            )
        c_s, c_t = student[0], teacher[0]
        width = max(round(c_t * rate), 1)
        self.paraphraser, self.translator = _blocks(c_t, c_t, width, width), _blocks(c_s, c_s, width, width)
        # A transposed convolution of stride 1 is a convolution. The last one is bare, so that it can give any value.
        self.decoder = nn.Sequential(_blocks(width, width, c_t), nn.Conv2d(c_t, c_t, 3, padding=1))
        self.register_buffer("steps", torch.zeros((), dtype=torch.int64))
        self.power, self.paraphraser_steps, self.reconstruction = power, paraphraser_steps, reconstruction
        self._seen: int | None = None  # `steps` on the host: read once, not on every pass
        self.register_load_state_dict_post_hook(_forget_seen)  # type: ignore[no-untyped-call]

    def forward(self, student: Tensor, teacher: Tensor, **also: Tensor) -> Tensor:
        """`factor` of (N, C_s, H, W) against (N, C_t, H, W); before that the paraphraser's own loss."""
        known = as_map(teacher.detach())
        if self.training and self._learns():
            self.paraphraser.train()
            with in_precision_of(known):
                again = self.decoder(self.paraphraser(known))
            return self.reconstruction * F.mse_loss(full(again), full(known))
        self.paraphraser.eval()
        with torch.no_grad(), in_precision_of(known):
            target = self.paraphraser(known)
        with in_precision_of(student):
            translated = self.translator(as_map(student))
        return factor(translated, target, power=self.power)

    def _learns(self) -> bool:
        """Count a forward pass; whether it is still one of the paraphraser's."""
        if self._seen is None:
            self._seen = int(self.steps)
        if self._seen >= self.paraphraser_steps:
            return False
        self._seen += 1
        self.steps += 1
        return True


def _forget_seen(module: nn.Module, keys: object) -> None:
    assert isinstance(module, FactorAdapter)
    module._seen = None


def _blocks(channels: int, *widths: int) -> nn.Sequential:
    """3x3 convolutions with BatchNorm and LeakyReLU, one for each width."""
    layers: list[nn.Module] = []
    for width in widths:
        layers += [Connector(channels, width, kernel=3), nn.LeakyReLU(0.1)]
        channels = width
    return nn.Sequential(*layers)


class BoundaryAdapter(nn.Module):
    """Connects each stage of the student to the teacher's channels: 1x1 convolution, BatchNorm (Heo et al. 2019).

    Args:
        student: shapes of the stages, shallow to deep.
        teacher: as many shapes.
        samples: not used.
        margin: see `boundary`.
    """

    def __init__(
        self, student: Sequence[Shape], teacher: Sequence[Shape], *, samples: int = 0, margin: float = 1.0
    ) -> None:
        super().__init__()
        pairs = check_shapes(student, teacher, "boundary")
        self.connectors = nn.ModuleList(Connector(s[0], t[0]) for s, t in pairs)
        self.margin = margin

    def forward(self, student: Sequence[Tensor], teacher: Sequence[Tensor], **also: Tensor) -> Tensor:
        """`boundary` of the connected stages."""
        with in_precision_of(student[0]):
            connected = [connect(as_map(x)) for connect, x in zip(self.connectors, student, strict=True)]
        return boundary(connected, list(teacher), margin=self.margin)


class ReviewAdapter(nn.Module):
    """Attention-based fusion of the student's stages, from deep to shallow (ReviewKD, Chen et al. 2021).

    Each stage, at one common width, is mixed with what came from the deeper ones by two learned maps of weights; the
    mixture goes on to the shallower stage and, by a 3x3 convolution, to the teacher's shape.

    Args:
        student: shapes of the stages, shallow to deep, embeddings among them.
        teacher: as many shapes.
        samples: not used.
        width: channels of the mixtures; by default those of the deepest student stage, at most 512.
    """

    def __init__(
        self, student: Sequence[Shape], teacher: Sequence[Shape], *, samples: int = 0, width: int | None = None
    ) -> None:
        super().__init__()
        pairs = check_shapes(student, teacher, "review")
        width = width or min(student[-1][0], _WIDEST_FUSION)
        self.reduce = nn.ModuleList(Connector(s[0], width) for s, _ in pairs)
        self.gates = nn.ModuleList(nn.Conv2d(2 * width, 2, 1) for _ in pairs[:-1])
        self.expand = nn.ModuleList(Connector(width, t[0], kernel=3) for _, t in pairs)

    def fused(self, student: Sequence[Tensor], sizes: Sequence[tuple[int, int]]) -> list[Tensor]:
        """The student's stages in the teacher's channels and at these heights and widths, shallow to deep."""
        result: list[Tensor] = []
        deeper: Tensor | None = None
        for level in reversed(range(len(self.reduce))):
            x = self.reduce[level](as_map(student[level]))
            if deeper is not None:
                deeper = _resized(deeper, (x.shape[2], x.shape[3]))
                own, other = self.gates[level](torch.cat((x, deeper), dim=1)).sigmoid().split(1, dim=1)
                x = x * own + deeper * other
            deeper = _resized(x, sizes[level])
            result.insert(0, self.expand[level](deeper))
        return result

    def forward(self, student: Sequence[Tensor], teacher: Sequence[Tensor], **also: Tensor) -> Tensor:
        """`review` of the fused stages against the teacher's."""
        if not len(student) == len(teacher) == len(self.reduce):
            raise ConfigError(
                f"review was made for {len(self.reduce)} stages, not for {len(student)} and {len(teacher)}",
                hint="write layers: [[student_1, teacher_1], ..]",
            )
        known = [as_map(x) for x in teacher]
        with in_precision_of(student[0]):
            fused = self.fused(student, [(x.shape[2], x.shape[3]) for x in known])
        return review(fused, known)


def _resized(x: Tensor, size: tuple[int, int]) -> Tensor:
    """A map at another size, each position from its nearest one."""
    return x if tuple(x.shape[2:]) == size else F.interpolate(x, size=size, mode="nearest")
