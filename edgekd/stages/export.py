"""export: ONNX files of every network, the quantized one in both signs, each compared with PyTorch on real data."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

import edgekd
from edgekd.errors import ParityError
from edgekd.export import parity
from edgekd.export.flavours import tensorrt_violations, to_uint8
from edgekd.export.forks import Fork, first_fork
from edgekd.export.metadata import stamp
from edgekd.export.misfits import find_misfits
from edgekd.export.onnx_file import check_file, load, save, write_onnx
from edgekd.export.preprocessing import Affine, affine
from edgekd.export.settings import ExportSettings
from edgekd.models.facts import is_file
from edgekd.quantize.quantizer import QuantizedNetwork, convert
from edgekd.stages.context import Context
from edgekd.stages.feeds import feeds_of, preparation, raw_images
from edgekd.stages.networks import example_inputs, load_model, make_world
from edgekd.stages.quantized import load_quantized
from edgekd.stages.settings import ExportStage
from edgekd.stages.tensors import FORK_SAMPLES, anchors_of
from edgekd.store import Artifact
from edgekd.train.world import Model, named_outputs

Arrays = parity.Arrays


@dataclass(frozen=True)
class _Samples:
    """The samples on which files are compared with PyTorch: as networks see them, and as the files take them."""

    seen: Arrays
    fed: Arrays
    raw: Mapping[str, Affine]

    def network(self, model: Model, most: int | None = None) -> Arrays:
        """What the network takes, in the order of its forward."""
        return {name: self.seen[name][:most] for name in model.inputs}

    def file(self, model: Model, most: int | None = None) -> Arrays:
        """What its file takes."""
        return {name: self.fed[name][:most] for name in model.inputs}


def run(context: Context) -> None:
    """Write and check every file; facts["files"] says what each is, facts["raw_inputs"] which inputs take frames."""
    options = context.options(ExportStage)
    samples = _samples(context, options)
    files: dict[str, dict[str, Any]] = {}
    limits = {"float": options.limits()}
    for role, artifact in context.networks().items():
        model = load_model(context.common, artifact)
        if is_file(model.network):
            context.tell(f"export: the {role} is an ONNX file already; `edgekd measure` times it")
            continue
        path = context.draft.folder / f"{role}.f32.onnx"
        _write(context, model, model.network, path, _facts(context, role, artifact, model, "f32"), samples)
        files[path.name] = _checked(context, path, role, "f32", model, samples)
    if "quantize" in context.inputs:
        made, own = _quantized(context, samples)
        files.update(made)
        limits["quantized"] = own.limits()
    prepared = preparation(context.common, context.common.data.input_names, raw=options.raw_input)
    context.draft.facts.update(files=files, opset=options.opset, limits=limits, raw_inputs=sorted(samples.raw))
    context.draft.facts.update(preprocessing=prepared)


def _quantized(context: Context, samples: _Samples) -> tuple[dict[str, dict[str, Any]], ExportSettings]:
    """Both files of the quantized network, and the limits that they were held to."""
    role, source = context.shipped()
    artifact = context.inputs["quantize"]
    model = load_quantized(context.common, artifact, source)
    assert isinstance(model.network, QuantizedNetwork)
    int8, uint8 = (context.draft.folder / f"{role}.{sign}.onnx" for sign in ("int8", "uint8"))
    _write(context, model, convert(model.network), int8, _facts(context, "quantized", artifact, model, "int8"), samples)
    graph = load(int8)
    broken = tensorrt_violations(graph)
    if broken:
        raise ParityError(f"{int8.name} breaks TensorRT's rules: {broken[0]}", hint="please report this network")
    unsigned = to_uint8(graph, model.network.half_steps())
    stamp(unsigned, {"flavour": "uint8"})
    save(unsigned, uint8)
    check_file(uint8, inputs=model.inputs, outputs=model.outputs, opset=context.options(ExportStage).opset)
    limits = _limits_of(context, model, load_model(context.common, source), samples)
    forms = ((int8, "int8", replace(model, network=model.network.in_int8())), (uint8, "uint8", model))
    made = {
        path.name: _checked(context, path, "quantized", flavour, form, samples, limits) for path, flavour, form in forms
    }
    return made, limits


def _limits_of(context: Context, quantized: Model, original: Model, samples: _Samples) -> ExportSettings:
    """What a form of the quantized network may be off: what is asked for, or as much as quantization itself moved.

    With few bits one rounding that falls the other way moves an answer far, and they are many.
    """
    options = context.options(ExportStage)
    tasks = {head.output: head.task for head in context.common.heads}
    answers = [_outputs(model, samples.network(model)) for model in (quantized, original)]
    moved = parity.compare(answers[0], answers[1], tasks)
    wide = {
        "max_noise": max(options.max_noise, moved.noise),
        "min_agreement": min(options.min_agreement, *moved.agreement.values()),
    }
    return options.model_copy(update={k: v for k, v in wide.items() if k not in options.model_fields_set})


def _write(
    context: Context, model: Model, network: torch.nn.Module, path: Path, facts: Mapping[str, Any], samples: _Samples
) -> None:
    example = example_inputs(context.common, model)
    opset = context.options(ExportStage).opset
    raw = {name: how for name, how in samples.raw.items() if name in model.inputs}
    write_onnx(network, example, model.outputs, path, opset=opset, metadata=facts, raw=raw)


def _facts(context: Context, role: str, artifact: Artifact, model: Model, flavour: str) -> dict[str, Any]:
    """What a device needs to feed the network and to name its answers. No paths, nothing of this machine."""
    common = context.common
    heads = [head for head in common.heads if head.output in model.outputs]
    labels = {name: list(info.names) for name, info in common.data.classes().items() if info.names}
    shown = ("name", "value", "unit", "split", "n", "ci95")
    _, shipped = context.shipped()
    # A network that was trained elsewhere may have seen any of this data but what is kept for the end.
    rows = [] if shipped.facts.get("given") else artifact.facts["metrics"]
    known = [{key: row[key] for key in shown} for row in rows if row["split"] != "test"]
    return {
        "pipeline": common.name,
        "version": edgekd.__version__,
        "role": role,
        "key": artifact.key,
        "flavour": flavour,
        "heads": {head.output: {"task": head.task, "target": head.target} for head in heads},
        "labels": {name: names for name, names in labels.items() if name in {head.target for head in heads}},
        "accuracy": known,
        "preprocessing": preparation(common, model.inputs, raw=context.options(ExportStage).raw_input),
    }


def _samples(context: Context, options: ExportStage) -> _Samples:
    """Validation samples (training samples where there is no such split).

    Raises:
        ConfigError: raw frames are asked for, and the data has no images of uint8.
    """
    data = context.common.data
    table = data.load("validation" if data.counts().get("validation") else "train")
    rows = table.take(torch.arange(min(options.parity_samples, len(table))))
    world = make_world(context.common, tables={})
    raw = raw_images(context.common) if options.raw_input else ()
    normal = data.normalization()
    found = {name: affine(normal[name].scale, normal[name].mean, normal[name].std) for name in raw}
    return _Samples(feeds_of(world, rows.inputs, rows), feeds_of(world, rows.inputs, rows, raw), found)


@torch.no_grad()
def _outputs(model: Model, feeds: Arrays) -> Arrays:
    result = model.network(*(torch.from_numpy(feeds[name]) for name in model.inputs))
    return {name: value.numpy() for name, value in named_outputs(result, model.outputs).items()}


def _checked(
    context: Context,
    path: Path,
    role: str,
    flavour: str,
    model: Model,
    samples: _Samples,
    limits: ExportSettings | None = None,
) -> dict[str, Any]:
    """Facts of a file, after it proved to say what PyTorch says, within the stage's limits unless there are others.

    Raises:
        ParityError: it does not; the message names the first tensor that differs.
    """
    tasks = {head.output: head.task for head in context.common.heads}
    outputs = parity.run_reference(path, samples.file(model))
    found = parity.compare(outputs, _outputs(model, samples.network(model)), tasks)
    worst = min(found.agreement.values())
    context.tell(f"export: {path.name}  relative error {found.relative_error:.1e}  agreement {worst:.4f}")
    try:
        parity.require(path.name, found, exact=flavour == "f32", settings=limits or context.options(ExportStage))
    except ParityError as error:
        fork = _fork(path, model, samples)
        if fork is None:
            raise
        raise ParityError(f"{error.message}; {fork.words()}", hint=error.hint) from None
    facts = {"model": role, "flavour": flavour, "parity": found.facts()}
    if flavour in context.common.searched:
        misfits = find_misfits(path, samples.file(model))
        if misfits.tensors or misfits.nodes:
            context.tell(f"export: {path.name}  {len(misfits.tensors)} tensors do not fit float16")
        facts["misfits"] = misfits.facts()
    return facts


def _fork(path: Path, model: Model, samples: _Samples) -> Fork | None:
    """Where a file and its network part ways, by a few samples; None where all tensors that both have are alike."""
    found, limit = anchors_of(model, samples.network(model, FORK_SAMPLES))
    return first_fork(path, samples.file(model, FORK_SAMPLES), found, limit)
