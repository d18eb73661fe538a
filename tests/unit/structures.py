"""Small networks, each with one structure that a quantizer has to get right."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional


def conv(given: int, made: int, size: int = 3, **options: int) -> nn.Sequential:
    """Convolution, BatchNorm, ReLU."""
    padding = options.pop("padding", size // 2)
    return nn.Sequential(
        nn.Conv2d(given, made, size, padding=padding, bias=False, **options), nn.BatchNorm2d(made), nn.ReLU()
    )


class Body(nn.Module):
    """A stem, something in the middle (8 channels to 8), and a head of 5 outputs."""

    def __init__(self, middle: nn.Module, head: nn.Module | None = None, channels: int = 8) -> None:
        super().__init__()
        self.stem, self.middle = conv(3, 8), middle
        self.head = head or nn.Linear(channels, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.middle(self.stem(x)).mean((2, 3)))


class SqueezeExcitation(nn.Module):
    """x * sigmoid(fc(pool(x))) between two convolutions (Hu et al. 2018)."""

    def __init__(self) -> None:
        super().__init__()
        self.expand, self.project = conv(8, 8), conv(8, 8, 1)
        self.squeeze, self.excite = nn.Conv2d(8, 4, 1), nn.Conv2d(4, 8, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.expand(x)
        gate = self.excite(torch.relu(self.squeeze(functional.adaptive_avg_pool2d(x, 1)))).sigmoid()
        return self.project(x * gate)


class Dense(nn.Module):
    """Each convolution sees what all before it gave (Huang et al. 2017)."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.project = conv(8, 4), conv(12, 4), conv(16, 8, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.cat([x, self.first(x)], 1)
        x = torch.cat([x, self.second(x)], 1)
        return self.project(x)


class Shuffle(nn.Module):
    """Half of the channels pass, half are worked on, then they are shuffled (Ma et al. 2018)."""

    def __init__(self) -> None:
        super().__init__()
        self.branch = nn.Sequential(conv(4, 4, 1), nn.Conv2d(4, 4, 3, padding=1, groups=4), conv(4, 4, 1))
        self.last = conv(8, 8, 1)

    def forward(self, x: Tensor) -> Tensor:
        left, right = x.chunk(2, 1)
        x = torch.cat([left, self.branch(right)], 1)
        x = x.view(x.shape[0], 2, 4, *x.shape[2:]).transpose(1, 2).flatten(1, 2)
        return self.last(x)


class UNet(nn.Module):
    """Down, up by bilinear interpolation or transposed convolution, and a skip; an image comes out."""

    def __init__(self, *, transposed: bool) -> None:
        super().__init__()
        self.first, self.down, self.merge = conv(3, 8), conv(8, 12, stride=2), conv(16, 8)
        self.narrow = conv(12, 8)
        self.up: nn.Module = (
            nn.ConvTranspose2d(8, 8, 2, stride=2)
            if transposed
            else nn.Upsample(scale_factor=2, mode="bilinear", align_corners=False)
        )
        self.head = nn.Conv2d(8, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        up = self.up(self.narrow(self.down(x)))
        return self.head(self.merge(torch.cat([x, up], 1)))


class GroupedTransposed(nn.Module):
    """A transposed convolution in two groups, whose weight has inputs first."""

    def __init__(self) -> None:
        super().__init__()
        self.up = nn.Sequential(nn.ConvTranspose2d(8, 6, 4, stride=2, padding=1, groups=2), nn.ReLU())
        self.last = conv(6, 8, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.up(x))


class Tied(nn.Module):
    """One convolution used twice, in a row and with a skip."""

    def __init__(self) -> None:
        super().__init__()
        self.shared = conv(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        x = self.shared(x)
        return self.shared(x) + x


class Attention(nn.Module):
    """Patches, one block of attention with LayerNorm and GELU, and a head."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind, width = kind, 16
        self.patches = nn.Conv2d(3, width, 4, stride=4)
        self.first, self.second = nn.LayerNorm(width), nn.LayerNorm(width)
        if kind == "module":
            self.mix: nn.Module = nn.MultiheadAttention(width, 2, batch_first=True)
        else:
            self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.mlp = nn.Sequential(nn.Linear(width, 32), nn.GELU(), nn.Linear(32, width))
        self.head = nn.Linear(width, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patches(x).flatten(2).transpose(1, 2)
        x = x + self._mixed(self.first(x))
        x = x + self.mlp(self.second(x))
        return self.head(x.mean(1))

    def _mixed(self, x: Tensor) -> Tensor:
        if self.kind == "module":
            mixed: Tensor = self.mix(x, x, x, need_weights=False)[0]
            return mixed
        rows, length, width = x.shape
        query, key, value = self.qkv(x).view(rows, length, 3, 2, width // 2).permute(2, 0, 3, 1, 4).unbind(0)
        if self.kind == "fused":
            mixed = functional.scaled_dot_product_attention(query, key, value)
        else:
            mixed = torch.softmax(query @ key.transpose(-1, -2) / 8**0.5, -1) @ value
        return self.out(mixed.transpose(1, 2).flatten(2))


class TwoAndTwo(nn.Module):
    """An image and a vector in, a class and a place out; both share the features."""

    def __init__(self) -> None:
        super().__init__()
        self.image, self.vector = nn.Sequential(conv(3, 8), conv(8, 8)), nn.Sequential(nn.Linear(5, 8), nn.ReLU())
        self.neck = nn.Sequential(nn.Linear(16, 16), nn.ReLU())
        self.kind = nn.Linear(16, 3)
        self.place = nn.Sequential(nn.Linear(16, 8), nn.ReLU(), nn.Linear(8, 2), nn.Sigmoid())

    def forward(self, image: Tensor, vector: Tensor) -> dict[str, Tensor]:
        features = self.neck(torch.cat([self.image(image).mean((2, 3)), self.vector(vector)], 1))
        return {"kind": self.kind(features), "place": self.place(features)}


class Dilated(nn.Module):
    """A dilated and a grouped convolution."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(conv(8, 8, padding=2, dilation=2), conv(8, 8, groups=2))

    def forward(self, x: Tensor) -> Tensor:
        return self.body(x)


def _activated(activation: type[nn.Module]) -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(8, 8, 3, padding=1), nn.BatchNorm2d(8), activation(), nn.Conv2d(8, 8, 1), activation()
    )


STRUCTURES: dict[str, Callable[[], nn.Module]] = {
    "plain": lambda: Body(conv(8, 8)),
    "sigmoid head": lambda: Body(conv(8, 8), nn.Sequential(nn.Linear(8, 5), nn.Sigmoid())),
    "softmax head": lambda: Body(conv(8, 8), nn.Sequential(nn.Linear(8, 5), nn.Softmax(1))),
    "sigmoid map": lambda: nn.Sequential(conv(3, 8), nn.Conv2d(8, 2, 1), nn.Sigmoid()),
    "attention module": lambda: Attention("module"),
    "attention fused": lambda: Attention("fused"),
    "attention by hand": lambda: Attention("by hand"),
    "GELU": lambda: Body(_activated(nn.GELU)),
    "SiLU": lambda: Body(_activated(nn.SiLU)),
    "Hardswish": lambda: Body(_activated(nn.Hardswish)),
    "Hardsigmoid": lambda: Body(_activated(nn.Hardsigmoid)),
    "LeakyReLU": lambda: Body(_activated(nn.LeakyReLU)),
    "ReLU6": lambda: Body(_activated(nn.ReLU6)),
    "squeeze and excitation": lambda: Body(SqueezeExcitation()),
    "dense": lambda: Body(Dense()),
    "shuffle": lambda: Body(Shuffle()),
    "U-Net bilinear": lambda: UNet(transposed=False),
    "U-Net transposed": lambda: UNet(transposed=True),
    "grouped transposed": lambda: Body(GroupedTransposed()),
    "dilated and grouped": lambda: Body(Dilated()),
    "tied": lambda: Body(Tied()),
    "two and two": TwoAndTwo,
}


def make(name: str) -> nn.Module:
    """A network with seeded weights and lived-in BatchNorm, in evaluation mode."""
    torch.manual_seed(0)
    network = STRUCTURES[name]()
    network.train()
    with torch.no_grad():
        for _ in range(20):
            network(*inputs(32, seed=7, name=name))
    return network.eval()


def inputs(rows: int, *, seed: int = 0, name: str = "") -> tuple[Tensor, ...]:
    """Images of 16 x 16 with structure, and for the network of two inputs a vector."""
    generator = torch.Generator().manual_seed(seed)
    images = functional.interpolate(torch.randn(rows, 3, 4, 4, generator=generator), size=16, mode="bilinear")
    images = images + 0.2 * torch.randn(rows, 3, 16, 16, generator=generator)
    return (images, torch.randn(rows, 5, generator=generator)) if name == "two and two" else (images,)
