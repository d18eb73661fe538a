"""Options of every stage (torch-free): what may stand behind its name in a pipeline file."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Annotated, Literal, Protocol, runtime_checkable

from pydantic import AfterValidator, AliasChoices, Field, model_validator

from edgekd.bench.settings import BenchSettings
from edgekd.config import Settings
from edgekd.distill.knowledge_settings import KnowledgeSettings
from edgekd.distill.settings import SCHEMES, DistillationSettings
from edgekd.export.settings import ExportSettings
from edgekd.models.names import elsewhere
from edgekd.models.settings import Columns, ModelReference, ModelSettings
from edgekd.quantize.settings import QuantizationSettings
from edgekd.runtimes.nvidia import dotted
from edgekd.train.settings import TrainOverrides

Select = Literal["last", "best"]
_TENSORRT = ("tensorrt", "tensorrt_rtx")
_BF16_FROM = 8.0  # compute capability
_WIDEST_FIRST = ("f32", "bf16", "f16")


def _capability(given: str) -> str:
    if re.fullmatch(r"(sm_?)?[1-9][0-9]?\.?[0-9]", given, re.IGNORECASE | re.ASCII) is None:
        raise ValueError(f'{given!r} is no compute capability | write e.g. "8.6"; SM86 and "86" are the same')
    return dotted(given)


@runtime_checkable
class UsesTables(Protocol):
    """Settings of a stage that trains on further tables of the data."""

    @property
    def tables_used(self) -> tuple[str, ...]:
        """Names of the tables."""
        ...


def tables_of(settings: Settings) -> tuple[str, ...]:
    """Names of the further tables that a stage trains on, each once."""
    return tuple(dict.fromkeys(settings.tables_used)) if isinstance(settings, UsesTables) else ()


class TeacherStage(TrainOverrides, ModelSettings):
    """Trains the teacher, or (with `weights` and no `epochs`) takes a trained one."""

    model: ModelReference = Field(validation_alias=AliasChoices("model", "onnx"))
    """Name of a built-in network (`edgekd list models`), or `package.module:factory` of your own; the folder of the
    pipeline file is on the import path. Also `timm:resnet18`, `torchvision:resnet18`, `hf:FOLDER` of save_pretrained,
    and an ONNX file (`model: file.onnx` or `onnx: file.onnx`), which ONNX Runtime runs and whose answers alone can be
    taught."""
    epochs: int | None = Field(default=None, ge=0)
    """Passes over the training split; without it 60, or 0 when `weights` are given."""
    select: Select = "last"
    """Which weights go on: those of the last epoch, or of the best one on the validation split."""

    @model_validator(mode="after")
    def _nothing_to_train(self) -> TeacherStage:
        if elsewhere(self.model) == "onnx" and (self.epochs or self.weights):
            idle = "epochs" if self.epochs else "weights"
            raise ValueError(f"{idle} of an ONNX file, which is trained already | remove it")
        return self

    def passes(self) -> int:
        """Epochs with the default filled in."""
        trained = self.weights or elsewhere(self.model) in ("onnx", "hf")
        return self.epochs if self.epochs is not None else (0 if trained else 60)


class DistillStage(TrainOverrides, DistillationSettings):
    """Trains a student, from the teacher or by a scheme that needs none."""

    student: ModelReference
    """Name of a built-in network, or `package.module:factory`."""
    args: dict[str, object] = Field(default_factory=dict)
    """Keyword arguments for the student's factory."""
    weights: str | None = None
    """File with weights that the student starts from, relative to the pipeline file."""
    inputs: Columns | None = None
    """Inputs of the data that the student takes, in the order of its forward; by default all."""
    epochs: int = Field(default=60, ge=0)
    """Passes over the training split; those of the phase in which the student learns from others."""
    select: Select = "last"
    """Which weights go on: those of the last epoch, or of the best one on the validation split."""

    @model_validator(mode="after")
    def _weights_of_the_student(self) -> DistillStage:
        start = "" if self.is_own else SCHEMES[self.scheme].start
        if start and self.weights is not None:
            raise ValueError(f"weights does nothing in scheme {self.scheme} | remove it: the student starts {start}")
        return self

    def network(self) -> ModelSettings:
        """The student as a network to build."""
        return ModelSettings(model=self.student, args=dict(self.args), weights=self.weights, inputs=self.inputs)


class QkdSettings(Settings):
    """How long each phase of QKD is; by default a third of the stage's epochs."""

    self_study: int | None = Field(default=None, ge=0)
    """Epochs in which the quantized network learns the targets alone."""
    co_study: int | None = Field(default=None, ge=0)
    """Epochs in which it and the tutor learn from each other."""
    tutoring: int | None = Field(default=None, ge=0)
    """Epochs in which the tutor, frozen, teaches it."""

    def epochs(self, total: int) -> tuple[int, int, int]:
        """Epochs of each phase, with the defaults filled in."""
        third = total // 3
        usual = (third, third, total - 2 * third)
        given = (self.self_study, self.co_study, self.tutoring)
        first, second, last = (u if g is None else g for g, u in zip(given, usual, strict=True))
        return first, second, last


class QuantizeStage(TrainOverrides, QuantizationSettings):
    """Quantizes the network: calibration alone, or quantization-aware training after it.

    Training starts from calibrated weights, so it takes a hundredth of train.lr unless this stage has its own `lr`.
    """

    self_distillation: bool = False
    """Train the quantized network with its own float original as the teacher (KL alone; no labels are needed)."""
    epochs: int = Field(default=0, ge=0)
    """Passes of quantization-aware training; 0 is calibration alone (with self_distillation: 2 unless given)."""
    task_weight: float = Field(default=0.0, ge=0)
    """Weight of the task's own loss beside (or, without self_distillation, instead of) the float original."""
    temperature: float = Field(default=1.0, gt=0)
    """Temperature of the self-distillation."""
    knowledge: tuple[KnowledgeSettings, ...] | None = None
    """What is taught, knowledge of your own included; by default the answers alone, kd with weight 1 and `temperature`
    (mse_logits in regression)."""
    guides: tuple[Literal["original", "teacher"], ...] = Field(default=("original",), min_length=1)
    """Who teaches: the float original, the teacher it was distilled from, or both with half the weight each."""
    mirrored: bool = False
    """Ask the guides about each image and its mirror image, and teach the mean of both answers (data distillation,
    Radosavovic et al. 2018): often better than one answer alone, where left and right do not matter."""
    qkd: QkdSettings | None = None
    """Learn in the three phases of QKD (Kim et al. 2019), tutored by the first guide; `qkd: {}` parts epochs evenly."""
    calibration_table: str | None = None
    """Table of `data.tables` that calibration looks at, in place of the training split."""
    arms: bool = False
    """Also train by the targets alone, by self-distillation alone, and the float network as long as these; the report
    compares all of them with calibration alone, on the validation split."""

    @property
    def tables_used(self) -> tuple[str, ...]:
        """Names of the tables besides the splits."""
        return () if self.calibration_table is None else (self.calibration_table,)

    def filled_in(self, targets: Mapping[str, TargetSettings]) -> QuantizeStage:
        """With what `auto` means for the targets."""
        int8 = [target for target in targets.values() if "int8" in target.precision]
        own: dict[str, object] = {}
        if self.relu_levels == "auto":
            own["relu_levels"] = 127 if any(target.is_tensorrt for target in int8) else 255
        if self.overflow_fix == "auto" and targets and not any(target.may_overflow for target in int8):
            own["overflow_fix"] = "off"
        return self.model_copy(update=own)

    def problems(self, targets: Mapping[str, TargetSettings]) -> list[tuple[str, str]]:
        """What does not fit the targets: (message, hint)."""
        for name, target in targets.items():
            if self.relu_levels == 255 and target.is_tensorrt and "int8" in target.precision:
                return [(f"TensorRT's int8 (target {name}) has 127 levels after a ReLU", "leave relu_levels out")]
        return []

    def passes(self) -> int:
        """Epochs with the default filled in."""
        return 2 if self.self_distillation and "epochs" not in self.model_fields_set else self.epochs

    @model_validator(mode="after")
    def _something_to_learn(self) -> QuantizeStage:
        if self.passes() and not self.self_distillation and not self.task_weight:
            raise ValueError("epochs without anything to learn from | set self_distillation: true, or a task_weight")
        learning = self.model_fields_set & {"knowledge", "guides", "mirrored", "qkd"}
        if learning and not self.self_distillation:
            raise ValueError(f"{min(learning)} does nothing without self_distillation | set self_distillation: true")
        if "temperature" in self.model_fields_set and self.knowledge is not None:
            raise ValueError(
                "temperature does nothing beside knowledge | write e.g. knowledge: [{kd: {temperature: 2}}]"
            )
        if self.qkd is not None and self.task_weight:
            raise ValueError("task_weight does nothing in qkd, where the task always counts 1 | remove it")
        if self.mirrored and self.qkd is not None:
            raise ValueError("mirrored does nothing in qkd, whose tutor learns | remove one of them")
        if self.mirrored and any(item.features for item in self.knowledge or ()):
            raise ValueError("mirrored is for answers, and a knowledge compares features | remove one of them")
        idle = self.model_fields_set & {*TrainOverrides.model_fields, "task_weight", "temperature", *learning}
        idle |= {"arms"} if self.arms else set()
        if idle and "epochs" not in self.model_fields_set and not self.passes():
            raise ValueError(f"{min(idle)} does nothing in calibration alone | add `self_distillation: true`")
        return self


class ExportStage(ExportSettings):
    """Writes ONNX: the float networks, and the quantized one in each sign flavour; compares each with PyTorch."""


class CompileStage(Settings):
    """Builds every target and precision, and reads which precision each layer executes in."""

    time_limit_s: float = Field(default=3600.0, gt=0)
    """Seconds after which a build on another device is ended, and the stage fails."""


class EvaluateStage(Settings):
    """Scores every network and every build. The one stage that reads the test split."""

    split: Literal["test", "validation"] = "test"
    """Which split is scored."""
    batch: int = Field(default=64, ge=1)
    """Samples in one inference of a build; with TensorRT at most its target's `max_batch`."""
    device_samples: int = Field(default=1000, ge=2)
    """Samples of the split, drawn by seed, that a build answers on another device (`host:` of its target); all of them
    if there are no more. A `metric_drop` there is of the same samples on both sides."""
    time_limit_s: float = Field(default=900.0, gt=0)
    """Seconds that another device has for a part of the samples (at most 64 MB of them)."""


class BenchStage(BenchSettings):
    """Measures the latency of all builds of a target, interleaved, in processes of their own."""

    def problems(self, targets: Mapping[str, TargetSettings]) -> list[tuple[str, str]]:
        """What does not fit the targets: (message, hint)."""
        batches = self.throughput.batches if self.throughput and self.throughput.batches != "auto" else ()
        largest = max(self.batch, *batches) if batches else self.batch
        small = [name for name, target in targets.items() if target.is_tensorrt and target.max_batch < largest]
        if not small:
            return []
        option = "bench.batch" if largest == self.batch else "bench.throughput.batches"
        words = f"{option} {largest} is above max_batch {targets[small[0]].max_batch} of target {small[0]}"
        return [(words, f"give the target max_batch: {largest}, or bench a smaller batch")]


class ModelStage(ModelSettings):
    """Takes the network that the pipeline file gives in `model:`, `args:` and `weights:`."""


class TargetSettings(Settings):
    """A device with an engine, and the precisions to build for it."""

    runtime: Literal["openvino", "onnxruntime", "tensorrt", "tensorrt_rtx"]
    """The inference engine."""
    device: str | None = Field(default=None, min_length=1)
    """The device in the engine's words, in any case; `edgekd doctor` lists those that are here. OpenVINO: CPU
    (default), GPU, GPU.1, NPU, AUTO, HETERO:GPU,CPU. ONNX Runtime: its provider, CPU (default), CUDA, TensorRT,
    OpenVINO, DirectML, CoreML, .. or any by its full name. TensorRT always uses the GPU."""
    precision: tuple[Literal["f32", "f16", "bf16", "int8"], ...] = Field(default=("f32", "int8"), min_length=1)
    """Precisions to build. int8 needs the `quantize` stage; a float build to compare with is then made too: f32 unless
    one is named, and with TensorRT f16. f16: TensorRT, ONNX Runtime, and OpenVINO's devices that have it (GPU, NPU).
    bf16: TensorRT (from compute capability 8.0 on), and OpenVINO's devices that have it (CPUs with AVX512-BF16 or AMX).
    """
    host: str | None = None
    """The device that the builds are for, over ssh: ssh://user@host:port, or a name of `edgekd target add`. They are
    compiled (see `compile_on`), evaluated and measured there."""
    compile_on: Literal["device", "host"] | None = None
    """Where builds of a target with `host:` are made: on that `device` (the default; executed precisions are then what
    it does), or on the `host`, this machine. TensorRT's engines belong to the GPU that made them: always there."""
    compute_capabilities: tuple[Annotated[str, AfterValidator(_capability)], ...] = ()
    """GPU architectures to build for, e.g. ["8.6", "8.9"] (tensorrt_rtx only; empty: 8.0 and all later ones)."""
    max_batch: int = Field(default=64, ge=1)
    """Largest batch of the build (TensorRT only)."""
    opt_batch: int | None = Field(default=None, ge=1)
    """The batch that the build is made fastest for; by default 8, or `max_batch` if that is less (TensorRT only)."""
    workspace_bytes: int = Field(default=1 << 30, ge=1)
    """Memory that the builder may use, in bytes (TensorRT only)."""
    optimization_level: int = Field(default=3, ge=0, le=5)
    """How long the builder searches for fast kernels: 0 to 5 (TensorRT only)."""
    timing_cache: str | None = None
    """File that keeps what builds timed, relative to the pipeline file; by default one in the user's cache folder for
    each version and GPU (runtime tensorrt only)."""
    hardware_compatibility: Literal["none", "ampere_plus", "same_compute_capability"] = "none"
    """Other GPUs that the engine is for; it may be slower then (runtime tensorrt only)."""
    version_compatible: bool = False
    """Let later versions of TensorRT load the engine too; it may be slower then (runtime tensorrt only)."""
    residual: Literal["both", "skip"] = "both"
    """Which inputs of a residual addition come in 8 bits: both, or the skip alone, so that the sum can be fused into
    the convolution before it (TensorRT only). Which is faster only the GPU can tell."""

    @property
    def precisions(self) -> tuple[str, ...]:
        """What is built: as asked for, with a float build to compare 8 bits with. 8 bits come last."""
        floats: list[str] = [precision for precision in self.precision if precision != "int8"]
        if "int8" not in self.precision:
            return tuple(floats)
        # The remainder of TensorRT's 8 bits is float16, so float16 is what 8 bits have to beat there.
        baseline = "f16" if self.is_tensorrt else "f32"
        if not floats or (self.is_tensorrt and baseline not in floats):
            floats.append(baseline)
        return (*floats, "int8")

    @property
    def widest(self) -> str:
        """The float precision that is built and rounds least."""
        return next(precision for precision in _WIDEST_FIRST if precision in self.precisions)

    @property
    def compiles_there(self) -> bool:
        """Whether builds are made on the device of `host:`, not here."""
        return self.host is not None and self.compile_on != "host"

    @property
    def is_tensorrt(self) -> bool:
        """Whether one of the TensorRT family builds for this target."""
        return self.runtime.startswith("tensorrt")

    @property
    def may_overflow(self) -> bool:
        """Whether sums of 8-bit products may overflow on some processor that this target may mean: OpenVINO's CPU."""
        device = (self.device or "CPU").upper()
        return device.startswith("OPENVINO") or (self.runtime == "openvino" and not device.startswith(("GPU", "NPU")))

    @property
    def device_name(self) -> str:
        """The device with the engine's default filled in."""
        return "GPU" if self.is_tensorrt else self.device or "CPU"

    @model_validator(mode="after")
    def _fits_the_engine(self) -> TargetSettings:
        if len(set(self.precision)) < len(self.precision):
            raise ValueError("precision names one twice | name each precision once")
        if self.is_tensorrt and self.device is not None and self.device.upper() != "GPU":
            raise ValueError(f"{self.runtime} runs on the GPU, not on {self.device} | leave `device:` out")
        self._owns({"max_batch", "opt_batch", "workspace_bytes", "optimization_level", "residual"}, *_TENSORRT)
        self._owns({"timing_cache", "hardware_compatibility", "version_compatible"}, "tensorrt")
        self._owns({"compute_capabilities"}, "tensorrt_rtx")
        if self.compile_on is not None and self.host is None:
            raise ValueError("compile_on does nothing without a device | add `host:`, or remove it")
        if self.runtime == "tensorrt" and self.compile_on == "host":
            raise ValueError("an engine of tensorrt belongs to the GPU that made it | leave compile_on out")
        if self.opt_batch is not None and self.opt_batch > self.max_batch:
            raise ValueError(f"opt_batch {self.opt_batch} is above max_batch {self.max_batch} | raise max_batch")
        if self.residual == "skip" and "int8" not in self.precision:
            raise ValueError("residual does nothing without int8 | remove it, or add int8 to `precision`")
        old = [c for c in self.compute_capabilities if float(c) < _BF16_FROM]
        if old and "bf16" in self.precision:
            raise ValueError(f"GPUs of compute capability {old[0]} have no bf16 | leave bf16 out, or that GPU")
        return self

    def _owns(self, options: set[str], *runtimes: str) -> None:
        idle = self.model_fields_set & options
        if idle and self.runtime not in runtimes:
            owners = " and ".join(runtimes)
            raise ValueError(f"{min(idle)} is an option of {owners}, {self.runtime} has no such option | remove it")
