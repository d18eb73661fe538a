"""Wide residual networks: Zagoruyko and Komodakis, "Wide Residual Networks" (arXiv:1605.07146), without dropout."""

from __future__ import annotations

from torch import Tensor, nn

from edgekd.models.zoo.common import ImageSize, classifier, strides_for


class PreActivationBlock(nn.Module):
    """Batch normalization and ReLU before each of two convolutions, the first pair also before a changing shortcut."""

    def __init__(self, cin: int, cout: int, stride: int) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(cin)
        self.relu1 = nn.ReLU()
        self.conv1 = nn.Conv2d(cin, cout, 3, stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(cout)
        self.relu2 = nn.ReLU()
        self.conv2 = nn.Conv2d(cout, cout, 3, padding=1, bias=False)
        same = stride == 1 and cin == cout
        self.shortcut = None if same else nn.Conv2d(cin, cout, 1, stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Feature maps (N, cin, H, W) to (N, cout, H / stride, W / stride)."""
        activated = self.relu1(self.bn1(x))
        shortcut: Tensor = x if self.shortcut is None else self.shortcut(activated)
        out: Tensor = self.conv2(self.relu2(self.bn2(self.conv1(activated))))
        return shortcut + out


def wide_resnet(depth: int, widen: int, num_classes: int, in_channels: int, image_size: ImageSize) -> nn.Sequential:
    """A wide residual network of `depth` = 6n + 4 layers, `widen` times as wide as a plain one.

    Raises:
        ValueError: the depth is no 6n + 4.
    """
    if depth < 10 or (depth - 4) % 6:
        raise ValueError(f"the depth of a wide residual network is 6n + 4 (10, 16, 22, ..), not {depth}")
    parts: dict[str, nn.Module] = {"conv1": nn.Conv2d(in_channels, 16, 3, padding=1, bias=False)}
    cin = 16
    for i, stride in enumerate(strides_for(image_size, (1, 2, 2))):
        cout = 16 * widen * 2**i
        blocks = [PreActivationBlock(cin, cout, stride)]
        blocks += [PreActivationBlock(cout, cout, 1) for _ in range((depth - 4) // 6 - 1)]
        parts[f"layer{i + 1}"] = nn.Sequential(*blocks)
        cin = cout
    parts |= {"bn": nn.BatchNorm2d(cin), "relu": nn.ReLU()}
    return classifier(parts, cin, num_classes)


def wrn_16_2(num_classes: int = 10, in_channels: int = 3, image_size: ImageSize = 32) -> nn.Sequential:
    """WRN-16-2: 16 layers, twice the width."""
    return wide_resnet(16, 2, num_classes, in_channels, image_size)


def wrn_40_1(num_classes: int = 10, in_channels: int = 3, image_size: ImageSize = 32) -> nn.Sequential:
    """WRN-40-1: 40 layers, the plain width."""
    return wide_resnet(40, 1, num_classes, in_channels, image_size)


def wrn_40_2(num_classes: int = 10, in_channels: int = 3, image_size: ImageSize = 32) -> nn.Sequential:
    """WRN-40-2: 40 layers, twice the width."""
    return wide_resnet(40, 2, num_classes, in_channels, image_size)
