"""The example's network: put your own here, or import it. A factory returns a torch.nn.Module."""

import torch
from torch import nn


def block(inside: int, outside: int, stride: int = 1) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(inside, outside, 3, stride, 1, bias=False), nn.BatchNorm2d(outside), nn.ReLU(inplace=True)
    )


class Network(nn.Module):
    """Three convolutions and a linear layer: images (N, C, H, W) to logits (N, num_classes)."""

    def __init__(self, width: int, in_channels: int, num_classes: int) -> None:
        super().__init__()
        self.body = nn.Sequential(block(in_channels, width), block(width, 2 * width, 2), block(2 * width, 2 * width))
        self.head = nn.Linear(2 * width, num_classes)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.head(self.body(image).mean(dim=(2, 3)))
        return logits


def build(width: int = 32, in_channels: int = 1, num_classes: int = 10) -> Network:
    """`width` comes from the pipeline file, `in_channels` and `num_classes` from the data."""
    return Network(width, in_channels, num_classes)
