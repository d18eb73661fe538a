"""Lion, the one optimizer of the options that torch has not."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch

_BETA_1, _BETA_2 = 0.9, 0.99


class Lion(torch.optim.Optimizer):
    """Sign of an interpolated momentum, with decoupled weight decay (Chen et al. 2023): half the memory of AdamW.

    Args:
        params: parameters or groups of them.
        lr: learning rate; a third to a tenth of AdamW's serves.
        weight_decay: decoupled, times lr; three to ten times AdamW's serves.
    """

    def __init__(self, params: Iterable[Any], lr: float, weight_decay: float = 0.0) -> None:
        super().__init__(params, {"lr": lr, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """One update of every parameter that has a gradient."""
        for group in self.param_groups:
            learning = [p for p in group["params"] if p.grad is not None]
            if not learning:
                continue
            gradients = [p.grad for p in learning]
            for p in learning:
                if not self.state[p]:
                    self.state[p]["momentum"] = torch.zeros_like(p)
            momenta = [self.state[p]["momentum"] for p in learning]
            directions = torch._foreach_lerp(gradients, momenta, _BETA_1)
            torch._foreach_sign_(directions)
            torch._foreach_mul_(learning, 1 - group["lr"] * group["weight_decay"])
            torch._foreach_add_(learning, directions, alpha=-group["lr"])
            torch._foreach_lerp_(momenta, gradients, 1 - _BETA_2)
