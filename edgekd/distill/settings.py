"""Options of distillation (torch-free): which knowledge, which scheme."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field, model_validator

from edgekd.config import Settings, validate
from edgekd.distill.knowledge_settings import KdSettings, KnowledgeSettings, MseLogitsSettings
from edgekd.distill.scheme_settings import (
    SCHEMES,
    CollaborativeSettings,
    PeerSettings,
    Scheme,
    SchemeFacts,
    StudentFriendlySettings,
    TrainedNetwork,
    VirtualTeacherSettings,
)
from edgekd.models.settings import ModelSettings

if TYPE_CHECKING:
    from edgekd.distill.own import OwnScheme

__all__ = ["SCHEMES", "DistillationSettings", "KdSettings", "KnowledgeSettings", "MseLogitsSettings", "Scheme"]

_PEER_KNOWLEDGE = (KnowledgeSettings(kd=KdSettings(weight=1.0, temperature=1.0)),)


class DistillationSettings(Settings):
    """Who teaches whom, and what."""

    scheme: Scheme = "offline"
    """Who teaches whom: `edgekd list schemes` says it of each, and which options are its own; or a function of yours,
    `package.module:function` (docs/extending.md)."""
    options: dict[str, Any] = Field(default_factory=dict)
    """Options of a scheme of your own."""
    task_weight: float | None = Field(default=None, ge=0)
    """Weight of the task's own loss with the true targets; it falls away where the data has none. By default 1 with
    the scheme online, else 0.1."""
    knowledge: tuple[KnowledgeSettings, ...] | None = None
    """Terms with whoever teaches; by default the response knowledge of each head (kd, mse_logits) with weight .9, and
    among peers kd with temperature 1 and weight 1."""
    peers: tuple[PeerSettings, ...] = ()
    """online, collaborative: networks that learn beside the student; by default one more of the student's kind."""
    goes_on: Literal["student", "best"] = "student"
    """online, collaborative: what goes on as the student: the network named so, or the best one on the validation
    split."""
    collaborative: CollaborativeSettings = CollaborativeSettings()
    """collaborative: weights of its terms."""
    generations: int | None = Field(default=None, ge=0)
    """self: how often the student is trained afresh from its former self; by default once, with a virtual teacher
    never."""
    snapshot_epochs: int | None = Field(default=None, ge=1)
    """self: passes of the first training; by default those of the student."""
    virtual_teacher: VirtualTeacherSettings | None = None
    """self: let a virtual teacher teach in the first training."""
    teachers: int | tuple[TrainedNetwork, ...] = ()
    """multi_teacher: how many there are in all, the given teacher and others like it that are trained here; or a list
    of networks that teach beside the given one, or without one."""
    teacher_weights: Literal["mean", "confidence"] = "mean"
    """multi_teacher: all teachers count alike, or in each sample those more that are right about it (needs labels)."""
    bootstrap: bool = True
    """multi_teacher: train each further teacher on rows drawn with replacement (Breiman 1996)."""
    assistants: tuple[TrainedNetwork, ...] = ()
    """assistant: the networks between teacher and student, the first learns from the teacher."""
    student_friendly: StudentFriendlySettings = StudentFriendlySettings()
    """student_friendly: how the teacher learns with branches of the student."""

    @property
    def is_own(self) -> bool:
        """Whether the scheme is the user's own."""
        return self.scheme not in SCHEMES

    @property
    def facts(self) -> SchemeFacts:
        """What is known of the scheme; one of the user's own is imported for that."""
        return self._own.facts if self.is_own else SCHEMES[self.scheme]

    @property
    def tables_used(self) -> tuple[str, ...]:
        """Tables of the data that the scheme reads besides the splits."""
        facts = self.facts
        block = self.own_options() if self.is_own else getattr(self, self.scheme, None)
        named = (getattr(block, option) for option in facts.tables)
        return tuple(dict.fromkeys(name for name in named if name not in (None, "train", "validation")))

    def own_options(self) -> Settings:
        """The options of a scheme of the user's own, checked."""
        settings, problems = validate(self._own.options, self.options)
        assert settings is not None, problems
        return settings

    @property
    def _own(self) -> OwnScheme:
        from edgekd.distill.own import own_scheme

        return own_scheme(self.scheme)

    @property
    def uses_teacher(self) -> bool:
        """Whether it learns from the teacher that an earlier stage makes, where there is one."""
        return self.facts.teacher

    @property
    def needs_teacher(self) -> bool:
        """Whether an earlier stage must make a teacher."""
        return self.uses_teacher and not self._listed_teachers

    @property
    def reads_teacher(self) -> bool:
        """Whether that teacher is asked as it is, so that its answers can be kept."""
        return self.uses_teacher and self.scheme != "student_friendly"

    def task(self) -> float:
        """Weight of the task's own loss with the default filled in."""
        return self.facts.task_weight if self.task_weight is None else self.task_weight

    def taught(self) -> tuple[KnowledgeSettings, ...] | None:
        """The knowledge with the scheme's default filled in; None: that of each head."""
        return _PEER_KNOWLEDGE if self.knowledge is None and self.scheme == "online" else self.knowledge

    def further_generations(self) -> int:
        """How often the student is trained afresh from its former self."""
        return self.generations if self.generations is not None else (0 if self.virtual_teacher else 1)

    def beside(self, student: ModelSettings, teacher: ModelSettings | None) -> dict[str, ModelSettings]:
        """Networks that are built beside the student, by the names that phases give them.

        Args:
            student: the student; a peer that nobody describes is one more of its kind.
            teacher: the given teacher's kind.
        """
        if "peers" in self.facts.options:
            alike = student.model_copy(update={"weights": None})
            return _numbered("peer", [peer.network() for peer in self.peers] or [alike])
        if self.scheme == "assistant":
            return _numbered("assistant", [item.network() for item in self.assistants])
        if self.scheme != "multi_teacher":
            return {}
        if isinstance(self.teachers, tuple):
            return _numbered("teacher", [item.network() for item in self.teachers])
        assert teacher is not None
        return _numbered("teacher", [teacher] * (self.teachers - 1))

    def described(self) -> dict[tuple[str | int, ...], ModelSettings]:
        """Networks beside the student that the file describes, by where it does."""
        found: dict[tuple[str | int, ...], ModelSettings] = {}
        for key in ("peers", "assistants", "teachers"):
            listed = getattr(self, key)
            found |= {(key, i): item.network() for i, item in enumerate(listed if isinstance(listed, tuple) else ())}
        return found

    @property
    def _listed_teachers(self) -> bool:
        return isinstance(self.teachers, tuple) and bool(self.teachers)

    @model_validator(mode="after")
    def _options_of_the_scheme(self) -> DistillationSettings:
        if "options" in self.model_fields_set and not self.is_own:
            raise ValueError(
                f"options does nothing in scheme {self.scheme} | it is for schemes of your own, package.module:function"
            )
        own = ("options",) if self.is_own else SCHEMES[self.scheme].options
        for scheme, facts in SCHEMES.items():
            for name in facts.options:
                if name in self.model_fields_set and name not in own:
                    raise ValueError(
                        f"{name} does nothing in scheme {self.scheme} | set scheme: {scheme}, or remove it"
                    )
        idle = sorted(self.model_fields_set & {"knowledge", "task_weight"})
        if self.scheme == "collaborative" and idle:
            raise ValueError(
                f"{idle[0]} does nothing in scheme collaborative | its weights stand in `collaborative: {{alpha: 1}}`"
            )
        if self.scheme == "assistant" and not self.assistants:
            raise ValueError("scheme assistant has no assistants | add e.g. assistants: [{model: resnet14}]")
        many = self.teachers if isinstance(self.teachers, int) else 2 * len(self.teachers)
        if self.scheme == "multi_teacher" and many < 2:
            raise ValueError("scheme multi_teacher has fewer than two teachers | add e.g. teachers: 5")
        if self.scheme == "self" and not self.further_generations() and self.virtual_teacher is None:
            raise ValueError("scheme self without a generation to come | set generations: 1, or a virtual_teacher")
        return self

    @model_validator(mode="after")
    def _something_to_learn(self) -> DistillationSettings:
        if self.scheme == "collaborative" or self.is_own:
            return self
        weights = [item.weight for item in self.knowledge] if self.knowledge is not None else [1.0]
        if not any([self.task(), *weights]):
            raise ValueError(
                "all weights are 0, there is nothing to learn from | give task_weight or a knowledge weight"
            )
        return self


def _numbered(name: str, networks: Sequence[ModelSettings]) -> dict[str, ModelSettings]:
    return {f"{name}_{number}": network for number, network in enumerate(networks, start=1)}
