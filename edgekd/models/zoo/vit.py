"""Vision Transformers for small images (Dosovitskiy et al., arXiv:2010.11929), which end in the mean of all tokens."""

from __future__ import annotations

import math
from collections import OrderedDict

import torch
from torch import Tensor, nn
from torch.nn import functional

from edgekd.models.zoo.common import ImageSize


def vit_tiny(
    num_classes: int = 10,
    in_channels: int = 3,
    image_size: ImageSize = 32,
    patch: int | None = None,
    width: int = 192,
    depth: int = 6,
    heads: int = 3,
) -> nn.Sequential:
    """A transformer of `depth` blocks over square patches of an image.

    `patch` pixels a side are by default the most that fill the image and are at most an eighth of its shorter side.

    Raises:
        ValueError: the patches do not fill the image, or the heads do not share out the width.
    """
    height, across = (image_size, image_size) if isinstance(image_size, int) else tuple(image_size)
    side = patch or max(n for n in range(1, max(min(height, across) // 8, 1) + 1) if not math.gcd(height, across) % n)
    if height % side or across % side:
        raise ValueError(f"patches of {side} pixels do not fill an image of {height}x{across}")
    if width % heads:
        raise ValueError(f"{heads} heads cannot share out a width of {width}")
    tokens = (height // side) * (across // side)
    blocks = [Block(width, heads) for _ in range(depth)]
    parts: dict[str, nn.Module] = {
        "embed": Patches(in_channels, width, side, tokens),
        "blocks": nn.Sequential(*blocks),
        "norm": nn.LayerNorm(width),
        "pool": MeanOfTokens(),
        "fc": nn.Linear(width, num_classes),
    }
    network = nn.Sequential(OrderedDict(parts))
    for module in network.modules():
        if isinstance(module, nn.Linear):
            nn.init.trunc_normal_(module.weight, std=0.02)
            nn.init.zeros_(module.bias)
    return network


class Patches(nn.Module):
    """Images (N, C, H, W) as tokens (N, T, width) with learned positions."""

    def __init__(self, channels: int, width: int, side: int, tokens: int) -> None:
        super().__init__()
        self.project = nn.Conv2d(channels, width, side, side)
        self.positions = nn.Parameter(torch.randn(1, tokens, width) * 0.02)

    def forward(self, x: Tensor) -> Tensor:
        tokens: Tensor = self.project(x).flatten(2).transpose(1, 2)
        return tokens + self.positions


class Attention(nn.Module):
    """Self-attention of several heads over tokens (N, T, width)."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.project = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x).unflatten(2, (3, self.heads, -1)).permute(2, 0, 3, 1, 4).unbind(0)
        mixed = functional.scaled_dot_product_attention(q, k, v)
        projected: Tensor = self.project(mixed.transpose(1, 2).flatten(2))
        return projected


class Block(nn.Module):
    """Attention and two linear layers, each behind a norm and beside a skip."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.norm1, self.attention = nn.LayerNorm(width), Attention(width, heads)
        self.norm2 = nn.LayerNorm(width)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(self.norm1(x))
        found: Tensor = x + self.mlp(self.norm2(x))
        return found


class MeanOfTokens(nn.Module):
    """Tokens (N, T, width) as their mean (N, width)."""

    def forward(self, x: Tensor) -> Tensor:
        return x.mean(1)
