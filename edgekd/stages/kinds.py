"""The chain: each stage's name, options, order, needs, and what its result depends on (torch-free)."""

from __future__ import annotations

from dataclasses import dataclass

from edgekd.config import Settings
from edgekd.runtimes.onnxruntime_providers import PACKAGES
from edgekd.stages.settings import (
    BenchStage,
    CompileStage,
    DistillStage,
    EvaluateStage,
    ExportStage,
    ModelStage,
    QuantizeStage,
    TargetSettings,
    TeacherStage,
)

_TRAINING = ("data", "tasks", "models", "train", "distill")
_SHARED = ("networks", "training", "guides")
_TORCH = ("torch", "numpy", "pillow", "pyarrow", "scikit-learn")


@dataclass(frozen=True)
class StageKind:
    """One kind of stage.

    `needs`: groups of earlier artefacts, one of each group must be there. `rooms` and `packages`: what enters the key.
    `shares`: files of this room that the stage's own file imports; they enter the key too.
    `reads_data` and `on_device`: whether the data's fingerprint and the machine's enter it; `tests`: the test split's
    part of the data as well.
    `on_targets`: whether the targets do, their engines' versions, and the processors.
    `trains`: whether all processes of a distributed run take part.
    """

    name: str
    settings: type[Settings]
    function: str
    rooms: tuple[str, ...]
    packages: tuple[str, ...]
    needs: tuple[tuple[str, ...], ...] = ()
    takes: tuple[str, ...] = ()
    shares: tuple[str, ...] = ()
    reads_data: bool = True
    tests: bool = False
    on_device: bool = False
    on_targets: bool = False
    trains: bool = False


_NETWORKS = ("model", "teacher", "distill")


def needs_of(name: str, settings: Settings) -> tuple[tuple[str, ...], ...]:
    """Groups of earlier artefacts that a stage needs with these settings: some schemes learn from no teacher."""
    if isinstance(settings, DistillStage) and not settings.needs_teacher:
        return ()
    return KINDS[name].needs


def works_there(name: str, target: TargetSettings) -> bool:
    """Whether a stage does its work for this target on another device."""
    return target.compiles_there if name == "compile" else target.host is not None and name in ("evaluate", "bench")


KINDS: dict[str, StageKind] = {
    kind.name: kind
    for kind in (
        StageKind(
            "model", ModelStage, "edgekd.stages.teacher:run_model", _TRAINING, _TORCH, shares=_SHARED, trains=True
        ),
        StageKind("teacher", TeacherStage, "edgekd.stages.teacher:run", _TRAINING, _TORCH, shares=_SHARED, trains=True),
        StageKind(
            "distill",
            DistillStage,
            "edgekd.stages.distill:run",
            _TRAINING,
            _TORCH,
            needs=(("model", "teacher"),),
            takes=("model", "teacher"),
            shares=("teacher", *_SHARED),
            trains=True,
        ),
        StageKind(
            "quantize",
            QuantizeStage,
            "edgekd.stages.quantize:run",
            (*_TRAINING, "quantize"),
            (*_TORCH, "torchao"),
            needs=(_NETWORKS,),
            takes=_NETWORKS,
            shares=("quantized", *_SHARED),
            trains=True,
        ),
        StageKind(
            "export",
            ExportStage,
            "edgekd.stages.export:run",
            (*_TRAINING, "quantize", "export"),
            ("torch", "torchao", "onnx", "onnxscript", *PACKAGES),
            needs=(_NETWORKS,),
            takes=(*_NETWORKS, "quantize"),
            shares=("feeds", "networks", "quantized", "tensors"),
        ),
        StageKind(
            "compile",
            CompileStage,
            "edgekd.stages.compile:run",
            ("runtimes", "export", "bench"),
            ("onnx",),
            needs=(("export",),),
            takes=("export",),
            shares=("places", "precision"),
            reads_data=False,
            on_targets=True,
        ),
        StageKind(
            "evaluate",
            EvaluateStage,
            "edgekd.stages.evaluate:run",
            (*_TRAINING, "quantize", "export", "runtimes", "bench"),
            (*_TORCH, "onnx", *PACKAGES),
            needs=(_NETWORKS,),
            takes=(*_NETWORKS, "quantize", "export", "compile"),
            tests=True,
            on_targets=True,
            shares=("compile", "feeds", "networks", "quantized", "ladder", "places", "precision", "tensors"),
        ),
        StageKind(
            "bench",
            BenchStage,
            "edgekd.stages.bench:run",
            ("bench", "runtimes"),
            ("numpy",),
            needs=(("compile",),),
            takes=("compile",),
            reads_data=False,
            on_device=True,
            on_targets=True,
        ),
    )
}
ORDER: tuple[str, ...] = tuple(KINDS)
WRITABLE: tuple[str, ...] = tuple(name for name in KINDS if name != "model")
