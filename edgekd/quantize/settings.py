"""Options of quantization (torch-free)."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field, Tag, field_serializer, field_validator, model_validator

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
    """The same as `float_above` of the stage."""

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
    overflow_fix: Literal["auto", "all", "signed_inputs", "first_layer", "off"] = "auto"
    """Which layers' weights have 7 bits where they would have 8. OpenVINO on x86 processors without VNNI adds two
    products of 8 bits in 16, which overflow: never with 7 bits in `all`; seldom if those layers have them whose inputs
    may be negative (`signed_inputs`, enough with 127 relu_levels) or are the network's (`first_layer`). auto: off where
    no target is OpenVINO on a CPU in int8, else as many as can never overflow. `layers` counts before this."""
    relu_levels: Literal["auto", 127, 255] = "auto"
    """Levels that an activation of 8 bits has above 0 if it is never negative, as after a ReLU: 255, as uint8 has, or
    127, which is what TensorRT's int8 leaves; auto: 127 where a target is TensorRT in int8, else 255."""
    layers: dict[str, LayerChoice] = Field(default_factory=dict)
    """Layers that differ, by name or pattern (`head.*`): their bits, or the word float. The last that fits counts."""
    float_outputs: tuple[str, ...] = ()
    """Outputs that stay float, with all layers that serve them alone; of a network's only output, the last layer."""
    float_above: Annotated[float, Field(gt=0)] | None = None
    """Layers that alone, weight and inputs rounded, move the answers by more than this divergence stay float (with
    `mixed` their weights at its most bits); those that `layers` gives by their full name stay as they are given."""
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

    @field_serializer("layers")
    def _in_order(self, layers: dict[str, LayerChoice]) -> list[list[Any]]:
        """As pairs: their order counts, and keys and files sort what is a mapping."""
        return [[name, choice if isinstance(choice, str) else choice.canonical()] for name, choice in layers.items()]

    @field_validator("layers", mode="before")
    @classmethod
    def _from_pairs(cls, layers: Any) -> Any:
        pairs = isinstance(layers, list) and all(isinstance(pair, list) and len(pair) == 2 for pair in layers)
        return dict(layers) if pairs else layers

    @property
    def stays_float_above(self) -> float | None:
        """The divergence beyond which a layer stays float, wherever it is written."""
        return self.mixed.float_above if self.float_above is None and self.mixed is not None else self.float_above

    @model_validator(mode="after")
    def _one_limit(self) -> QuantizationSettings:
        if self.float_above is not None and self.mixed is not None and self.mixed.float_above is not None:
            raise ValueError("float_above stands here and under mixed | write it once")
        return self
