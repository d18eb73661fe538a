"""Networks that schemes make for themselves at the start of a phase: a critic, a generator of samples."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from edgekd.distill.branches import example_of, output_of, outputs_of
from edgekd.distill.term_settings import Pair
from edgekd.errors import ConfigError
from edgekd.train.world import Model, World


@dataclass(frozen=True)
class Critic:
    """Edit: the target becomes a network of two layers that gives a logit for what student and teacher say.

    Of maps it sees the mean over places. `layers`: of student and teacher; without them the output of that name.
    """

    output: str
    layers: Pair | None = None
    width: int = 64
    target: str = "critic"

    @property
    def touches(self) -> tuple[str, ...]:
        return (self.target,)

    def __call__(self, world: World, seed: int) -> None:
        sizes = {name: self._said(world, name, place).shape[1] for place, name in enumerate(("student", "teacher"))}
        if len(set(sizes.values())) > 1:
            words = " and ".join(f"{size} channels of the {name}" for name, size in sizes.items())
            raise ConfigError(f"one critic cannot see {words}", hint="name layers of as many channels")
        torch.default_generator.manual_seed(seed)
        layers = [Pooled(), nn.Linear(sizes["student"], self.width), nn.ReLU(), nn.Linear(self.width, 1)]
        network = nn.Sequential(*layers).to(_device(world.models["student"]))
        world.models[self.target] = Model(network, ("said",), ("score",))

    def _said(self, world: World, name: str, place: int) -> Tensor:
        if self.layers is not None:
            return output_of(world, name, self.layers[place])
        return outputs_of(world, name)[self.output]


class Pooled(nn.Module):
    """(N, C, ..) to (N, C): the mean over all places."""

    def forward(self, x: Tensor) -> Tensor:
        """Mean over all axes behind the second."""
        return x.flatten(2).mean(2) if x.dim() > 2 else x


@dataclass(frozen=True)
class Generator:
    """Edit: the target becomes a network from noise (N, noise) to inputs of the student, as these are normalised.

    Images grow from a quarter of their size by two upsamplings (DAFL, Chen et al. 2019); anything else comes from an
    MLP. The last layer is normalised without learned scale, so no pixel is idle.

    Raises:
        ConfigError: student and teacher do not see the same single input.
    """

    noise: int = 100
    width: int = 64
    target: str = "generator"

    @property
    def touches(self) -> tuple[str, ...]:
        return (self.target,)

    def __call__(self, world: World, seed: int) -> None:
        student, teacher = world.models["student"], world.models["teacher"]
        if student.inputs != teacher.inputs or len(student.inputs) != 1:
            raise ConfigError(
                f"a generator makes one input; the student sees {', '.join(student.inputs)}, the teacher "
                f"{', '.join(teacher.inputs)}",
                hint="give both the same `inputs:`",
            )
        (name,) = student.inputs
        shape = tuple(example_of(world, student)[name].shape[1:])
        torch.default_generator.manual_seed(seed)
        network = _images(self.noise, self.width, shape) if len(shape) == 3 else _vectors(self.noise, self.width, shape)
        world.models[self.target] = Model(network.to(_device(student)), ("noise",), (name,))


def _images(noise: int, width: int, shape: tuple[int, ...]) -> nn.Sequential:
    channels, height, wide = shape
    small = (math.ceil(height / 4), math.ceil(wide / 4))
    sizes = [(math.ceil(height / 2), math.ceil(wide / 2)), (height, wide)]
    layers: list[nn.Module] = [
        nn.Linear(noise, 2 * width * small[0] * small[1]),
        nn.Unflatten(1, (2 * width, *small)),
        nn.BatchNorm2d(2 * width),
    ]
    for size, (given, made) in zip(sizes, ((2 * width, 2 * width), (2 * width, width)), strict=True):
        layers += [nn.Upsample(size=size), nn.Conv2d(given, made, 3, padding=1), nn.BatchNorm2d(made)]
        layers += [nn.LeakyReLU(0.2)]
    last = [nn.Conv2d(width, channels, 3, padding=1), nn.Tanh(), nn.BatchNorm2d(channels, affine=False)]
    return nn.Sequential(*layers, *last)


def _vectors(noise: int, width: int, shape: tuple[int, ...]) -> nn.Sequential:
    units, wide = math.prod(shape), 4 * width
    layers: list[nn.Module] = []
    for given in (noise, wide):
        layers += [nn.Linear(given, wide), nn.BatchNorm1d(wide), nn.ReLU()]
    last = [nn.Linear(wide, units), nn.BatchNorm1d(units, affine=False), nn.Unflatten(1, shape)]
    return nn.Sequential(*layers, *last)


def _device(model: Model) -> torch.device:
    return next(model.network.parameters()).device
