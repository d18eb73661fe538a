"""Options of quantization (torch-free)."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from edgekd.config import Settings

Switch = Literal["auto", True, False]


class QuantizationSettings(Settings):
    """How a network is quantized: bits, ranges, calibration."""

    weights: int = Field(default=8, ge=2, le=8)
    """Bits of weights, 2 to 8; symmetric, one scale per output channel."""
    activations: int = Field(default=8, ge=2, le=8)
    """Bits of activations, 2 to 8; symmetric, one scale per tensor."""
    ranges: Literal["auto", "mse", "minmax", "percentile", "entropy"] = "auto"
    """How calibration sets an activation's scale: by least squared error, the largest value, the 99.99th percentile,
    least KL divergence; auto takes what brings the answers closest to the float network's."""
    weight_ranges: Literal["auto", "minmax", "mse"] = "auto"
    """The same for weights; below 8 bits the largest weight is rarely the best end of a grid."""
    equalization: Switch = "auto"
    """Bring the channels between two convolutions to one range first; auto keeps it if the answers come closer."""
    bias_correction: Switch = "auto"
    """Add to biases what rounding takes off their channels' means; auto keeps it if the answers come closer."""
    calibration: int = Field(default=256, ge=1)
    """Training samples (labels unused) that calibration looks at."""
