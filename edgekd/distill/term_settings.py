"""What all knowledges have in common in a pipeline file, and those of the user's own (torch-free)."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import BeforeValidator, Field

from edgekd.config import Settings
from edgekd.config.entry_points import KNOWLEDGE, offered
from edgekd.config.settings import did_you_mean

if TYPE_CHECKING:
    from edgekd.train.knowledge import Knowledge

Pair = tuple[str, str]
Weight = Annotated[float, Field(ge=0, description="Weight of the term.")]
Ramp = Annotated[
    float, Field(ge=0, description="Epochs over which the weight rises linearly from 0; at 0 it is whole at once.")
]


def _pairs(value: Any) -> Any:
    """`auto`, or pairs as tuples; a pair that stands alone is a list of one."""
    listed = [value] if _is_pair(value) else value
    if listed == "auto":
        return value
    if not isinstance(listed, (list, tuple)) or not listed or not all(_is_pair(item) for item in listed):
        raise ValueError("no pairs of modules | write layers: [student_layer, teacher_layer], a list of such, or auto")
    return tuple(tuple(item) for item in listed)


def _is_pair(value: Any) -> bool:
    return isinstance(value, (list, tuple)) and len(value) == 2 and all(isinstance(item, str) for item in value)


Layers = Annotated[
    Literal["auto"] | tuple[Pair, ...],
    BeforeValidator(_pairs),
    Field(
        description="Modules whose outputs are compared: a pair [student_layer, teacher_layer] or a list of pairs, "
        "shallow to deep; auto pairs them by their sizes."
    ),
]
Temperature = Annotated[float, Field(gt=0, description="Temperature T of both softmaxes; the loss carries T^2.")]
Share = Annotated[float, Field(ge=0)]
OF_THE_TERM = ("weight", "ramp", "layers", "init_epochs")


class TermSettings(Settings):
    """What every knowledge has: how much it counts, and from when on."""

    of_classes: ClassVar[bool] = False
    """Whether it compares probabilities of classes, and so fits classification heads alone."""

    needs_target: ClassVar[bool] = False
    """Whether it cannot do without the true class of a sample."""

    task_weight: ClassVar[float | None] = None
    """Weight of the task's own loss in the paper's runs; None: it says nothing, or 1."""

    weight: Weight = 1.0
    ramp: Ramp = 0.0

    @property
    def arguments(self) -> dict[str, Any]:
        """Keyword arguments of the knowledge's adapter, or of its function where there is none."""
        return {name: value for name, value in self.canonical().items() if name not in OF_THE_TERM}


class ClassSettings(TermSettings):
    """A knowledge of class probabilities."""

    of_classes: ClassVar[bool] = True


class FeatureSettings(TermSettings):
    """A knowledge of feature maps or embeddings."""

    layers: Layers = "auto"


class InitialSettings(FeatureSettings):
    """A knowledge that a student begins with."""

    init_epochs: Annotated[int, Field(ge=0)] | None = None
    """Passes of a phase before the others, in which nothing else is learned; by default an eighth as many as theirs, as
    in the papers' CIFAR runs (30 and 240). With 0 it is learned beside the others."""


class OwnSettings(FeatureSettings):
    """A knowledge of the user's own: a function that a package of theirs offers, or that lies beside the file."""

    name: str
    """Its import string, or what its package calls it."""
    options: dict[str, Any] = Field(default_factory=dict)
    """Its own settings."""

    @property
    def facts(self) -> Knowledge:
        """What it says of itself; it is imported for that."""
        from edgekd.train.knowledge import knowledge_named

        return knowledge_named(self.name)

    @property
    def arguments(self) -> dict[str, Any]:
        """Keyword arguments of its adapter, or of its function, as it takes them."""
        from edgekd.config import validate
        from edgekd.config.signature import arguments_of
        from edgekd.train.knowledge import own_options

        settings, problems = validate(own_options(self.name), self.options)
        assert settings is not None, problems
        return arguments_of(settings)


def own_settings(name: Any, given: Any, known: Iterable[str]) -> dict[str, Any]:
    """A knowledge of the user's own as `KnowledgeSettings.own` wants it.

    Raises:
        ValueError: the name is none of `known`, no import string, and offered by no package.
    """
    if ":" not in str(name) and name not in offered(KNOWLEDGE):
        near = did_you_mean(str(name), [*known, *offered(KNOWLEDGE)])
        raise ValueError(f"unknown knowledge {name!r} | {near}; one of your own is written package.module:function")
    if not isinstance(given, dict):
        raise ValueError(f"{name} has no mapping of settings | write e.g. - {{{name}: {{weight: 1}}}}")
    terms = {key: value for key, value in given.items() if key in OF_THE_TERM}
    options = {key: value for key, value in given.items() if key not in OF_THE_TERM}
    return {"own": {"name": name, **terms, "options": options}}
