"""Options of quantization (torch-free)."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from edgekd.config import Settings


class QuantizationSettings(Settings):
    """How a network is quantized: bits, ranges, calibration."""

    weights: int = Field(default=8, ge=2, le=8)
    """Bits of weights, 2 to 8; symmetric, one scale per output channel."""
    activations: int = Field(default=8, ge=2, le=8)
    """Bits of activations, 2 to 8; symmetric, one scale per tensor."""
    ranges: Literal["mse", "minmax", "percentile"] = "mse"
    """How calibration sets an activation's scale: least squared error, largest value, or the 99.99th percentile."""
    calibration: int = Field(default=256, ge=1)
    """Training samples (labels unused) that calibration looks at."""
