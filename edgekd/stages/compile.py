"""compile: one build for each target, precision and network, with the precision that each layer executes in."""

from __future__ import annotations

import json
import platform
import shutil
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgekd.bench.remote import Made, Wish, compile_on
from edgekd.bench.targets.protocol import Place
from edgekd.errors import CompileError
from edgekd.export.card import CARD, PREDICT, write_card
from edgekd.export.flavours import quantize_skips_only, tensorrt_violations
from edgekd.export.graphs import opset_of
from edgekd.export.half import Kept, to_half
from edgekd.export.metadata import stamp
from edgekd.export.onnx_file import load, save
from edgekd.export.preprocessing import raw_inputs, rewrite_behind
from edgekd.export.stays import Misfits
from edgekd.files import write_atomic
from edgekd.runtimes import openvino_blob, tensorrt_manifest
from edgekd.runtimes.onnxruntime_providers import full_name
from edgekd.runtimes.openvino import HINT
from edgekd.runtimes.protocol import Build, Layer
from edgekd.runtimes.registry import runtime
from edgekd.runtimes.timing_cache import usual_place
from edgekd.stages.context import Context, shipped_by
from edgekd.stages.places import Places
from edgekd.stages.precision import REWRITTEN, origin_of
from edgekd.stages.settings import CompileStage, TargetSettings
from edgekd.store import Artifact

if TYPE_CHECKING:
    from onnx import ModelProto

_MADE = "made.json"
_EIGHT_BIT = {"int8", "uint8"}
# What lies beside a model without being part of it.
_BESIDE = {"layers.json", CARD, PREDICT, openvino_blob.BLOB, openvino_blob.MANIFEST, HINT, tensorrt_manifest.MANIFEST}
ENGINE_OPTIONS = {"compute_capabilities", "max_batch", "opt_batch", "workspace_bytes", "optimization_level",
                  "timing_cache", "hardware_compatibility", "version_compatible"}  # fmt: skip


@dataclass(frozen=True)
class Order:
    """One build that is wanted: network, precision, target."""

    target: str
    settings: TargetSettings
    model: str
    precision: str
    shipped: bool = True

    @property
    def folder(self) -> str:
        """`<target>.<precision>`, with the network's role between for the one that is there to be compared with."""
        return ".".join([self.target, *([] if self.shipped else [self.model]), self.precision])


@dataclass(frozen=True)
class Source:
    """The ONNX file that a build is made of, the nodes in it that stay float, and the opset it is written in."""

    path: Path
    kept: list[Kept]
    opset: int


def run(context: Context) -> None:
    """Compile every build; facts["builds"] describes them in order."""
    export = context.inputs["export"]
    builds = []
    with Places(context.common.targets) as places:
        for order in orders(context, export):
            where = f" on {order.settings.host}" if order.settings.compiles_there else ""
            context.tell(f"compile: {order.folder}{where}")
            builds.append(_build(context, order, export, places))
    context.draft.facts.update(builds=builds)


def orders(context: Context, export: Artifact) -> Iterator[Order]:
    """What to build: each target's precisions of the shipped network, its float build, the teacher's to compare with.

    A float build is always made: without it nobody could say whether 8 bits paid. The teacher's has the widest float
    precision of the target, which rounds least.
    """
    made = {facts["model"] for facts in export.facts["files"].values()}
    shipped = context.common.roles[shipped_by(context.common.roles)]
    for name, target in context.common.targets.items():
        if "teacher" in made and shipped != "teacher":
            yield Order(name, target, "teacher", target.widest, shipped=False)
        for precision in target.precisions:
            yield Order(name, target, "quantized" if precision == "int8" else shipped, precision)


def _build(context: Context, order: Order, export: Artifact, places: Places) -> dict[str, Any]:
    engine = runtime(order.settings.runtime)
    folder = context.draft.folder / order.folder
    folder.mkdir(parents=True)
    flavour = engine.flavour(order.precision)
    source = source_of(order, flavour, export, folder)
    made = _made(context, order, source, folder, places.of(order.target) if order.settings.compiles_there else None)
    context.draft.record[order.folder] = {"seconds": made.seconds}
    write_card(folder, source.path, _engine(order, made.build))
    if source.path.parent == folder:
        source.path.unlink()
    (folder / "layers.json").write_text(json.dumps([vars(layer) for layer in made.build.layers], indent=1))
    more = {"opset": source.opset, "kept_float": [vars(one) for one in source.kept]}
    return _facts(order, flavour, made, folder) | more


def _made(context: Context, order: Order, source: Source, folder: Path, place: Place | None) -> Made:
    if place is not None:
        return _made_there(context, order, source, folder, place)
    started, options = time.monotonic(), _options(context, order)
    engine, device = runtime(order.settings.runtime), order.settings.device_name
    build = engine.compile(source.path, folder, device=device, threads=1, options=options)
    return Made(build, platform.machine(), time.monotonic() - started)


def _made_there(context: Context, order: Order, source: Source, folder: Path, place: Place) -> Made:
    """Made on the target's device. TensorRT's timing cache is kept here, for the device keeps nothing.

    What came back is kept until the stage is done: a device that drops off need not build it again.
    """
    kept, beside = context.work / order.folder, shutil.ignore_patterns(_MADE, source.path.name)
    if (kept / _MADE).is_file():
        shutil.copytree(kept, folder, ignore=beside, dirs_exist_ok=True)
        return Made.of(json.loads((kept / _MADE).read_text()))
    options, timings = _options(context, order), None
    if order.settings.runtime == "tensorrt":
        gpu = place.about["machine"]["gpu"] or place.about["board"]
        given = options["timing_cache"]
        timings = Path(given) if given else usual_place(place.about["engines"]["tensorrt"], gpu)
    settings, limit_s = order.settings, context.options(CompileStage).time_limit_s
    wish = Wish(order.folder, settings.runtime, settings.device_name, order.precision, options, timings)
    made = compile_on(place, wish, source.path, folder, limit_s=limit_s)
    shutil.copytree(folder, kept, ignore=beside, dirs_exist_ok=True)
    write_atomic(kept / _MADE, json.dumps(made.as_dict()))
    return made


def _engine(order: Order, build: Build) -> dict[str, Any]:
    """What of a build the one who runs it has to know."""
    settings, device = order.settings, order.settings.device_name
    told: dict[str, Any] = {"max_batch": settings.max_batch} if settings.is_tensorrt else {}
    if settings.runtime == "openvino":
        told["hint"] = order.precision if order.precision in ("f16", "bf16") else "f32"
    if settings.runtime == "onnxruntime":
        device = full_name(device)
    known = {"runtime": settings.runtime, "device": device, "precision": order.precision, "file": build.file}
    return {**known, **told, "built_with": dict(build.facts)}


def _options(context: Context, order: Order) -> dict[str, Any]:
    """What the engine is told beside its device; a path is that of the pipeline file."""
    found = order.settings.model_dump(include=ENGINE_OPTIONS) | {"precision": order.precision}
    if found["timing_cache"] is not None:
        found["timing_cache"] = str(context.common.base / found["timing_cache"])
    return found


def source_of(order: Order, flavour: str, export: Artifact, folder: Path) -> Source:
    """The ONNX file of a flavour; half precision is written here from its origin, into `folder`."""
    origin, kept = origin_of(flavour), list[Kept]()
    name = next(
        name
        for name, facts in export.facts["files"].items()
        if facts["model"] == order.model and facts["flavour"] == origin
    )
    if origin == flavour:
        source, opset = export.path(name), int(export.facts["opset"])
    else:
        source = folder / f"source.{flavour}.onnx"
        facts, kind = export.facts["files"][name], REWRITTEN[flavour][1]
        model = load(export.path(name))
        misfits = Misfits(**facts["misfits"]) if kind == "f16" else Misfits()
        # Found in the file with its preprocessing; the network without it reads its inputs by their own names.
        misfits = misfits.renamed({inside: given for given, inside in raw_inputs(model).items()})

        def half(model: ModelProto) -> ModelProto:
            if origin == "int8" and order.settings.residual == "skip":
                model = quantize_skips_only(model)
            model, stay = to_half(model, kind, misfits)
            kept.extend(stay)
            return model

        rewritten = rewrite_behind(model, half)
        opset = opset_of(rewritten)
        stamp(rewritten, {"flavour": flavour, "opset": opset})
        save(rewritten, source)
    if order.settings.is_tensorrt:
        refuse_for_tensorrt(source)
    return Source(source, kept, opset)


def refuse_for_tensorrt(path: Path) -> None:
    """Our own check before TensorRT's parser, which lets a uint8 graph pass that TensorRT documents as unsupported.

    Raises:
        CompileError: the graph breaks TensorRT's rules for Q/DQ.
    """
    broken = tensorrt_violations(load(path))
    if broken:
        raise CompileError(
            f"{path.name} is not for TensorRT: {broken[0]}", hint="give it the int8 flavour: int8, zero points 0"
        )


def _facts(order: Order, flavour: str, made: Made, folder: Path) -> dict[str, Any]:
    build = made.build
    return {
        "target": order.target,
        "runtime": order.settings.runtime,
        "device": order.settings.device_name,
        "max_batch": order.settings.max_batch if order.settings.is_tensorrt else None,
        "precision": order.precision,
        "model": order.model,
        "origin": origin_of(flavour),
        "folder": order.folder,
        "file": build.file,
        "size_bytes": sum(p.stat().st_size for p in folder.iterdir() if p.name not in _BESIDE),
        "inputs": [info.as_dict() for info in build.inputs],
        "outputs": [info.as_dict() for info in build.outputs],
        "built_on": " ".join([made.arch, *(f"{k} {v}" for k, v in sorted(build.facts.items()) if v)]),
        "executed_precision": count_precisions(build.layers),
        "executed_convolutions": count_precisions(layer for layer in build.layers if "conv" in layer.kind.lower()),
    }


def count_precisions(layers: Any) -> dict[str, int]:
    """Layers by executed precision; both 8-bit signs count as int8."""
    counts: dict[str, int] = {}
    layer: Layer
    for layer in layers:
        name = "int8" if layer.precision in _EIGHT_BIT else layer.precision
        counts[name] = counts.get(name, 0) + 1
    return counts
