"""Options of distillation (torch-free): which knowledge, which scheme."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field, model_validator

from edgekd.config import Settings, validate
from edgekd.config.tree import Location
from edgekd.distill.data_scheme_settings import (
    AdaptationSettings,
    AdversarialSettings,
    CrossModalSettings,
    DataFreeSettings,
    ExpansionSettings,
    FederatedSettings,
    LabelFreeSettings,
    MultiTaskSettings,
    PrivilegedSettings,
)
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


class DistillationSettings(Settings):
    """Who teaches whom, and what."""

    scheme: Scheme = "offline"
    """Who teaches whom: `edgekd list schemes` says it of each, and which options are its own; or a function of yours,
    `package.module:function` (docs/extending.md)."""
    options: dict[str, Any] = Field(default_factory=dict)
    """Options of a scheme of your own."""
    task_weight: float | None = Field(default=None, ge=0)
    """Weight of the task's own loss with the true targets; it falls away where the data has none. By default as in the
    papers' runs: 0.1 beside kd, logit_std and other plain comparisons of outputs, else 1 (dkd, dist, features alone,
    peers); of several knowledges the largest that is stated."""
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
    label_free: LabelFreeSettings = LabelFreeSettings()
    """label_free: on which table."""
    privileged: PrivilegedSettings = PrivilegedSettings()
    """privileged: how much the teacher counts, unless `knowledge` or `task_weight` say it."""
    cross_modal: CrossModalSettings = CrossModalSettings()
    """cross_modal: on which table."""
    expansion: ExpansionSettings = ExpansionSettings()
    """expansion: how often, and on which table."""
    adaptation: AdaptationSettings = AdaptationSettings()
    """adaptation: to which domain."""
    adversarial: AdversarialSettings = AdversarialSettings()
    """adversarial: the critic."""
    multi_task: MultiTaskSettings = MultiTaskSettings()
    """multi_task: the specialists."""
    federated: FederatedSettings = FederatedSettings()
    """federated: clients, rounds, and the public table."""
    data_free: DataFreeSettings = DataFreeSettings()
    """data_free: the generator."""

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
        return self.uses_teacher and self.facts.asks

    def task(self) -> float:
        """Weight of the task's own loss with the default filled in."""
        if self.task_weight is not None:
            return self.task_weight
        if self.facts.task_weight is not None:
            return self.facts.task_weight
        items = self.knowledge if self.knowledge is not None else (KnowledgeSettings(kd=KdSettings()),)
        stated = [item.settings.task_weight for item in items if item.settings.task_weight is not None]
        return max(stated, default=1.0)

    def taught(self) -> tuple[KnowledgeSettings, ...] | None:
        """The knowledge with the scheme's default filled in; None: that of each head."""
        if self.knowledge is None and self.scheme == "online":
            return (KnowledgeSettings(kd=KdSettings(weight=1.0, temperature=1.0)),)
        return self.knowledge

    def further_generations(self) -> int:
        """How often the student is trained afresh from its former self."""
        return self.generations if self.generations is not None else (0 if self.virtual_teacher else 1)

    def beside(self, student: ModelSettings, teacher: ModelSettings | None) -> dict[str, ModelSettings]:
        """Networks that are built beside the student, by the names that phases give them.

        Args:
            student: the student; a peer that nobody describes is one more of its kind.
            teacher: the given teacher's kind.
        """
        found = {name: network for name, _, network in self._described()}
        if "peers" in self.facts.options and not found:
            return {"peer_1": student.model_copy(update={"weights": None})}
        if isinstance(self.teachers, int):
            assert teacher is not None
            return {f"teacher_{number}": teacher for number in range(1, self.teachers)}
        return found

    def head_of(self, name: str) -> str | None:
        """The only head of a network beside the student; None for all heads."""
        return next((head for head in self.multi_task.teachers if specialist(head) == name), None)

    def described(self) -> dict[Location, ModelSettings]:
        """Networks beside the student that the file describes, by where it does."""
        return {place: network for _, place, network in self._described()}

    def _described(self) -> Iterator[tuple[str, Location, ModelSettings]]:
        """Name, place in the options, and description of each network beside the student."""
        for option, name in (("peers", "peer"), ("assistants", "assistant"), ("teachers", "teacher")):
            listed = getattr(self, option)
            for index, item in enumerate(listed if isinstance(listed, tuple) else ()):
                yield f"{name}_{index + 1}", (option, index), item.network()
        for head, item in self.multi_task.teachers.items():
            yield specialist(head), ("multi_task", "teachers", head), item.network()
        clients = self.federated.clients
        for index, network in enumerate(clients if isinstance(clients, tuple) else ()):
            yield f"client_{index}", ("federated", "clients", index), network

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
        facts = SchemeFacts("") if self.is_own else SCHEMES[self.scheme]
        idle = [name for name in facts.idle if name in self.model_fields_set]
        if idle:
            raise ValueError(f"{idle[0]} does nothing in scheme {self.scheme} | {facts.instead}")
        stated = [name for name in ("knowledge", "task_weight") if name in self.model_fields_set]
        if "privileged" in self.model_fields_set and stated:
            raise ValueError(f"privileged and {stated[0]} say the same twice | keep one of them")
        if self.scheme == "multi_task" and not self.multi_task.teachers:
            raise ValueError(
                "scheme multi_task has no specialists | add e.g. multi_task: {teachers: {head: {model: ..}}}"
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
        if self.is_own or "knowledge" in SCHEMES[self.scheme].idle:
            return self
        weights = [item.weight for item in self.knowledge] if self.knowledge is not None else [1.0]
        if not any([self.task(), *weights]):
            raise ValueError(
                "all weights are 0, there is nothing to learn from | give task_weight or a knowledge weight"
            )
        return self


def specialist(head: str) -> str:
    """The name of the network that knows one head, of scheme multi_task."""
    return f"teacher_{head}"
