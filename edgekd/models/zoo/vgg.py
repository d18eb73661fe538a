"""VGG with batch normalization and one linear layer, for small images: Simonyan and Zisserman (arXiv:1409.1556).

A layer begins with its pooling, so that a tap on it sees the maps before they are pooled.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from edgekd.models.zoo.common import ImageSize, classifier, conv_bn_relu, smaller_side, strides_for

_WIDTHS = (64, 128, 256, 512, 512)


def vgg(convolutions: Sequence[int], num_classes: int, in_channels: int, image_size: ImageSize) -> nn.Sequential:
    """Five layers of so many 3x3 convolutions; layers 2 to 4, and from 64 pixels up layer 5, halve the size first."""
    pools = (1, 2, 2, 2, 2 if smaller_side(image_size) >= 64 else 1)
    parts: dict[str, nn.Module] = {}
    cin = in_channels
    strides = strides_for(image_size, pools, pooling=True)
    for i, (cout, n, stride) in enumerate(zip(_WIDTHS, convolutions, strides, strict=True), start=1):
        modules: list[nn.Module] = [nn.MaxPool2d(2)] if stride == 2 else []
        for _ in range(n):
            modules += conv_bn_relu(cin, cout, 3, bias=True)
            cin = cout
        parts[f"layer{i}"] = nn.Sequential(*modules)
    return classifier(parts, cin, num_classes)


def vgg8(num_classes: int = 10, in_channels: int = 3, image_size: ImageSize = 32) -> nn.Sequential:
    """VGG-8: one convolution per layer."""
    return vgg((1, 1, 1, 1, 1), num_classes, in_channels, image_size)


def vgg13(num_classes: int = 10, in_channels: int = 3, image_size: ImageSize = 32) -> nn.Sequential:
    """VGG-13: two convolutions per layer."""
    return vgg((2, 2, 2, 2, 2), num_classes, in_channels, image_size)
