"""export: ONNX files of every network, the quantized one in both signs, each compared with PyTorch on real data."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from numpy.typing import NDArray

from edgekd.errors import ParityError
from edgekd.export import parity
from edgekd.export.flavours import tensorrt_violations, to_uint8
from edgekd.export.forks import Fork, first_fork
from edgekd.export.misfits import find_misfits
from edgekd.export.onnx_file import load, save, write_onnx
from edgekd.quantize.quantizer import QuantizedNetwork, convert
from edgekd.stages.context import Context
from edgekd.stages.networks import CPU, example_inputs, load_model, make_world
from edgekd.stages.quantized import load_quantized
from edgekd.stages.settings import ExportStage
from edgekd.stages.tensors import FORK_SAMPLES, anchors_of
from edgekd.train.feed import to_input
from edgekd.train.world import Model, named_outputs

Arrays = dict[str, NDArray[Any]]


def run(context: Context) -> None:
    """Write and check every file; facts["files"] says what each is."""
    options = context.options(ExportStage)
    feeds = _parity_feeds(context, options.parity_samples)
    files: dict[str, dict[str, Any]] = {}
    for role, artifact in context.networks().items():
        model = load_model(context.common, artifact)
        path = context.draft.folder / f"{role}.f32.onnx"
        _write(context, model, model.network, path, "f32")
        files[path.name] = _checked(context, path, role, "f32", model, feeds)
    if "quantize" in context.inputs:
        files.update(_quantized(context, feeds))
    limits = {name: getattr(options, name) for name in ("max_error", "max_noise", "min_agreement")}
    context.draft.facts.update(files=files, opset=options.opset, limits=limits)


def _quantized(context: Context, feeds: Arrays) -> dict[str, dict[str, Any]]:
    role, source = context.shipped()
    model = load_quantized(context.common, context.inputs["quantize"], source)
    assert isinstance(model.network, QuantizedNetwork)
    int8, uint8 = (context.draft.folder / f"{role}.{sign}.onnx" for sign in ("int8", "uint8"))
    _write(context, model, convert(model.network), int8, "int8")
    graph = load(int8)
    broken = tensorrt_violations(graph)
    if broken:
        raise ParityError(f"{int8.name} breaks TensorRT's rules: {broken[0]}", hint="please report this network")
    save(to_uint8(graph), uint8)
    return {
        path.name: _checked(context, path, "quantized", flavour, model, feeds)
        for path, flavour in ((int8, "int8"), (uint8, "uint8"))
    }


def _write(context: Context, model: Model, network: torch.nn.Module, path: Path, flavour: str) -> None:
    options = context.options(ExportStage)
    example = example_inputs(context.common, model)
    write_onnx(network, example, model.outputs, path, opset=options.opset, metadata=_metadata(context, model, flavour))


def _metadata(context: Context, model: Model, flavour: str) -> dict[str, str]:
    """What a device needs to feed the network and to name its answers. No paths, nothing of this machine."""
    common = context.common
    preprocessing = {
        name: {"scale": n.scale, "mean": list(n.mean), "std": list(n.std)}
        for name, n in common.data.normalization().items()
        if name in model.inputs
    }
    labels = {name: list(info.names) for name, info in common.data.classes().items() if info.names}
    return {
        "edgekd.pipeline": common.name,
        "edgekd.flavour": flavour,
        "edgekd.heads": json.dumps({head.output: head.task for head in common.heads}, sort_keys=True),
        "edgekd.preprocessing": json.dumps(preprocessing, sort_keys=True),
        "edgekd.labels": json.dumps(labels, sort_keys=True),
    }


def _parity_feeds(context: Context, samples: int) -> Arrays:
    """Validation samples (training samples where there is no such split) as the networks see them."""
    data = context.common.data
    table = data.load("validation" if data.counts().get("validation") else "train")
    rows = table.take(torch.arange(min(samples, len(table))))
    world = make_world(context.common, tables={})
    return {name: to_input(world, name, x, CPU).contiguous().numpy() for name, x in rows.inputs.items()}


def _taken(model: Model, feeds: Arrays) -> Arrays:
    """The inputs that a network takes."""
    return {name: feeds[name] for name in model.inputs}


@torch.no_grad()
def _outputs(model: Model, feeds: Arrays) -> Arrays:
    result = model.network(*(torch.from_numpy(feeds[name]) for name in model.inputs))
    return {name: value.numpy() for name, value in named_outputs(result, model.outputs).items()}


def _checked(context: Context, path: Path, role: str, flavour: str, model: Model, feeds: Arrays) -> dict[str, Any]:
    """Facts of a file, after it proved to say what PyTorch says.

    Raises:
        ParityError: it does not; the message names the first tensor that differs.
    """
    own = _taken(model, feeds)
    tasks = {head.output: head.task for head in context.common.heads}
    found = parity.compare(parity.run_reference(path, own), _outputs(model, own), tasks)
    worst = min(found.agreement.values())
    context.tell(f"export: {path.name}  relative error {found.relative_error:.1e}  agreement {worst:.4f}")
    try:
        parity.require(path.name, found, exact=flavour == "f32", settings=context.options(ExportStage))
    except ParityError as error:
        fork = fork_of(path, model, own)
        if fork is None:
            raise
        raise ParityError(f"{error.message}; {fork.words()}", hint=error.hint) from None
    facts = {"model": role, "flavour": flavour, "parity": found.facts()}
    if flavour in context.common.searched:
        misfits = find_misfits(path, own)
        if misfits.tensors or misfits.nodes:
            context.tell(f"export: {path.name}  {len(misfits.tensors)} tensors do not fit float16")
        facts["misfits"] = misfits.facts()
    return facts


def fork_of(path: Path, model: Model, feeds: Arrays) -> Fork | None:
    """Where a file and its network part ways, by a few samples; None where all tensors that both have are alike."""
    few = {name: feeds[name][:FORK_SAMPLES] for name in model.inputs}
    found, limit = anchors_of(model, few)
    return first_fork(path, few, found, limit)
