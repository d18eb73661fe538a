"""evaluate: score every network and every build. The one stage that reads the test split."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Collection, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from edgekd.bench.remote import answers_on
from edgekd.bench.targets.protocol import Place
from edgekd.data.table import Rows, row_groups
from edgekd.errors import ParityError
from edgekd.export import parity
from edgekd.export.forks import Fork
from edgekd.export.settings import ExportSettings
from edgekd.files import write_atomic
from edgekd.quantize.quantizer import QuantizedNetwork
from edgekd.runtimes import saturation
from edgekd.runtimes.protocol import Arrays, Session, infer_batched
from edgekd.runtimes.registry import runtime
from edgekd.stages.compile import Order, source_of
from edgekd.stages.context import Context
from edgekd.stages.feeds import feeds_of
from edgekd.stages.ladder import Ladder, engine_fork
from edgekd.stages.networks import CPU, data_facts, load_model, make_world, metrics
from edgekd.stages.places import Places
from edgekd.stages.quantized import load_quantized
from edgekd.stages.settings import EvaluateStage
from edgekd.stages.tensors import FORK_SAMPLES, ROUNDED, anchors_of
from edgekd.tasks.task import task_named
from edgekd.train.evaluate import outputs, score_outputs
from edgekd.train.world import World

_BYTE = 8
_IN_INT8 = "quantized in int8"
_READ_ROWS = 256
_PART_BYTES = 64_000_000  # of samples that are sent to a device at once
_FILE_ROWS = 512  # on which files are held against PyTorch before the engines have their turn


def run(context: Context) -> None:
    """Score the networks in PyTorch and the builds in their engines; without targets, agreement with the float one."""
    options = context.options(EvaluateStage)
    table = context.common.data.load(options.split)
    world = make_world(context.common, tables={options.split: table})
    _load_networks(context, world)
    found = {role: outputs(world, role, table, CPU) for role in world.models}
    best = _best(context)
    context.draft.facts.update(
        split=options.split,
        n=len(table),
        models={
            role: _scored(world, result, found, table.targets, best, options.split) for role, result in found.items()
        },
        builds={},
        data=data_facts(context.common),
    )
    ladder = Ladder(world, table.targets)
    _climb(context, ladder, world, table, found)
    with Places(context.common.targets) as places:
        for build in context.inputs["compile"].facts["builds"] if "compile" in context.inputs else ():
            facts = _evaluate_build(context, build, places.of(build["target"]), world, table, found, ladder)
            context.draft.facts["builds"][build["folder"]] = facts
            scored = ", ".join(f"{metric['name']} {metric['value']:.4f}" for metric in facts["metrics"])
            context.tell(f"evaluate: {build['folder']}  {scored}")
    write_atomic(context.draft.folder / "ladder.json", json.dumps({"rows": ladder.rows}, indent=1))


def _climb(
    context: Context, ladder: Ladder, world: World, table: Rows, found: Mapping[str, Mapping[str, Tensor]]
) -> None:
    """The rungs up to the engines: networks in PyTorch, and their files in ONNX Runtime, as written and optimized."""
    role, _ = context.shipped()
    arrays = {name: {key: value.numpy() for key, value in result.items()} for name, result in found.items()}
    ladder.climb(f"{role} in PyTorch", arrays[role])
    if "quantized" in arrays:
        ladder.climb("quantized in PyTorch", arrays["quantized"], f"{role} in PyTorch", arrays[role])
    few = table.take(torch.arange(min(len(table), _FILE_ROWS)))
    if "quantized" in arrays and (coarser := _in_int8(world, few)) is not None:
        arrays[_IN_INT8] = coarser
        ladder.climb(f"{_IN_INT8} in PyTorch", coarser, "quantized in PyTorch", arrays["quantized"])
    for name, facts in context.inputs["export"].facts["files"].items() if "export" in context.inputs else ():
        model = facts["model"]
        if model not in (role, "quantized"):
            continue
        feeds = feeds_of(world, world.models[model].inputs, few, _raw(context))
        path, flavour = context.inputs["export"].path(name), facts["flavour"]
        right = _IN_INT8 if flavour == "int8" and _IN_INT8 in arrays else model
        rungs = {f"{name} as written": False}
        if flavour != "int8":  # the flavour that is not for ONNX Runtime
            rungs[f"{name} in ONNX Runtime, optimized"] = True
        for rung, optimized in rungs.items():
            outputs = parity.run_reference(path, feeds, optimized=optimized)
            same = ladder.climb(rung, outputs, f"{right} in PyTorch", arrays[right])
            assert same is not None
            parity.require(rung, same, exact=flavour == "f32", settings=_limits(context, model))


def _in_int8(world: World, table: Rows) -> dict[str, NDArray[Any]] | None:
    """What the quantized network answers on the grids of its int8 file, where these are others than its own."""
    model = world.models["quantized"]
    assert isinstance(model.network, QuantizedNetwork)
    if not model.network.half_steps():
        return None
    own = replace(world, models={_IN_INT8: replace(model, network=model.network.in_int8())})
    return {name: value.numpy() for name, value in outputs(own, _IN_INT8, table, CPU).items()}


def _best(context: Context) -> str:
    """Whose answers count as true where the data has no targets: the teacher's, without one the given network's."""
    return "teacher" if "teacher" in context.common.roles.values() else context.shipped()[0]


def _load_networks(context: Context, world: World) -> None:
    for role, artifact in context.networks().items():
        world.models[role] = load_model(context.common, artifact)
    if "quantize" in context.inputs:
        _, source = context.shipped()
        world.models["quantized"] = load_quantized(context.common, context.inputs["quantize"], source)


def _scored(
    world: World,
    found: Mapping[str, Tensor],
    networks: Mapping[str, Mapping[str, Tensor]],
    targets: Mapping[str, Tensor],
    best: str,
    split: str,
) -> list[dict[str, Any]]:
    """Metrics of outputs, and under `against` by how much each is another than a network's in PyTorch on these samples.

    Heads without targets come last: they are scored by their agreement with the network `best`.
    """
    scores = score_outputs(world, found, targets)
    known = [head for head in world.heads if head.target in targets]
    unknown = [head for head in world.heads if head.target not in targets]
    for head in unknown:
        agreement = task_named(head.task).agreement(found[head.output], networks[best][head.output])
        scores[agreement.name if len(world.heads) == 1 else f"{head.output}.{agreement.name}"] = agreement
    rows = metrics(scores, split)
    for row, head in zip(rows, [*known, *unknown], strict=True):
        task = task_named(head.task)
        target = targets.get(head.target) if head.target is not None else None
        truth = task.answers(networks[best][head.output]) if target is None else target
        pairs = {
            role: task.difference(found[head.output], other[head.output], truth) for role, other in networks.items()
        }
        row["against"] = {role: {"value": pair.value, "ci95": list(pair.ci95)} for role, pair in pairs.items()}
    return rows


def _evaluate_build(
    context: Context,
    build: dict[str, Any],
    place: Place | None,
    world: World,
    table: Rows,
    found: dict[str, dict[str, Tensor]],
    ladder: Ladder,
) -> dict[str, Any]:
    """Metrics of a build on its target, and how far it agrees with the PyTorch network that it was made from."""
    split = context.options(EvaluateStage).split
    rows = _sample(context, table) if place is not None else None
    arrays = _answers(context, build, place, world, table, rows)
    result = {name: torch.from_numpy(np.asarray(array, dtype=np.float32)) for name, array in arrays.items()}
    right = found if rows is None else {role: _of(outputs, rows) for role, outputs in found.items()}
    targets = table.targets if rows is None else _of(table.targets, rows)
    reference = {name: value.numpy() for name, value in right[build["model"]].items()}
    rung = f"the build {build['folder']}" + (" on its device" if place is not None else "")
    model = f"{build['model']} in PyTorch"
    same = ladder.climb(rung, {n: r.numpy() for n, r in result.items()}, model, reference, targets)
    assert same is not None
    try:
        # Float16 rounds like a quantized graph: it is judged by its noise.
        parity.require(rung, same, exact=build["precision"] == "f32", settings=_limits(context, build["model"]))
    except ParityError as error:
        fork = _fork(context, build, world, table) if place is None else None
        words = f"; {fork.words()}" if fork is not None else ""
        weak = place is None and _may_overflow(build, world.models[build["model"]].network)
        raise ParityError(f"{error.message}{words}", hint=saturation.HINT if weak else error.hint) from None
    best = _best(context)
    scored = _scored(world, result, right, targets, best, split)
    labelled = any(head.target in targets for head in world.heads)
    return {
        "metrics": scored,
        "difference": {**scored[0], **scored[0]["against"][best]} if labelled else None,
        "parity": {**same.facts(), "reference": model},
    }


def _may_overflow(build: Mapping[str, Any], network: nn.Module) -> bool:
    """Whether sums of a build can overflow on this processor: weights of 7 bits and fewer leave them room."""
    if (build["runtime"], build["device"], build["precision"]) != ("openvino", "CPU", "int8"):
        return False
    wide = isinstance(network, QuantizedNetwork) and any(q.weight and q.bits == _BYTE for q in network.fake_quants())
    return wide and saturation.saturates()


def _sample(context: Context, table: Rows) -> Tensor | None:
    """The rows that a device answers, int64 in ascending order; None: all of them."""
    most = context.options(EvaluateStage).device_samples
    if len(table) <= most:
        return None
    drawn = torch.randperm(len(table), generator=torch.Generator().manual_seed(context.common.seed))
    return drawn[:most].sort().values


def _of(values: Mapping[str, Tensor], rows: Tensor) -> dict[str, Tensor]:
    return {name: each[rows.to(each.device)] for name, each in values.items()}


def _answers(
    context: Context, build: dict[str, Any], place: Place | None, world: World, table: Rows, rows: Tensor | None
) -> Arrays:
    """Outputs of a build over a table, or some rows of it, in its engine: here, or at its place."""
    options = context.options(EvaluateStage)
    path = context.inputs["compile"].path(f"{build['folder']}/{build['file']}")
    batch = min(options.batch, build["max_batch"] or options.batch)
    if place is None:
        session = runtime(build["runtime"]).load(path, device=build["device"], threads=1)
        arrays = _infer(world, session, table, batch, _raw(context))
        session.close()
        return arrays
    inputs, raw = [info["name"] for info in build["inputs"]], _raw(context)
    row_bytes = sum(array.nbytes for array in feeds_of(world, inputs, table.take(torch.arange(1)), raw).values())
    whole = torch.arange(len(table)) if rows is None else rows
    parts = table.batches(torch.split(whole, max(batch, _PART_BYTES // row_bytes // batch * batch)))
    model = {"name": build["folder"], "runtime": build["runtime"], "device": build["device"]}
    fed = (feeds_of(world, inputs, part, raw) for part in parts)
    return answers_on(place, model, path, fed, batch=batch, limit_s=options.time_limit_s)


def _fork(context: Context, build: Mapping[str, Any], world: World, table: Rows) -> Fork | None:
    """Where a build parts from the file that it was made of; None where that cannot be told."""
    if build["runtime"].startswith("tensorrt"):
        return None
    target, model = context.common.targets[build["target"]], world.models[build["model"]]
    few = table.take(torch.arange(min(len(table), FORK_SAMPLES)))
    found, limit = anchors_of(model, feeds_of(world, model.inputs, few))
    if build["precision"] in ("f16", "bf16"):
        limit = max(limit, ROUNDED)
    feeds = feeds_of(world, model.inputs, few, _raw(context))
    engine, options = runtime(build["runtime"]), {"precision": build["precision"]}
    order = Order(build["target"], target, build["model"], build["precision"])
    with tempfile.TemporaryDirectory() as scratch:
        flavour = engine.flavour(build["precision"])
        source = source_of(order, flavour, context.inputs["export"], Path(scratch))
        return engine_fork(engine, source.path, feeds, found, limit, device=build["device"], options=options)


def _limits(context: Context, role: str) -> ExportSettings:
    """How far forms of a network may be off: few bits have limits of their own."""
    limits = context.inputs["export"].facts["limits"]
    return ExportSettings.model_validate_json(json.dumps(limits.get(role, limits["float"])))


def _raw(context: Context) -> tuple[str, ...]:
    """Inputs of files and builds that take raw frames."""
    return tuple(context.inputs["export"].facts["raw_inputs"])


def _infer(world: World, session: Session, table: Rows, batch: int, raw: Collection[str]) -> Arrays:
    """Outputs of an engine over all rows of a table, in batches, of which several are read at once."""
    parts = []
    for rows in table.batches(row_groups(len(table), batch * max(1, _READ_ROWS // batch))):
        parts.append(infer_batched(session, feeds_of(world, [i.name for i in session.inputs], rows, raw), batch))
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
