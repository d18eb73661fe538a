"""Options of each scheme (torch-free): who teaches whom, with the values that the papers start from."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field

from edgekd.config import Settings
from edgekd.config.entry_points import SCHEMES as ENTRY_POINTS
from edgekd.config.entry_points import offered
from edgekd.config.settings import did_you_mean
from edgekd.distill.term_settings import Layers
from edgekd.models.settings import Columns, ModelReference, ModelSettings

CollaborativeTerm = Literal["task", "distance", "angle", "peer", "past"]
Share = Annotated[float, Field(ge=0)]


@dataclass(frozen=True)
class SchemeFacts:
    """What is known of a scheme before anything runs.

    Attributes:
        help: who teaches whom, and where it comes from.
        options: names of its own options.
        teacher: whether it learns from a teacher that an earlier stage makes.
        task_weight: of the task's own loss, unless the file says otherwise; None: as the knowledge has it.
        tables: those of its own options that name tables.
        asks: whether that teacher is asked as it is, so that its answers can be kept.
        other_inputs: whether teacher and student must see different inputs.
        idle: options of all schemes that do nothing in this one, and `instead` what mends it.
        start: how the student starts, where not from `weights` of its own.
    """

    help: str
    options: tuple[str, ...] = ()
    teacher: bool = True
    task_weight: float | None = None
    tables: tuple[str, ...] = ()
    asks: bool = True
    other_inputs: bool = False
    idle: tuple[str, ...] = ()
    instead: str = "remove it"
    start: str = ""


SCHEMES: dict[str, SchemeFacts] = {
    "offline": SchemeFacts("a frozen teacher teaches the student (Hinton et al. 2015)"),
    "online": SchemeFacts(
        "peers teach each other from the start, without a teacher (deep mutual learning, Zhang et al. 2018)",
        ("peers", "goes_on"),
        teacher=False,
        task_weight=1.0,
    ),
    "self": SchemeFacts(
        "the student teaches its next generation (born again, Furlanello et al. 2018), or a virtual teacher teaches it "
        "(Tf-KD, Yuan et al. 2020)",
        ("generations", "snapshot_epochs", "virtual_teacher"),
        teacher=False,
    ),
    "collaborative": SchemeFacts(
        "peers learn alone, then together: from the targets, each other's answers and relations, and their own past "
        "(CTSL-MKT, Sun and Gou 2021)",
        ("peers", "goes_on", "collaborative"),
        teacher=False,
        idle=("knowledge", "task_weight"),
        instead="its weights stand in `collaborative: {alpha: 1}`",
    ),
    "multi_teacher": SchemeFacts(
        "several teachers teach the student by the mean of what they say (You et al. 2017), or each as far as it is "
        "right (CA-MKD, Zhang et al. 2022)",
        ("teachers", "teacher_weights", "bootstrap"),
    ),
    "assistant": SchemeFacts(
        "the teacher teaches an assistant of middle size, and that the next one or the student (TAKD, Mirzadeh et al. "
        "2020)",
        ("assistants",),
    ),
    "student_friendly": SchemeFacts(
        "the teacher first learns with branches of the student on its stages, then teaches it (SFTN, Park et al. 2021)",
        ("student_friendly",),
        asks=False,
    ),
    "label_free": SchemeFacts(
        "the teacher teaches the student by its word alone, on a table without labels (Ba and Caruana 2014)",
        ("label_free",),
        task_weight=0.0,
        tables=("transfer",),
        idle=("task_weight",),
        instead="labels are not looked at; scheme offline does",
    ),
    "privileged": SchemeFacts(
        "a teacher that sees other inputs teaches the student beside the targets (generalized distillation, Lopez-Paz "
        "et al. 2016)",
        ("privileged",),
        other_inputs=True,
    ),
    "cross_modal": SchemeFacts(
        "a teacher of one modality teaches a student of another on pairs of both (Gupta et al. 2016)",
        ("cross_modal",),
        task_weight=0.0,
        tables=("pairs",),
        other_inputs=True,
    ),
    "expansion": SchemeFacts(
        "a student as large as its teacher learns its pseudo-labels under noise, and teaches the next (Noisy Student, "
        "Xie et al. 2020)",
        ("expansion",),
        tables=("unlabelled",),
        asks=False,
        idle=("knowledge", "task_weight"),
        instead="pseudo-labels are all that is learned; see `expansion: {soft: true}`",
        start="untrained in each round",
    ),
    "adaptation": SchemeFacts(
        "the teacher's network moves to another domain by the labels that it is sure of there (Lee 2013; Zou et al. "
        "2018)",
        ("adaptation",),
        tables=("domain",),
        asks=False,
        idle=("knowledge", "task_weight"),
        instead="pseudo-labels are all that is learned; see `adaptation: {confident: 0.9}`",
        start="as a copy of the teacher",
    ),
    "adversarial": SchemeFacts(
        "the teacher teaches the student, which also learns to be taken for it by a critic (Xu et al. 2018; KDGAN, "
        "Wang et al. 2018)",
        ("adversarial",),
    ),
    "multi_task": SchemeFacts(
        "for each head a specialist teaches one student with all heads (BAM, Clark et al. 2019)",
        ("multi_task",),
        teacher=False,
    ),
    "federated": SchemeFacts(
        "clients learn on rows of their own, and what they say of public samples teaches the student (FedDF, Lin et "
        "al. 2020; FedMD, Li and Wang 2019)",
        ("federated",),
        teacher=False,
        tables=("public",),
        idle=("knowledge", "task_weight"),
        instead="clients learn from targets, the server from their mean; see `federated: {temperature: 1}`",
    ),
    "data_free": SchemeFacts(
        "the teacher teaches the student on samples that a generator makes; no data is looked at (DAFL, Chen et al. "
        "2019)",
        ("data_free",),
        task_weight=0.0,
        asks=False,
        idle=("task_weight",),
        instead="made samples have no true targets",
    ),
}


def _known(name: str) -> str:
    if name in SCHEMES or ":" in name or name in offered(ENTRY_POINTS):
        return name
    near = did_you_mean(name, [*SCHEMES, *offered(ENTRY_POINTS)])
    raise ValueError(f"unknown scheme {name!r} | {near}; one of your own is written package.module:function")


Scheme = Annotated[str, AfterValidator(_known)]


class PeerSettings(Settings):
    """A network that learns beside the student."""

    student: ModelReference
    """Name of a built-in network, or `package.module:factory`."""
    args: dict[str, Any] = Field(default_factory=dict)
    """Keyword arguments for its factory."""
    weights: str | None = None
    """File with weights that it starts from, relative to the pipeline file."""
    inputs: Columns | None = None
    """Inputs of the data that it takes, in the order of its forward; by default all."""

    def network(self) -> ModelSettings:
        """The peer as a network to build."""
        return ModelSettings(model=self.student, args=dict(self.args), weights=self.weights, inputs=self.inputs)


class TrainedNetwork(ModelSettings):
    """A network beside teacher and student, and how long it is trained."""

    epochs: int | None = Field(default=None, ge=0)
    """Passes over the training split; by default those of the student, or 0 when `weights` are given."""

    def passes(self, usual: int) -> int:
        """Epochs with the default filled in."""
        return self.epochs if self.epochs is not None else (0 if self.weights else usual)

    def network(self) -> ModelSettings:
        """The network to build."""
        return ModelSettings(model=self.model, args=self.args, weights=self.weights, inputs=self.inputs)


class VirtualTeacherSettings(Settings):
    """A teacher that is always right with the same certainty (Tf-KD, Yuan et al. 2020)."""

    weight: Share = 0.1
    """Weight of the term beside the task's own loss."""
    correct: float = Field(default=0.99, gt=0, lt=1)
    """Its probability of the true class; the others share the rest."""
    temperature: float = Field(default=20.0, gt=0)
    """Temperature T of both softmaxes; the loss carries T^2."""


class CollaborativeSettings(Settings):
    """Weights of alpha CE + beta (L_DD + beta1 L_AD + beta2 KL to the peers) + gamma KL to the own past."""

    alpha: Share = 1.0
    """Weight of the true targets."""
    beta: Share = 1.0
    """Weight of all that comes from the peers."""
    beta1: Share = 2.0
    """Weight of the angles between samples, beside their distances."""
    beta2: Share = 1.0
    """Weight of the KL to the peers' answers, beside the distances."""
    gamma: Share = 0.1
    """Weight of the KL to what the network itself said when it had learned alone."""
    temperature: float = Field(default=3.0, gt=0)
    """Temperature T of the KL to the own past."""
    scale_by_t2: bool = False
    """Whether that KL carries T^2."""
    terms: tuple[CollaborativeTerm, ...] = Field(default=("task", "distance", "angle", "peer", "past"), min_length=1)
    """Which of the five terms count; leave some out for an ablation."""
    alone_epochs: int | None = Field(default=None, ge=0)
    """Passes of each network alone, before they learn together; by default as many as together."""


class StudentFriendlySettings(Settings):
    """How the teacher learns with branches of the student: task CE + kl KL + branch CE."""

    epochs: int | None = Field(default=None, ge=1)
    """Passes of the teacher with its branches, from the weights that it has; by default those of the student."""
    task_weight: Share = 1.0
    """Weight of the teacher's own loss."""
    kl_weight: Share = 3.0
    """Weight of what the teacher says, for each branch."""
    branch_weight: Share = 1.0
    """Weight of the true targets, for each branch."""
    temperature: float = Field(default=1.0, gt=0)
    """Temperature of the KL between teacher and branches; the loss carries T^2."""
    layers: Layers = "auto"
