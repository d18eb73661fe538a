"""Options of distillation (torch-free): which knowledge, which scheme."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from edgekd.config import Settings
from edgekd.distill.knowledge_settings import KdSettings, KnowledgeSettings, MseLogitsSettings

__all__ = ["SCHEMES", "DistillationSettings", "KdSettings", "KnowledgeSettings", "MseLogitsSettings", "Scheme"]

Scheme = Literal["offline"]
SCHEMES: tuple[Scheme, ...] = ("offline",)


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
        weights = [item.weight for item in self.knowledge] if self.knowledge is not None else [1.0]
        if not any([self.task_weight, *weights]):
            raise ValueError(
                "all weights are 0, there is nothing to learn from | give task_weight or a knowledge weight"
            )
        return self
