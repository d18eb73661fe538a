"""A plain stack of 3x3 convolutions with batch normalization (Ioffe and Szegedy, arXiv:1502.03167), for tiny images."""

from __future__ import annotations

from torch import nn

from edgekd.models.zoo.common import ImageSize, classifier, conv_bn_relu, strides_for

_LAYERS = 3


def convnet(
    num_classes: int = 10, in_channels: int = 3, image_size: ImageSize = 32, width: int = 16, depth: int = 3
) -> nn.Sequential:
    """`depth` convolutions in three layers of 1, 2 and 4 times `width` channels; layers 2 and 3 halve the size.

    Raises:
        ValueError: fewer than three convolutions, or no channel.
    """
    if depth < _LAYERS or width < 1:
        raise ValueError(
            f"convnet needs a depth of at least {_LAYERS} and a width of at least 1, not {depth} and {width}"
        )
    parts: dict[str, nn.Module] = {}
    cin = in_channels
    for i, stride in enumerate(strides_for(image_size, (1, 2, 2))):
        cout = width * 2**i
        modules: list[nn.Module] = []
        for n in range(depth // _LAYERS + (i < depth % _LAYERS)):
            modules += conv_bn_relu(cin, cout, 3, 1 if n else stride)
            cin = cout
        parts[f"layer{i + 1}"] = nn.Sequential(*modules)
    return classifier(parts, cin, num_classes)
