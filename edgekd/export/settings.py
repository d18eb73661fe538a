"""Options of the ONNX export (torch-free)."""

from __future__ import annotations

from pydantic import Field

from edgekd.config import Settings


class ExportSettings(Settings):
    """What is written, and how exactly it must agree with PyTorch."""

    opset: int = Field(default=20, ge=18, le=22)
    """ONNX opset of the files; the one that was written is asserted."""
    raw_input: bool = False
    """Files take raw frames: each image input is uint8 (N, H, W, C), and its layout and normalisation are computed
    inside the graph. Inputs that are no images stay as they are."""
    parity_samples: int = Field(default=256, ge=2)
    """Validation (or training) samples on which each file is compared with PyTorch."""
    max_error: float = Field(default=1e-4, gt=0)
    """Largest error of the float file, relative to the largest output; above it the stage fails."""
    max_noise: float = Field(default=0.3, gt=0)
    """Largest error of a quantized file against the fake-quantized network, as a share of the outputs' own spread over
    the samples (root mean squares): roundings that fall the other way stay far below it, a wrong scale far above.
    Where it is not given, as much as quantization itself moved the answers, if that is more."""
    min_agreement: float = Field(default=0.95, ge=0, le=1)
    """Least share of samples on which a quantized file and the fake-quantized network give the same answer: the same
    class, or a value within 5% of the outputs' spread. Judged with a 95% interval. Where it is not given, the share on
    which the fake-quantized and the float network agree suffices, if that is less."""

    def limits(self) -> dict[str, float]:
        """How far files may be off, by names."""
        return {name: getattr(self, name) for name in ("max_error", "max_noise", "min_agreement")}
