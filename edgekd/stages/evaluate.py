"""evaluate: score every network and every build. The one stage that reads the test split."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from edgekd.data.table import Rows, row_groups
from edgekd.export import parity
from edgekd.export.settings import ExportSettings
from edgekd.runtimes.protocol import Arrays, Session, infer_batched
from edgekd.runtimes.registry import runtime
from edgekd.stages.context import Context
from edgekd.stages.networks import CPU, data_facts, load_model, make_world, metrics
from edgekd.stages.quantized import load_quantized
from edgekd.stages.settings import EvaluateStage
from edgekd.tasks.task import Score, task_named
from edgekd.train.evaluate import outputs, score_outputs
from edgekd.train.feed import to_input
from edgekd.train.world import World

_READ_ROWS = 256


def run(context: Context) -> None:
    """Score the networks in PyTorch and the builds in their engines; without targets, agreement with the float one."""
    options = context.options(EvaluateStage)
    table = context.common.data.load(options.split)
    world = make_world(context.common, tables={options.split: table})
    _load_networks(context, world)
    found = {role: outputs(world, role, table, CPU) for role in world.models}
    best = found[_best(context)]
    scores = {role: _scores(world, result, table.targets, best) for role, result in found.items()}
    context.draft.facts.update(
        split=options.split,
        n=len(table),
        models={role: metrics(values, options.split) for role, values in scores.items()},
        builds={},
        data=data_facts(context.common),
    )
    for build in context.inputs["compile"].facts["builds"] if "compile" in context.inputs else ():
        facts = _evaluate_build(context, build, world, table, found)
        context.draft.facts["builds"][build["folder"]] = facts
        first = facts["metrics"][0]
        context.tell(f"evaluate: {build['folder']}  {first['name']} {first['value']:.4f}")


def _best(context: Context) -> str:
    """Whose answers count as true where the data has no targets: the teacher's, without one the given network's."""
    return "teacher" if "teacher" in context.common.roles.values() else context.shipped()[0]


def _load_networks(context: Context, world: World) -> None:
    for role, artifact in context.networks().items():
        world.models[role] = load_model(context.common, artifact)
    if "quantize" in context.inputs:
        _, source = context.shipped()
        world.models["quantized"] = load_quantized(context.common, context.inputs["quantize"], source)


def _scores(
    world: World, found: dict[str, Tensor], targets: Mapping[str, Tensor], reference: dict[str, Tensor]
) -> dict[str, Score]:
    scores = score_outputs(world, found, targets)
    for head in world.heads:
        if head.target not in targets:
            agreement = task_named(head.task).agreement(found[head.output], reference[head.output])
            scores[agreement.name if len(world.heads) == 1 else f"{head.output}.{agreement.name}"] = agreement
    return scores


def _evaluate_build(
    context: Context,
    build: dict[str, Any],
    world: World,
    table: Rows,
    found: dict[str, dict[str, Tensor]],
) -> dict[str, Any]:
    """Metrics of a build on its target, and how far it agrees with the PyTorch network that it was made from."""
    options = context.options(EvaluateStage)
    path = context.inputs["compile"].path(f"{build['folder']}/{build['file']}")
    session = runtime(build["runtime"]).load(path, device=build["device"], threads=1)
    arrays = _infer(world, session, table, min(options.batch, build["max_batch"] or options.batch))
    session.close()
    result = {name: torch.from_numpy(np.asarray(array, dtype=np.float32)) for name, array in arrays.items()}
    best = found[_best(context)]
    reference = {name: value.numpy() for name, value in found[build["model"]].items()}
    same = parity.compare({n: r.numpy() for n, r in result.items()}, reference, {h.output: h.task for h in world.heads})
    limits = ExportSettings.model_validate_json(json.dumps(context.inputs["export"].facts["limits"]))
    # Float16 rounds like a quantized graph: it is judged by its noise.
    parity.require(f"the build {build['folder']}", same, exact=build["precision"] == "f32", settings=limits)
    return {
        "metrics": metrics(_scores(world, result, table.targets, best), options.split),
        "parity": {**same.facts(), "reference": f"{build['model']} in PyTorch"},
    }


def _infer(world: World, session: Session, table: Rows, batch: int) -> Arrays:
    """Outputs of an engine over all rows of a table, in batches, of which several are read at once."""
    parts = []
    for rows in table.batches(row_groups(len(table), batch * max(1, _READ_ROWS // batch))):
        feeds = {i.name: to_input(world, i.name, rows.inputs[i.name], CPU) for i in session.inputs}
        parts.append(infer_batched(session, {name: x.contiguous().numpy() for name, x in feeds.items()}, batch))
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
