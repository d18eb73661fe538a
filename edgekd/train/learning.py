"""How one model learns in one move: an optimizer with its schedule, or following another model."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import nn

from edgekd.errors import TrainingError
from edgekd.train.world import Follow, Model, Optim, World


class Learner:
    """Applies a learning rule to a model once per step."""

    def __init__(self, model: Model, rule: Optim | Follow, steps_per_epoch: int, steps: int) -> None:
        self.model, self.rule = model, rule
        self.steps_per_epoch, self.steps = steps_per_epoch, max(steps, 1)
        self.optimizer = _optimizer(model.network, rule) if isinstance(rule, Optim) else None

    def learning_rate(self, step: int) -> float:
        """Learning rate of a step of the phase: linear warm-up, then the schedule."""
        rule = self.rule
        assert isinstance(rule, Optim)
        warmup = rule.warmup * self.steps_per_epoch
        if step < warmup:
            return rule.lr * (step + 1) / (warmup + 1)
        if rule.schedule == "constant":
            return rule.lr
        progress = (step - warmup) / max(self.steps - warmup, 1)
        return rule.lr * 0.5 * (1 + math.cos(math.pi * min(progress, 1.0)))

    def zero(self) -> None:
        """Forget the last gradients."""
        if self.optimizer is not None:
            self.optimizer.zero_grad(set_to_none=True)

    def step(self, world: World, step: int) -> None:
        """Apply the gradients of this step, or move towards the followed model."""
        if isinstance(self.rule, Follow):
            _follow(self.model, world.models[self.rule.source], self.rule.decay)
            return
        assert self.optimizer is not None
        for group in self.optimizer.param_groups:
            group["lr"] = self.learning_rate(step)
        if self.rule.clip is not None:
            nn.utils.clip_grad_norm_(self.model.network.parameters(), self.rule.clip)
        self.optimizer.step()

    def state(self) -> dict[str, Any]:
        """What a checkpoint keeps."""
        return self.optimizer.state_dict() if self.optimizer is not None else {}

    def restore(self, state: dict[str, Any]) -> None:
        """Take up a checkpoint's state."""
        if self.optimizer is not None:
            self.optimizer.load_state_dict(state)


def _optimizer(network: nn.Module, rule: Optim) -> torch.optim.Optimizer:
    """Weight decay for weights alone: vectors (biases, BatchNorm, quantization scales) go without (He et al. 2019)."""
    decayed = [p for p in network.parameters() if p.requires_grad and p.dim() > 1]
    plain = [p for p in network.parameters() if p.requires_grad and p.dim() <= 1]
    groups = [{"params": decayed, "weight_decay": rule.weight_decay}, {"params": plain, "weight_decay": 0.0}]
    groups = [group for group in groups if group["params"]]
    if not groups:
        raise TrainingError(
            "the network has no parameter that learns",
            hint="set requires_grad on those that should, or leave out training",
        )
    if rule.name == "adamw":
        return torch.optim.AdamW(groups, lr=rule.lr)
    return torch.optim.SGD(groups, lr=rule.lr, momentum=rule.momentum, nesterov=rule.momentum > 0)


@torch.no_grad()
def _follow(model: Model, source: Model, decay: float) -> None:
    """Weights move to decay * own + (1 - decay) * source; buffers are copied."""
    for own, other in zip(model.network.parameters(), source.network.parameters(), strict=True):
        own.lerp_(other, 1.0 - decay)
    for mine, theirs in zip(model.network.buffers(), source.network.buffers(), strict=True):
        mine.copy_(theirs)
