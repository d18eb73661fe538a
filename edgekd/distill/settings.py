"""Options of distillation (torch-free): which knowledge, which scheme."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from edgekd.config import Settings

Scheme = Literal["offline"]
SCHEMES: tuple[Scheme, ...] = ("offline",)


class KdSettings(Settings):
    """Hinton's knowledge: softened outputs of the teacher (classification heads)."""

    temperature: float = Field(default=4.0, gt=0)
    """Temperature T of both softmaxes; the loss carries T^2."""
    weight: float = Field(default=0.9, ge=0)
    """Weight of the term."""


class MseLogitsSettings(Settings):
    """Squared difference of outputs (regression heads, or logits)."""

    weight: float = Field(default=0.9, ge=0)
    """Weight of the term."""


class KnowledgeSettings(Settings):
    """One knowledge with its settings: `kd: {temperature: 4, weight: 0.9}`."""

    kd: KdSettings | None = None
    """KL of softened outputs (Hinton et al. 2015)."""
    mse_logits: MseLogitsSettings | None = None
    """Squared difference of outputs (Ba and Caruana 2014)."""

    @model_validator(mode="after")
    def _one(self) -> KnowledgeSettings:
        if len(self.model_fields_set) != 1:
            raise ValueError("one knowledge per item of the list | write e.g. - {kd: {temperature: 4}}")
        return self

    @property
    def name(self) -> str:
        """Name of the knowledge."""
        return next(iter(self.model_fields_set))

    @property
    def settings(self) -> KdSettings | MseLogitsSettings:
        """Its settings."""
        found: KdSettings | MseLogitsSettings = getattr(self, self.name)
        return found


class DistillationSettings(Settings):
    """Who teaches whom, and what."""

    scheme: Scheme = "offline"
    """offline: a frozen teacher teaches the student."""
    task_weight: float = Field(default=0.1, ge=0)
    """Weight of the task's own loss with the true targets; it falls away where the data has none."""
    knowledge: tuple[KnowledgeSettings, ...] | None = None
    """Terms with the teacher; by default the response knowledge of each head (kd, mse_logits) with weight .9."""

    @model_validator(mode="after")
    def _something_to_learn(self) -> DistillationSettings:
        weights = [item.settings.weight for item in self.knowledge] if self.knowledge is not None else [1.0]
        if not any([self.task_weight, *weights]):
            raise ValueError(
                "all weights are 0, there is nothing to learn from | give task_weight or a knowledge weight"
            )
        return self
