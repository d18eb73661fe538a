"""Small images as tensors, and what Pillow makes of them."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from PIL import Image
from torch import Tensor


def images(n: int = 6, channels: int = 3, size: tuple[int, int] = (17, 23)) -> Tensor:
    """Noise on a slope, of several contrasts: int32 (N, C, H, W), 0 .. 255."""
    generator = torch.Generator().manual_seed(3)
    slope = torch.linspace(40, 210, size[1]).expand(n, channels, *size)
    spread = torch.linspace(5, 120, n)[:, None, None, None]
    return (slope + spread * torch.randn(n, channels, *size, generator=generator)).clamp(0, 255).to(torch.int32)


def by_pillow(x: Tensor, change: Callable[[Image.Image], Image.Image]) -> Tensor:
    """Each image (C, H, W) of x, grey or RGB, changed by Pillow."""
    found = []
    for image in x.to(torch.uint8):
        array = image[0] if len(image) == 1 else image.permute(1, 2, 0)
        changed = torch.from_numpy(np.array(change(Image.fromarray(array.contiguous().numpy()))))
        found.append(changed[None] if changed.dim() == 2 else changed.permute(2, 0, 1))
    return torch.stack(found).to(x.dtype)


def far(a: Tensor, b: Tensor) -> int:
    """Largest difference in grey levels."""
    return int((a.int() - b.int()).abs().max())
