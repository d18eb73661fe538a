"""Residual networks for small images: He et al., "Deep Residual Learning" (arXiv:1512.03385), section 4.2.

Shortcuts that change the shape are a 1x1 convolution and batch normalization (option B), and the x4 widths are those of
the distillation literature (Tian et al., arXiv:1910.10699), so numbers published there can be compared with.
Parameters are named as they are there and in torchvision.
"""

from __future__ import annotations

from torch import Tensor, nn

from edgekd.models.zoo.common import ImageSize, classifier, conv_bn, strides_for

_NARROW = (16, 16, 32, 64)
_WIDE = (32, 64, 128, 256)


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut; what stands before the last ReLU is the input of `relu2`."""

    def __init__(self, cin: int, cout: int, stride: int) -> None:
        super().__init__()
        self.conv1, self.bn1 = conv_bn(cin, cout, 3, stride)
        self.relu1 = nn.ReLU()
        self.conv2, self.bn2 = conv_bn(cout, cout, 3)
        self.relu2 = nn.ReLU()
        same = stride == 1 and cin == cout
        self.downsample = None if same else nn.Sequential(*conv_bn(cin, cout, 1, stride))

    def forward(self, x: Tensor) -> Tensor:
        """Feature maps (N, cin, H, W) to (N, cout, H / stride, W / stride)."""
        shortcut = x if self.downsample is None else self.downsample(x)
        out = self.relu1(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        activated: Tensor = self.relu2(out + shortcut)
        return activated


def resnet(
    depth: int,
    widths: tuple[int, int, int, int],
    num_classes: int,
    in_channels: int,
    image_size: ImageSize,
) -> nn.Sequential:
    """A residual network of `depth` = 6n + 2 layers; `widths` are the channels of the stem and of layer1 to layer3.

    Raises:
        ValueError: the depth is no 6n + 2.
    """
    if depth < 8 or (depth - 2) % 6:
        raise ValueError(f"the depth of a residual network is 6n + 2 (8, 14, 20, ..), not {depth}")
    stem, *outputs = widths
    conv1, bn1 = conv_bn(in_channels, stem, 3)
    parts: dict[str, nn.Module] = {"conv1": conv1, "bn1": bn1, "relu": nn.ReLU()}
    cin = stem
    for i, (cout, stride) in enumerate(zip(outputs, strides_for(image_size, (1, 2, 2)), strict=True), start=1):
        blocks = [BasicBlock(cin, cout, stride)]
        blocks += [BasicBlock(cout, cout, 1) for _ in range((depth - 2) // 6 - 1)]
        parts[f"layer{i}"] = nn.Sequential(*blocks)
        cin = cout
    return classifier(parts, cin, num_classes)


def resnet8(num_classes: int = 10, in_channels: int = 3, image_size: ImageSize = 32) -> nn.Sequential:
    """ResNet-8: one block per layer."""
    return resnet(8, _NARROW, num_classes, in_channels, image_size)


def resnet14(num_classes: int = 10, in_channels: int = 3, image_size: ImageSize = 32) -> nn.Sequential:
    """ResNet-14: two blocks per layer."""
    return resnet(14, _NARROW, num_classes, in_channels, image_size)


def resnet20(num_classes: int = 10, in_channels: int = 3, image_size: ImageSize = 32) -> nn.Sequential:
    """ResNet-20: three blocks per layer."""
    return resnet(20, _NARROW, num_classes, in_channels, image_size)


def resnet32(num_classes: int = 10, in_channels: int = 3, image_size: ImageSize = 32) -> nn.Sequential:
    """ResNet-32: five blocks per layer."""
    return resnet(32, _NARROW, num_classes, in_channels, image_size)


def resnet44(num_classes: int = 10, in_channels: int = 3, image_size: ImageSize = 32) -> nn.Sequential:
    """ResNet-44: seven blocks per layer."""
    return resnet(44, _NARROW, num_classes, in_channels, image_size)


def resnet56(num_classes: int = 10, in_channels: int = 3, image_size: ImageSize = 32) -> nn.Sequential:
    """ResNet-56: nine blocks per layer."""
    return resnet(56, _NARROW, num_classes, in_channels, image_size)


def resnet110(num_classes: int = 10, in_channels: int = 3, image_size: ImageSize = 32) -> nn.Sequential:
    """ResNet-110: eighteen blocks per layer."""
    return resnet(110, _NARROW, num_classes, in_channels, image_size)


def resnet8x4(num_classes: int = 10, in_channels: int = 3, image_size: ImageSize = 32) -> nn.Sequential:
    """ResNet-8 with four times the channels."""
    return resnet(8, _WIDE, num_classes, in_channels, image_size)


def resnet32x4(num_classes: int = 10, in_channels: int = 3, image_size: ImageSize = 32) -> nn.Sequential:
    """ResNet-32 with four times the channels."""
    return resnet(32, _WIDE, num_classes, in_channels, image_size)
