"""What an ONNX file cannot do in a pipeline: it answers, and can neither be trained, looked into nor quantized."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from edgekd.config import Problem
from edgekd.config.tree import Location
from edgekd.models.names import elsewhere
from edgekd.models.settings import ModelSettings
from edgekd.stages.settings import DistillStage, QuantizeStage

if TYPE_CHECKING:
    from edgekd.pipeline.schema import StageEntry

_PYTORCH = "give the PyTorch network as package.module:factory for that"
_ANSWERS = "use knowledge of answers: kd, dkd, dist, logit_std, mse_logits"
_INSIDE = ("student_friendly", "data_free", "adaptation")


def onnx_problems(given: ModelSettings | None, stages: Sequence[StageEntry], listed: Sequence[str]) -> list[Problem]:
    """Problems of a file whose teacher (a stage, or `given` at its top), or any other network, is an ONNX file."""
    teacher = given or next((s.settings for s in stages if isinstance(s.settings, ModelSettings)), None)
    is_onnx = teacher is not None and elsewhere(teacher.model) == "onnx"
    found: list[Problem] = []
    distills = any(isinstance(stage.settings, DistillStage) for stage in stages)
    for stage in stages:
        place: Location = ("stages", listed.index(stage.name), stage.name)
        options = stage.settings
        if isinstance(options, DistillStage):
            taught = {("student",): options.student, **{(*p, "model"): n.model for p, n in options.described().items()}}
            learners = [where for where, name in taught.items() if elsewhere(name) == "onnx"]
            words = "an ONNX file can teach, and not learn"
            found += [Problem((*place, *where), words, _PYTORCH) for where in learners]
            if is_onnx and options.scheme in _INSIDE:
                words = f"scheme {options.scheme} needs the inside of the teacher, which is an ONNX file"
                found.append(Problem(place, words, "use scheme: offline, or " + _PYTORCH))
        if is_onnx and not distills and stage.name in ("quantize", "export"):
            words = f"{stage.name} has an ONNX file to work on, which can only teach"
            return [*found, Problem(place, words, f"add a `distill` stage, or {_PYTORCH}")]
        if is_onnx and isinstance(options, (DistillStage, QuantizeStage)) and "original" not in _guides(options):
            for index, item in enumerate(options.knowledge or ()):
                if item.features:
                    words = f"{item.name} looks at layers of the teacher, and an ONNX file shows its answers alone"
                    found.append(Problem((*place, "knowledge", index), words, _ANSWERS))
    return found


def _guides(options: DistillStage | QuantizeStage) -> tuple[str, ...]:
    return options.guides if isinstance(options, QuantizeStage) else ("teacher",)
