"""What the built-in networks share: conv-bn-relu, the classifying end, initial weights, strides for small images."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Mapping, Sequence

from torch import nn

ImageSize = int | Sequence[int]
"""Pixels of a side, or (height, width)."""


def conv_bn(
    cin: int, cout: int, kernel: int, stride: int = 1, *, groups: int = 1, bias: bool = False
) -> list[nn.Module]:
    """A convolution padded to keep the size at stride 1, and its batch normalization."""
    convolution = nn.Conv2d(cin, cout, kernel, stride, padding=kernel // 2, groups=groups, bias=bias)
    return [convolution, nn.BatchNorm2d(cout)]


def conv_bn_relu(
    cin: int, cout: int, kernel: int, stride: int = 1, *, groups: int = 1, bias: bool = False
) -> list[nn.Module]:
    """`conv_bn` and a ReLU, which is never in place: a tap on what stands before it must stay what it was."""
    return [*conv_bn(cin, cout, kernel, stride, groups=groups, bias=bias), nn.ReLU()]


def classifier(parts: Mapping[str, nn.Module], channels: int, num_classes: int) -> nn.Sequential:
    """A straight line of named parts that ends in (N, channels, H, W), then mean over the pixels and a linear layer.

    Convolutions start as in He et al., "Delving Deep into Rectifiers" (arXiv:1502.01852), fan out; everything else
    starts as PyTorch has it.
    """
    end = {"pool": nn.AdaptiveAvgPool2d(1), "flatten": nn.Flatten(), "fc": nn.Linear(channels, num_classes)}
    network = nn.Sequential(OrderedDict({**parts, **end}))
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            if module.bias is not None:
                nn.init.zeros_(module.bias)
    return network


def strides_for(image_size: ImageSize, wanted: Iterable[int], *, pooling: bool = False) -> list[int]:
    """The wanted strides, with 1 in place of each that would leave fewer than two pixels a side.

    Nothing changes at the sizes that the networks were published for. `pooling` rounds odd sizes down as a pooling
    layer does; a padded convolution rounds them up.
    """
    side = smaller_side(image_size)
    strides = []
    for stride in wanted:
        after = side // stride if pooling else -(-side // stride)
        fits = after >= 2
        strides.append(stride if fits else 1)
        side = after if fits else side
    return strides


def smaller_side(image_size: ImageSize) -> int:
    """Pixels of the shorter side of an image."""
    return image_size if isinstance(image_size, int) else min(image_size)
