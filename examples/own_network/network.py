"""A small residual network for grey images of 8x8 pixels."""

import torch
from torch import nn


class Residual(nn.Module):
    """Two convolutions and the way around them."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out = torch.relu(self.bn1(self.conv1(x)))
        return torch.relu(x + self.bn2(self.conv2(out)))


class Network(nn.Module):
    """A convolution, residual blocks, the mean over the pixels, a linear layer: (N, 1, 8, 8) to (N, num_classes)."""

    def __init__(self, width: int, blocks: int, num_classes: int) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(1, width, 3, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU())
        self.body = nn.Sequential(*(Residual(width) for _ in range(blocks)))
        self.head = nn.Linear(width, num_classes)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        features = self.body(self.stem(image)).mean(dim=(2, 3))
        logits: torch.Tensor = self.head(features)
        return logits


def build(width: int = 48, blocks: int = 1, num_classes: int = 10) -> Network:
    """The network, with random weights."""
    return Network(width, blocks, num_classes)
