"""A training loop as one writes it by hand, to compare the trainer with: SGD with warm-up and cosine, seeded steps."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence

import torch
from test_trainer import Net, make_table
from torch import Tensor, nn

from edgekd.data.counters import permutation
from edgekd.data.table import Rows
from edgekd.train.phase import mix_seed

Loss = Callable[[Tensor, Tensor], Tensor]
LAST = torch.channels_last


def lesson(models: Sequence[nn.Module], index: int, loss: Loss, epochs: int, table: Rows | None = None) -> None:
    """Phase `index` of a run with seed 7, batch 16 and OPTIM: networks learn from loss(x, y) on a table of images.

    y is the table's only target, or where it has none the numbers of its rows.
    """
    table = make_table() if table is None else table
    optimizers = [_sgd(model) for model in models]
    rows, steps = len(table), math.ceil(len(table) / 16)
    for epoch in range(epochs):
        order = permutation(7, f"order/{index}", epoch, rows)
        for step in range(steps):
            at = epoch * steps + step
            part = table.take(order[rows * step // steps : rows * (step + 1) // steps])
            x = part.inputs["image"].contiguous(memory_format=LAST)
            y = next(iter(part.targets.values()), part.ids)
            torch.default_generator.manual_seed(mix_seed(7, index, f"{at}/0"))
            for optimizer in optimizers:
                optimizer.zero_grad()
                for group in optimizer.param_groups:
                    group["lr"] = _rate(at, steps, epochs)
            loss(x, y).backward()
            for optimizer in optimizers:
                optimizer.step()


def guide(network: nn.Module) -> nn.Module:
    """A copy of a network that guides: in evaluation mode."""
    return copy.deepcopy(network).eval().to(memory_format=LAST)  # type: ignore[call-overload,no-any-return]


def asked(network: nn.Module, x: Tensor) -> Tensor:
    """What a guide says."""
    with torch.no_grad():
        found: Tensor = network(x)
    return found


def fresh(width: int, index: int, edit: int) -> Net:
    """The student that edit number `edit` of phase `index` starts afresh."""
    torch.default_generator.manual_seed(mix_seed(7, index, f"edit/{edit}" if edit else "edit"))
    return Net(width)


def _sgd(model: nn.Module) -> torch.optim.SGD:
    model.train().to(memory_format=LAST)  # type: ignore[call-overload]
    groups = [[p for p in model.parameters() if p.dim() > 1], [p for p in model.parameters() if p.dim() <= 1]]
    decays = [{"params": group, "weight_decay": d} for group, d in zip(groups, (1e-3, 0.0), strict=True)]
    return torch.optim.SGD(decays, lr=0.1, momentum=0.9, nesterov=True)


def _rate(at: int, steps: int, epochs: int) -> float:
    if at < steps:
        return 0.1 * (at + 1) / (steps + 1)
    return 0.1 * 0.5 * (1 + math.cos(math.pi * (at - steps) / (steps * (epochs - 1))))
