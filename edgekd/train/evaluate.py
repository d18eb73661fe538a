"""Outputs and scores of a model over a table, in evaluation mode and float32."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from edgekd.data.table import Rows
from edgekd.tasks.task import Score, task_named
from edgekd.train.distributed import Ranks
from edgekd.train.feed import to_input
from edgekd.train.world import World

_BATCH = 256


@torch.no_grad()
def outputs(
    world: World, name: str, table: Rows, device: torch.device, ranks: Ranks | None = None
) -> dict[str, Tensor]:
    """All outputs of a model over the rows of a table, concatenated on the CPU in float32.

    `ranks`: processes that share the work; each takes every so-manieth row, and all get all outputs.
    """
    ranks = ranks if ranks is not None and len(table) >= ranks.count else Ranks()
    model = world.models[name]
    training = model.network.training
    model.network.to(device).eval()
    parts = []
    for rows in table.batches(torch.split(torch.arange(ranks.rank, len(table), ranks.count), _BATCH)):
        own = {key: value for key, value in rows.inputs.items() if key in model.inputs}
        result = model({key: to_input(world, key, value, device) for key, value in own.items()})
        parts.append({key: value.float() for key, value in result.items()})
    model.network.train(training)
    # To the CPU in one go: a copy for each batch would wait for each.
    found = {key: torch.cat([part[key] for part in parts]).cpu() for key in parts[0]}
    return {key: ranks.collected(value, len(table)) for key, value in found.items()}


def score(world: World, name: str, table: Rows, device: torch.device, ranks: Ranks | None = None) -> dict[str, Score]:
    """Scores of every head that the table has truth for, by "<metric>" or, with several heads, "<output>.<metric>"."""
    heads = [head for head in world.heads if head.target in table.targets]
    if not heads or len(table) == 0:
        return {}
    return score_outputs(world, outputs(world, name, table, device, ranks), table.targets)


def score_outputs(world: World, found: Mapping[str, Tensor], targets: Mapping[str, Tensor]) -> dict[str, Score]:
    """Scores of given outputs, on the CPU, against targets, named as `score` does."""
    result = {}
    for head in world.heads:
        if head.target is not None and head.target in targets:
            metric = task_named(head.task).metric(found[head.output], targets[head.target].cpu())
            result[metric.name if len(world.heads) == 1 else f"{head.output}.{metric.name}"] = metric
    return result
