"""What a stage is given: its settings, the pipeline's, the artefacts before it, and a draft to fill (torch-free)."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from edgekd.config import Settings
from edgekd.stages.settings import TargetSettings
from edgekd.tasks import HeadSettings
from edgekd.train.settings import TrainSettings

if TYPE_CHECKING:  # a mistake in a pipeline file is found without them
    from edgekd.data.source import Data
    from edgekd.store import Artifact, Draft, Store

S = TypeVar("S", bound=Settings)


@dataclass(frozen=True)
class Common:
    """What all stages of a pipeline share.

    `searched`: exported flavours in which the export stage looks for what does not fit float16; see `precision`.
    """

    name: str
    seed: int
    base: Path
    heads: tuple[HeadSettings, ...]
    train: TrainSettings
    targets: Mapping[str, TargetSettings]
    roles: Mapping[str, str]
    data: Data
    searched: tuple[str, ...] = ()

    def of(self, head: str | None) -> Common:
        """The same for a network with one head; None: with all of them."""
        heads = self.heads if head is None else tuple(found for found in self.heads if found.output == head)
        return dataclasses.replace(self, heads=heads)


@dataclass
class Context:
    """One stage at work.

    `made_by`: digests of the code of edgekd's rooms (source) and of the networks, versions of libraries (packages).
    `tell` takes lines of progress; `epoch` a line about each epoch and a short form of it; `moment`, where somebody
    watches, what is so right now. Both come with the share of the phase that is done. `warn` takes what a user should
    look at, for log and report; `curves` is shown the curves so far after each epoch.
    """

    stage: str
    settings: Settings
    common: Common
    inputs: Mapping[str, Artifact]
    draft: Draft
    work: Path
    store: Store
    made_by: Mapping[str, Any] = field(default_factory=dict)
    tell: Callable[[str], None] = print
    epoch: Callable[[str, str, float], None] = lambda text, bar, share: print(text)
    moment: Callable[[str, float], None] | None = None
    warn: Callable[[str], None] = print
    curves: Callable[[Sequence[Mapping[str, Any]]], None] | None = None

    def options(self, kind: type[S]) -> S:
        """The stage's settings, typed."""
        assert isinstance(self.settings, kind)
        return self.settings

    def shipped(self) -> tuple[str, Artifact]:
        """Role and artefact of the network that goes to the device."""
        stage = shipped_by(self.common.roles)
        return self.common.roles[stage], self.inputs[stage]

    def networks(self) -> dict[str, Artifact]:
        """Float networks by role, the teacher first."""
        return networks(self.inputs, self.common.roles)


def roles(stages: Collection[str]) -> dict[str, str]:
    """What each network of a pipeline is called, by the stage that makes it.

    What `model:` gives is the teacher where something is distilled from it, else the student itself.
    """
    given = "teacher" if "distill" in stages else "student"
    found = {"model": given, "teacher": "teacher", "distill": "student", "quantize": "quantized"}
    return {stage: role for stage, role in found.items() if stage in stages}


def shipped_by(stages: Collection[str]) -> str:
    """The stage that makes the network for the device: the student, else the given network or the teacher."""
    return next(stage for stage in ("distill", "model", "teacher") if stage in stages)


def networks(inputs: Mapping[str, Artifact], named: Mapping[str, str]) -> dict[str, Artifact]:
    """Float networks by role, the teacher first."""
    return {named[stage]: inputs[stage] for stage in ("model", "teacher", "distill") if stage in inputs}
