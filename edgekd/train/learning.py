"""How one model learns in one move: an optimizer with its schedule, or following another model."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.amp import GradScaler

from edgekd.errors import TrainingError
from edgekd.train.lion import Lion
from edgekd.train.world import Follow, Model, Optim, World

_WARMUP_MOST = 0.2  # share of the steps, where nobody says how long the warm-up is
_ONE_CYCLE_RISE = 0.3  # share of the steps in which the rate rises
_ONE_CYCLE_START, _ONE_CYCLE_END = 1 / 25, 1e-4  # shares of the peak


class Learner:
    """Applies a learning rule to a model once per step."""

    def __init__(self, model: Model, rule: Optim | Follow, steps_per_epoch: int, steps: int) -> None:
        self.model, self.rule = model, rule
        self.steps_per_epoch, self.steps = steps_per_epoch, max(steps, 1)
        # An adapter may have nothing to learn; a network that learns nothing is a mistake.
        idle = not model.inputs and not any(p.requires_grad for p in model.network.parameters())
        self.optimizer = _optimizer(model.network, rule) if isinstance(rule, Optim) and not idle else None

    def learning_rate(self, step: int) -> float:
        """Learning rate of a step of the phase: linear warm-up (one epoch unless told, if the phase is long enough),
        then the schedule."""
        rule = self.rule
        assert isinstance(rule, Optim)
        if rule.schedule == "one_cycle":
            return rule.lr * _one_cycle(step / self.steps)
        if rule.warmup is None:
            warmup = min(float(self.steps_per_epoch), _WARMUP_MOST * self.steps)
        else:
            warmup = rule.warmup * self.steps_per_epoch
        if step < warmup:
            return rule.lr * (step + 1) / (warmup + 1)
        if rule.schedule == "step":
            return rule.lr * rule.gamma ** sum(step >= share * self.steps for share in rule.milestones)
        if rule.schedule == "constant":
            return rule.lr
        progress = (step - warmup) / max(self.steps - warmup, 1)
        return rule.lr * 0.5 * (1 + math.cos(math.pi * min(progress, 1.0)))

    def zero(self) -> None:
        """Forget the last gradients."""
        if self.optimizer is not None:
            self.optimizer.zero_grad(set_to_none=True)

    def step(self, world: World, step: int, scaler: GradScaler) -> None:
        """Apply the gradients of this step, or move towards the followed model."""
        if isinstance(self.rule, Follow):
            decay = min(self.rule.decay, (1 + step) / (10 + step)) if self.rule.rising else self.rule.decay
            _follow(self.model, world.models[self.rule.source], decay)
            return
        if self.optimizer is None:
            return
        for group in self.optimizer.param_groups:
            group["lr"] = self.learning_rate(step)
        if not self.learned:
            return  # a scaler refuses an optimizer that has nothing to do
        if self.rule.clip is not None:
            scaler.unscale_(self.optimizer)
            nn.utils.clip_grad_norm_(self.model.network.parameters(), self.rule.clip)
        scaler.step(self.optimizer)

    @property
    def learned(self) -> bool:
        """Whether any of its parameters got a gradient in this step."""
        return self.optimizer is not None and any(p.grad is not None for p in self.model.network.parameters())

    def state(self) -> dict[str, Any]:
        """What a checkpoint keeps."""
        return self.optimizer.state_dict() if self.optimizer is not None else {}

    def restore(self, state: dict[str, Any]) -> None:
        """Take up a checkpoint's state."""
        if self.optimizer is not None:
            self.optimizer.load_state_dict(state)


def _one_cycle(progress: float) -> float:
    """Share of the peak rate: up by a cosine, then down to almost nothing (Smith and Topin 2019)."""

    def between(start: float, end: float, at: float) -> float:
        return end + (start - end) * 0.5 * (1 + math.cos(math.pi * at))

    if progress < _ONE_CYCLE_RISE:
        return between(_ONE_CYCLE_START, 1.0, progress / _ONE_CYCLE_RISE)
    return between(1.0, _ONE_CYCLE_END, (progress - _ONE_CYCLE_RISE) / (1 - _ONE_CYCLE_RISE))


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
    if rule.name == "sgd":
        return torch.optim.SGD(groups, lr=rule.lr, momentum=rule.momentum, nesterov=rule.momentum > 0)
    return _ADAPTIVE[rule.name](groups, lr=rule.lr)


_ADAPTIVE: dict[str, Callable[..., torch.optim.Optimizer]] = {
    "adam": torch.optim.Adam,
    "adamw": torch.optim.AdamW,
    "nadam": lambda groups, lr: torch.optim.NAdam(groups, lr=lr, decoupled_weight_decay=True),
    "radam": lambda groups, lr: torch.optim.RAdam(groups, lr=lr, decoupled_weight_decay=True),
    "rmsprop": torch.optim.RMSprop,
    "lion": Lion,
}


@torch.no_grad()
def _follow(model: Model, source: Model, decay: float) -> None:
    """Weights move to decay * own + (1 - decay) * source; buffers are copied."""
    torch._foreach_lerp_([*model.network.parameters()], [*source.network.parameters()], 1.0 - decay)
    for mine, theirs in zip(model.network.buffers(), source.network.buffers(), strict=True):
        mine.copy_(theirs)
