"""Outputs and scores of a model over a table, in evaluation mode and float32."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from edgekd.data.table import Table
from edgekd.tasks.task import Score, task_named
from edgekd.train.feed import to_input
from edgekd.train.world import World

_BATCH = 256


@torch.no_grad()
def outputs(world: World, name: str, table: Table, device: torch.device) -> dict[str, Tensor]:
    """All outputs of a model over the rows of a table, concatenated on the CPU in float32."""
    model = world.models[name]
    training = model.network.training
    model.network.to(device).eval()
    parts = []
    for start in range(0, len(table), _BATCH):
        rows = {key: value[start : start + _BATCH] for key, value in table.inputs.items()}
        result = model({key: to_input(world, key, value, device) for key, value in rows.items()})
        parts.append({key: value.float().cpu() for key, value in result.items()})
    model.network.train(training)
    return {key: torch.cat([part[key] for part in parts]) for key in parts[0]}


def score(world: World, name: str, table: Table, device: torch.device) -> dict[str, Score]:
    """Scores of every head that the table has truth for, by "<metric>" or, with several heads, "<output>.<metric>"."""
    heads = [head for head in world.heads if head.target in table.targets]
    if not heads or len(table) == 0:
        return {}
    return score_outputs(world, outputs(world, name, table, device), table.targets)


def score_outputs(world: World, found: Mapping[str, Tensor], targets: Mapping[str, Tensor]) -> dict[str, Score]:
    """Scores of given outputs against targets, named as `score` does."""
    result = {}
    for head in world.heads:
        if head.target is not None and head.target in targets:
            metric = task_named(head.task).metric(found[head.output], targets[head.target])
            result[metric.name if len(world.heads) == 1 else f"{head.output}.{metric.name}"] = metric
    return result
