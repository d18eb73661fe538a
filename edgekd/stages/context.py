"""What a stage is given: its settings, the pipeline's, the artefacts before it, and a draft to fill (torch-free)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from edgekd.config import Settings
from edgekd.data.source import Data
from edgekd.stages.settings import TargetSettings
from edgekd.store import Artifact, Draft, Store
from edgekd.tasks import HeadSettings
from edgekd.train.settings import TrainSettings

S = TypeVar("S", bound=Settings)


@dataclass(frozen=True)
class Common:
    """What all stages of a pipeline share."""

    name: str
    seed: int
    base: Path
    heads: tuple[HeadSettings, ...]
    train: TrainSettings
    targets: Mapping[str, TargetSettings]
    data: Data


@dataclass
class Context:
    """One stage at work."""

    stage: str
    settings: Settings
    common: Common
    inputs: Mapping[str, Artifact]
    draft: Draft
    work: Path
    store: Store
    tell: Callable[[str], None] = print
    notes: dict[str, Any] = field(default_factory=dict)

    def options(self, kind: type[S]) -> S:
        """The stage's settings, typed."""
        assert isinstance(self.settings, kind)
        return self.settings

    def shipped(self) -> tuple[str, Artifact]:
        """Role and artefact of the network that goes to the device: the student, else the given network or teacher."""
        for stage in ("distill", "model", "teacher"):
            if stage in self.inputs:
                return role_of(stage, self.inputs), self.inputs[stage]
        raise AssertionError("the plan lets no stage run without a network")


def role_of(stage: str, inputs: Mapping[str, Artifact]) -> str:
    """A network's part in the report. What `model:` gives is the teacher of a student, else the student itself."""
    if stage == "distill" or (stage == "model" and "distill" not in inputs):
        return "student"
    return "quantized" if stage == "quantize" else "teacher"


def networks(inputs: Mapping[str, Artifact]) -> dict[str, Artifact]:
    """Float networks by role, the teacher first."""
    return {role_of(stage, inputs): inputs[stage] for stage in ("model", "teacher", "distill") if stage in inputs}
