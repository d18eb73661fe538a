"""ShuffleNetV2: Ma et al., "Practical Guidelines for Efficient CNN Architecture Design" (arXiv:1807.11164).

As in the distillation literature (Tian et al., arXiv:1910.10699) the stem is a 1x1 convolution that keeps the size
of small images.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from edgekd.models.zoo.common import ImageSize, classifier, conv_bn, conv_bn_relu, strides_for

_STEM = 24
_BLOCKS = (4, 8, 4)
_CHANNELS = {
    0.5: (48, 96, 192, 1024),
    1.0: (116, 232, 464, 1024),
    1.5: (176, 352, 704, 1024),
    2.0: (244, 488, 976, 2048),
}


class ChannelShuffle(nn.Module):
    """Interleave the two halves of the channels; the batch is left as it is, so its size may stay open in a capture."""

    def forward(self, x: Tensor) -> Tensor:
        """Feature maps (N, C, H, W) to the same shape."""
        return torch.unflatten(x, 1, (2, x.shape[1] // 2)).transpose(1, 2).flatten(1, 2)


class Branch(nn.Sequential):
    """1x1 convolution, one filter per channel, 1x1 convolution."""

    def __init__(self, cin: int, cout: int, stride: int) -> None:
        super().__init__(
            *conv_bn_relu(cin, cout, 1),
            *conv_bn(cout, cout, 3, stride, groups=cout),
            *conv_bn_relu(cout, cout, 1),
        )


class Unit(nn.Module):
    """One half of the channels passes by, the other goes through the branch (figure 3c of the paper)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.branch = Branch(channels // 2, channels // 2, 1)
        self.shuffle = ChannelShuffle()

    def forward(self, x: Tensor) -> Tensor:
        """Feature maps (N, C, H, W) to the same shape."""
        passing, changing = x.chunk(2, 1)
        shuffled: Tensor = self.shuffle(torch.cat((passing, self.branch(changing)), 1))
        return shuffled


class DownUnit(nn.Module):
    """All channels go through two branches, each of which halves the size (figure 3d of the paper)."""

    def __init__(self, cin: int, cout: int, stride: int) -> None:
        super().__init__()
        half = cout // 2
        self.left = nn.Sequential(*conv_bn(cin, cin, 3, stride, groups=cin), *conv_bn_relu(cin, half, 1))
        self.right = Branch(cin, half, stride)
        self.shuffle = ChannelShuffle()

    def forward(self, x: Tensor) -> Tensor:
        """Feature maps (N, cin, H, W) to (N, cout, H / stride, W / stride)."""
        shuffled: Tensor = self.shuffle(torch.cat((self.left(x), self.right(x)), 1))
        return shuffled


def shufflenetv2(
    num_classes: int = 10, in_channels: int = 3, image_size: ImageSize = 32, width: float = 1.0
) -> nn.Sequential:
    """ShuffleNetV2 at one of the published widths: 0.5, 1, 1.5 or 2.

    Raises:
        ValueError: another width.
    """
    if width not in _CHANNELS:
        raise ValueError(f"the widths of ShuffleNetV2 are {', '.join(map(str, _CHANNELS))}, not {width}")
    *outputs, last = _CHANNELS[width]
    parts: dict[str, nn.Module] = {"stem": nn.Sequential(*conv_bn_relu(in_channels, _STEM, 1))}
    cin = _STEM
    strides = strides_for(image_size, (2, 2, 2))
    for i, (cout, blocks, stride) in enumerate(zip(outputs, _BLOCKS, strides, strict=True), start=1):
        parts[f"layer{i}"] = nn.Sequential(DownUnit(cin, cout, stride), *(Unit(cout) for _ in range(blocks - 1)))
        cin = cout
    parts["last"] = nn.Sequential(*conv_bn_relu(cin, last, 1))
    return classifier(parts, last, num_classes)
