"""MobileNetV2: Sandler et al., "Inverted Residuals and Linear Bottlenecks" (arXiv:1801.04381), for small images.

As in the distillation literature (Tian et al., arXiv:1910.10699) it has half the channels, ReLU in place of ReLU6,
the stride of the second stage left out, and an expanding convolution in the first block too.
"""

from __future__ import annotations

from torch import Tensor, nn

from edgekd.models.zoo.common import ImageSize, classifier, conv_bn, conv_bn_relu, strides_for

_STAGES = (
    # layer, channels, blocks, stride
    (1, 16, 1, 1),
    (1, 24, 2, 1),
    (2, 32, 3, 2),
    (3, 64, 4, 2),
    (3, 96, 3, 1),
    (4, 160, 3, 2),
    (4, 320, 1, 1),
)
_LAST = 1280


class InvertedResidual(nn.Module):
    """Expand by a 1x1 convolution, filter each channel by itself, project; a shortcut if the shapes allow it."""

    def __init__(self, cin: int, cout: int, stride: int, expansion: int) -> None:
        super().__init__()
        middle = cin * expansion
        self.body = nn.Sequential(
            *conv_bn_relu(cin, middle, 1),
            *conv_bn_relu(middle, middle, 3, stride, groups=middle),
            *conv_bn(middle, cout, 1),
        )
        self.residual = stride == 1 and cin == cout

    def forward(self, x: Tensor) -> Tensor:
        """Feature maps (N, cin, H, W) to (N, cout, H / stride, W / stride)."""
        out: Tensor = self.body(x)
        return x + out if self.residual else out


def mobilenetv2(
    num_classes: int = 10, in_channels: int = 3, image_size: ImageSize = 32, width: float = 0.5, expansion: int = 6
) -> nn.Sequential:
    """MobileNetV2 with `width` times the published channels; `expansion` is the factor inside a block."""
    stem_stride, *strides = strides_for(image_size, (2, *(stride for *_, stride in _STAGES)))
    cin = int(32 * width)
    layers: dict[str, list[nn.Module]] = {}
    stem = nn.Sequential(*conv_bn_relu(in_channels, cin, 3, stem_stride))
    for i, ((layer, channels, blocks, _), stride) in enumerate(zip(_STAGES, strides, strict=True)):
        cout = int(channels * width)
        for block in range(blocks):
            made = InvertedResidual(cin, cout, 1 if block else stride, expansion if i else 1)
            layers.setdefault(f"layer{layer}", []).append(made)
            cin = cout
    last = max(_LAST, int(_LAST * width))
    parts: dict[str, nn.Module] = {"stem": stem}
    parts |= {name: nn.Sequential(*modules) for name, modules in layers.items()}
    parts["last"] = nn.Sequential(*conv_bn_relu(cin, last, 1))
    return classifier(parts, last, num_classes)
