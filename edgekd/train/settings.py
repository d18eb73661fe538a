"""Options of training (torch-free): the `train:` block, and what each training stage may override."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Discriminator, Field, Tag, model_validator

from edgekd.config import Settings

Precision = Literal["auto", "f32", "bf16", "f16"]
Optimizer = Literal["sgd", "adam", "adamw", "nadam", "radam", "rmsprop", "lion"]
Schedule = Literal["cosine", "step", "one_cycle", "constant"]
Compile = Literal["auto", "off", "default", "graphs"]
Share = Annotated[float, Field(gt=0, lt=1)]


class TrainSettings(Settings):
    """How networks are trained, unless a stage says otherwise."""

    batch: int = Field(default=128, ge=1)
    """Samples per step, over all processes and accumulated parts. An epoch's steps are equal and at most so large."""
    accumulate: int = Field(default=1, ge=1)
    """Parts that a process works off one after the other in each step: less memory, the same gradient; BatchNorm and
    knowledge between samples see one part at a time."""
    precision: Precision = "auto"
    """Arithmetic of training: f32, bf16 or f16 autocast (f16 with gradient scaling), or auto: bf16 where the processor
    has bf16 instructions, else f32."""
    threads: Annotated[
        Annotated[int, Field(ge=0), Tag("number")] | Annotated[Literal["auto"], Tag("word")],
        Discriminator(lambda value: "word" if isinstance(value, str) else "number"),
    ] = "auto"
    """Threads of each process; 0 leaves it to torch. auto: 1 on up to 4 cores (two threads on two contended cores are
    slower than one), else a quarter of the cores, at most 8, shared by the processes."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where training runs: auto takes CUDA when torch finds it; with several processes each takes a GPU of its own."""
    compile: Compile = "auto"
    """torch.compile: off, default (fused kernels), graphs (CUDA graphs too). auto: graphs for long phases of small
    networks on a GPU, off elsewhere."""
    sync_batchnorm: bool = False
    """BatchNorm over the rows of all processes instead of each its own (several processes on GPUs only)."""

    optimizer: Optimizer = "sgd"
    """sgd (Nesterov momentum), adam, adamw, nadam, radam, rmsprop, or lion."""
    lr: float | None = Field(default=None, gt=0)
    """Peak learning rate; without it .1 per 128 samples of a batch for sgd, 3e-4 for lion, .002 for the others."""
    momentum: float = Field(default=0.9, ge=0, lt=1)
    """Momentum of sgd."""
    weight_decay: float = Field(default=5e-4, ge=0)
    """Weight decay; not applied to biases, BatchNorm and quantization scales."""
    schedule: Schedule = "cosine"
    """Learning rate over the epochs: cosine down to 0, step (times gamma at each milestone), one_cycle, or constant."""
    milestones: tuple[Share, ...] = (0.625, 0.75, 0.875)
    """Shares of a phase at which the step schedule drops."""
    gamma: float = Field(default=0.1, gt=0, lt=1)
    """Factor of each drop of the step schedule."""
    warmup: float | None = Field(default=None, ge=0)
    """Epochs over which the learning rate rises from 0 to its peak; one_cycle has its own rise. By default 1, but at
    most a fifth of a phase, for what has risen must have time to fall."""
    clip: float | None = Field(default=None, gt=0)
    """Largest norm of the gradient, or no clipping."""
    average: float | None = Field(default=None, gt=0, lt=1)
    """Decay of an exponential moving average of the weights, which goes on in their place (EMA); e.g. .999."""
    label_smoothing: float = Field(default=0.0, ge=0, lt=1)
    """Share of each true label that is spread over all classes."""
    patience: int | None = Field(default=None, ge=1)
    """Stop after so many epochs in a row without a better validation score."""

    teacher_cache: Literal["f32", "f16", "off"] = "f32"
    """Keep a frozen teacher's outputs on disk, exactly (f32) or rounded (f16), and look them up from then on."""
    teacher_cache_top_k: int = Field(default=0, ge=0)
    """Keep only so many largest logits of each head, the rest as one level; 0 keeps all."""
    teacher_cache_bytes: int = Field(default=4_000_000_000, ge=0)
    """Largest size of one cache; a teacher whose outputs would take more is run live."""

    tensorboard: bool = False
    """Write loss terms, metrics and learning rates of each epoch for TensorBoard, too (the extra `tensorboard`)."""

    @model_validator(mode="after")
    def _fits(self) -> TrainSettings:
        if self.accumulate > self.batch:
            raise ValueError(f"accumulate {self.accumulate} for a batch of {self.batch} | accumulate at most the batch")
        if self.schedule == "step" and not self.milestones:
            raise ValueError("the step schedule has no milestones | give e.g. milestones: [0.5, 0.75]")
        if list(self.milestones) != sorted(self.milestones):
            raise ValueError("milestones must rise | write e.g. milestones: [0.5, 0.75]")
        return self


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
    schedule: Schedule | None = None
    """Instead of train.schedule."""
    warmup: float | None = Field(default=None, ge=0)
    """Instead of train.warmup."""
    precision: Precision | None = None
    """Instead of train.precision."""

    def over(self, base: TrainSettings) -> TrainSettings:
        """The pipeline's settings with this stage's own in their place."""
        own = {name: getattr(self, name) for name in TrainOverrides.model_fields}
        return base.model_copy(update={name: value for name, value in own.items() if value is not None})
