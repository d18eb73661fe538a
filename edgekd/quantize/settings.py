"""Options of quantization (torch-free)."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Discriminator, Field, Tag, model_validator

from edgekd.config import Settings

Switch = Literal["auto", True, False]


Bits = Annotated[int, Field(ge=2, le=8)]


class LayerBits(Settings):
    """What differs in one layer."""

    weights: Bits | None = None
    """Bits of its weights."""
    activations: Bits | None = None
    """Bits of its inputs."""


LayerChoice = Annotated[
    Annotated[Literal["float"], Tag("word")] | Annotated[LayerBits, Tag("bits")],
    Discriminator(lambda value: "word" if isinstance(value, str) else "bits"),
]


class MixedSettings(Settings):
    """Bits of each layer's weights by how sensitive the answers are to them."""

    budget: Annotated[float, Field(ge=2, le=8)]
    """Mean bits of all weights, at most."""
    bits: Annotated[tuple[Bits, ...], Field(min_length=2)] = (8, 6, 4, 3, 2)
    """Widths to choose from."""
    float_above: Annotated[float, Field(gt=0)] | None = None
    """Layers that alone, at the most bits, move the answers by more than this divergence stay float."""

    @model_validator(mode="after")
    def _reachable(self) -> MixedSettings:
        if self.budget < min(self.bits):
            raise ValueError(
                f"no layer has fewer than {min(self.bits)} bits | raise budget, or add fewer bits to `bits`"
            )
        return self


class QuantizationSettings(Settings):
    """How a network is quantized: bits, ranges, calibration."""

    weights: Bits = 8
    """Bits of weights, 2 to 8; symmetric, one scale per output channel."""
    activations: Bits = 8
    """Bits of activations, 2 to 8; symmetric, one scale per tensor."""
    per_channel: bool = True
    """Whether each output channel of a weight has a scale of its own, or all have one."""
    layers: dict[str, LayerChoice] = Field(default_factory=dict)
    """Layers that differ, by name or pattern (`head.*`): their bits, or the word float. The last that fits counts."""
    mixed: MixedSettings | None = None
    """Find the bits of each layer's weights; those under `layers` stay as they are given."""
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
