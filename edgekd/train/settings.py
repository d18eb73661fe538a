"""Options of training (torch-free): the `train:` block, and what each training stage may override."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from edgekd.config import Settings

Precision = Literal["auto", "f32", "bf16"]
Optimizer = Literal["sgd", "adamw"]
Schedule = Literal["cosine", "constant"]


class TrainSettings(Settings):
    """How networks are trained, unless a stage says otherwise."""

    batch: int = Field(default=128, ge=1)
    """Samples per step."""
    precision: Precision = "auto"
    """Arithmetic of training: f32, bf16 autocast, or auto (bf16 where the processor has bf16 instructions)."""
    threads: int = Field(default=1, ge=0)
    """Threads that torch may use; 0 leaves it to torch. On two contended cores one is faster than two."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where training runs: auto takes CUDA when torch finds it."""
    optimizer: Optimizer = "sgd"
    """sgd (Nesterov momentum) or adamw."""
    lr: float | None = Field(default=None, gt=0)
    """Peak learning rate; without it .1 per 128 samples of a batch for sgd, .002 for adamw."""
    momentum: float = Field(default=0.9, ge=0, lt=1)
    """Momentum of sgd."""
    weight_decay: float = Field(default=5e-4, ge=0)
    """Weight decay; not applied to biases, BatchNorm and quantization scales."""
    schedule: Schedule = "cosine"
    """Learning rate over the epochs: cosine down to 0, or constant."""
    warmup: float = Field(default=1.0, ge=0)
    """Epochs over which the learning rate rises from 0 to its peak."""
    clip: float | None = Field(default=None, gt=0)
    """Largest norm of the gradient, or no clipping."""

    teacher_cache: Literal["f32", "f16", "off"] = "f32"
    """Keep a frozen teacher's outputs on disk, exactly (f32) or rounded (f16), and look them up from then on."""
    teacher_cache_top_k: int = Field(default=0, ge=0)
    """Keep only so many largest logits of each head, the rest as one level; 0 keeps all."""
    teacher_cache_bytes: int = Field(default=4_000_000_000, ge=0)
    """Largest size of one cache; a teacher whose outputs would take more is run live."""


class TrainOverrides(Settings):
    """What a training stage may set for itself instead of the pipeline's `train:` block."""

    batch: int | None = Field(default=None, ge=1)
    """Samples per step, instead of train.batch."""
    optimizer: Optimizer | None = None
    """Instead of train.optimizer."""
    lr: float | None = Field(default=None, gt=0)
    """Peak learning rate, instead of train.lr."""
    weight_decay: float | None = Field(default=None, ge=0)
    """Instead of train.weight_decay."""
    warmup: float | None = Field(default=None, ge=0)
    """Instead of train.warmup."""
    precision: Precision | None = None
    """Instead of train.precision."""

    def over(self, base: TrainSettings) -> TrainSettings:
        """The pipeline's settings with this stage's own in their place."""
        own = {name: getattr(self, name) for name in TrainOverrides.model_fields}
        return base.model_copy(update={name: value for name, value in own.items() if value is not None})
