"""Which nodes of a float graph stay in float32 when the rest goes to half precision, and why.

float16 ends at 65504 and loses digits below 6.1e-05: what calibration data showed to leave that range stays, with all
that reads or writes it, and so do constants and scales that do not fit. bfloat16 has float32's range and 8 bits of
precision: normalisations, sums over many values, and the scales of quantization stay.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import NodeProto, TensorProto, numpy_helper

from edgekd.export.graphs import opset_of

LARGEST = 65504.0
TINY = 2.0**-14  # the smallest float16 with all its digits
_HALF_A_LEVEL = 0.5 / 127  # a scale that rounds by more moves its largest value by half a level
_COMPUTE = {"Conv", "ConvTranspose", "Gemm", "MatMul"}
# Inputs that are multiplied or divided by. A small addend, a bias, is lost beside what it is added to, and may be.
_FACTORS = {"Conv": (1,), "ConvTranspose": (1,), "Gemm": (0, 1), "MatMul": (0, 1), "Mul": (0, 1), "Div": (0, 1),
            "LayerNormalization": (1,), "InstanceNormalization": (1,), "GroupNormalization": (1,),
            "BatchNormalization": (1, 4), "Pow": (0,), "PRelu": (1,)}  # fmt: skip
QDQ = {"QuantizeLinear", "DequantizeLinear"}
# Under bfloat16: sums over many values and what divides by their spread. Engines fuse the casts around them.
_PRECISE = {"LayerNormalization", "InstanceNormalization", "GroupNormalization", "BatchNormalization",
            "RMSNormalization", "LpNormalization", "MeanVarianceNormalization", "Softmax", "LogSoftmax", "ReduceMean",
            "ReduceSum", "ReduceSumSquare", "ReduceL1", "ReduceL2", "ReduceLogSumExp", "GlobalAveragePool", "CumSum",
            "Range", "DFT", "STFT"}  # fmt: skip
# Inputs that are coordinates or sizes whatever ONNX allows for them: Resize's region and scales, a grid to sample at,
# regions. A step of float16 near 1000 pixels is half a pixel, one of bfloat16 is 4.
_FLOAT_INPUTS = {"Resize": {1, 2}, "GridSample": {1}, "RoiAlign": {1}}


@dataclass(frozen=True)
class HalfType:
    """One of the two: ONNX's number and word for it, and how float32 is rounded to it."""

    onnx_type: int
    onnx_name: str
    words: str
    round: Callable[[NDArray[Any]], NDArray[Any]]


def _to_f16(values: NDArray[Any]) -> NDArray[Any]:
    with np.errstate(over="ignore"):
        return values.astype(np.float16)


def _to_bf16(values: NDArray[Any]) -> NDArray[Any]:
    return values.astype(onnx.helper.tensor_dtype_to_np_dtype(TensorProto.BFLOAT16))


HALF = {
    "f16": HalfType(TensorProto.FLOAT16, "tensor(float16)", "float16", _to_f16),
    "bf16": HalfType(TensorProto.BFLOAT16, "tensor(bfloat16)", "bfloat16", _to_bf16),
}


@dataclass(frozen=True)
class Misfits:
    """What does not fit float16 on calibration data: tensors by name, nodes for what they sum inside; with reasons."""

    tensors: Mapping[str, str] = field(default_factory=dict)
    nodes: Mapping[str, str] = field(default_factory=dict)

    def renamed(self, names: Mapping[str, str]) -> Misfits:
        """The same of a graph in which tensors are called otherwise: new names by old ones."""
        return Misfits({names.get(name, name): why for name, why in self.tensors.items()}, self.nodes)

    def facts(self) -> dict[str, dict[str, str]]:
        """Plain values, as they stand in a stage's facts."""
        return {"tensors": dict(self.tensors), "nodes": dict(self.nodes)}


NOTHING = Misfits()


@dataclass(frozen=True)
class Params:
    """The types that ONNX allows for each input and output of a node."""

    inputs: tuple[frozenset[str], ...]
    outputs: tuple[frozenset[str], ...]


def key_of(node: NodeProto) -> str:
    """What a node is called: its name, or that of its first output."""
    return str(node.name or node.output[0])


def float_types(model: onnx.ModelProto) -> dict[str, int]:
    """Element type of every tensor of a graph, by ONNX's number."""
    graph = onnx.shape_inference.infer_shapes(model, strict_mode=True).graph
    values = (*graph.input, *graph.output, *graph.value_info)
    types = {v.name: v.type.tensor_type.elem_type for v in values if v.type.HasField("tensor_type")}
    return {**types, **{tensor.name: tensor.data_type for tensor in graph.initializer}}


def params_of(node: NodeProto, model: onnx.ModelProto) -> Params | None:
    """What ONNX's definition says of a node's types; None for an operation that is not ONNX's own."""
    if node.domain not in ("", "ai.onnx"):
        return None
    try:
        schema = onnx.defs.get_schema(node.op_type, opset_of(model), "")
    except onnx.defs.SchemaError:
        return None
    allowed = {c.type_param_str: frozenset(c.allowed_type_strs) for c in schema.type_constraints}

    def types(formal: Any, count: int, fixed: Iterable[int]) -> tuple[frozenset[str], ...]:
        names = [formal[min(i, len(formal) - 1)].type_str for i in range(count)]
        known = [allowed.get(name, frozenset((name,))) for name in names]
        return tuple(frozenset(("tensor(float)",)) if i in set(fixed) else k for i, k in enumerate(known))

    coordinates = _FLOAT_INPUTS.get(node.op_type, ())
    return Params(types(schema.inputs, len(node.input), coordinates), types(schema.outputs, len(node.output), ()))


def staying(model: onnx.ModelProto, kind: str, misfits: Misfits, types: Mapping[str, int]) -> dict[str, str]:
    """Names of the nodes that stay in float32, in the graph's order, each with its reason."""
    graph = model.graph
    constants = {t.name: numpy_helper.to_array(t) for t in graph.initializer if t.data_type == TensorProto.FLOAT}
    floats = {name for name, found in types.items() if found == TensorProto.FLOAT}
    sizes = _sizes(graph)
    found: dict[str, str] = {}
    for node in graph.node:
        if not floats & {*node.input, *node.output}:
            continue
        why = _no_form(node, model, kind, floats)
        if why is None and sizes & floats & set(node.output):
            why = "computes with sizes"
        if why is None:
            why = _imprecise(node) if kind == "bf16" else _out_of_range(node, misfits, constants)
        if why is not None:
            found[key_of(node)] = why
    if kind == "f16":
        _with_epsilons(graph, found, constants)
    _with_coordinates(graph, floats, found)
    _with_readers(graph, found)
    order = [key_of(node) for node in graph.node]
    return {name: found[name] for name in order if name in found}


def _no_form(node: NodeProto, model: onnx.ModelProto, kind: str, floats: set[str]) -> str | None:
    """Why ONNX has no such node in half precision."""
    if any(a.type in (onnx.AttributeProto.GRAPH, onnx.AttributeProto.GRAPHS) for a in node.attribute):
        return "holds a graph of its own"
    params = params_of(node, model)
    if params is None:
        return f"{node.domain}.{node.op_type} is not ONNX's own" if node.domain else f"{node.op_type} is unknown"
    half = HALF[kind]
    outputs = [p for name, p in zip(node.output, params.outputs, strict=True) if name in floats]
    inputs = [p for name, p in zip(node.input, params.inputs, strict=True) if name in floats]
    needed = outputs or inputs[:1]
    if any(a.name == "dtype" for a in node.attribute) or not all(half.onnx_name in p for p in needed):
        return f"ONNX has no {half.words} {node.op_type}"
    # ONNX wants all that it reads to be of one type.
    return "reads coordinates" if node.op_type == "RoiAlign" else None


def _imprecise(node: NodeProto) -> str | None:
    if node.op_type in QDQ:
        return "its scale needs more than bfloat16's 8 bits"
    return "sums or normalises: 8 bits are too few" if node.op_type in _PRECISE else None


def _out_of_range(node: NodeProto, misfits: Misfits, constants: Mapping[str, NDArray[Any]]) -> str | None:
    """Why a node cannot be float16: calibration data, a constant, a scale, an epsilon."""
    if key_of(node) in misfits.nodes:
        return misfits.nodes[key_of(node)]
    for name in (*node.output, *node.input):
        if name in misfits.tensors:
            return f"{name} {misfits.tensors[name]}"
    for index, name in enumerate(node.input):
        if name not in constants or index in _FLOAT_INPUTS.get(node.op_type, ()):
            continue
        if node.op_type in QDQ and index == 1:
            why = _scale_misfit(constants[name])
        else:
            why = _misfit(constants[name], multiplies=index in _FACTORS.get(node.op_type, ()))
        if why is not None:
            return f"its constant {name} {why}"
    for attribute in node.attribute:
        if attribute.name == "epsilon" and attribute.f > 0 and np.float16(attribute.f) == 0:
            return f"its epsilon {attribute.f:.0e} is 0 in float16"
        if attribute.type == onnx.AttributeProto.TENSOR and attribute.t.data_type == TensorProto.FLOAT:
            why = _misfit(numpy_helper.to_array(attribute.t), multiplies=False)
            if why is not None:
                return f"its value {why}"
    return None


def _misfit(values: NDArray[Any], *, multiplies: bool) -> str | None:
    """Values that become infinite; or factors all of which lose digits: a small one among large ones does no harm."""
    finite = np.abs(values[np.isfinite(values)])
    largest = float(finite.max()) if finite.size else 0.0
    if not np.isfinite(_to_f16(np.array(largest))):
        return f"reaches {largest:.1e}: float16 ends at {LARGEST:.0f}"
    return f"stays below {largest:.1e}: float16 loses digits there" if multiplies and 0 < largest < TINY else None


def _scale_misfit(scale: NDArray[Any]) -> str | None:
    moved = np.abs(_to_f16(scale).astype(np.float64) / np.maximum(scale, np.finfo(np.float32).tiny) - 1)
    if (moved > _HALF_A_LEVEL).any() and float(scale.min()) < TINY:
        return f"has a scale of {float(np.min(scale[moved > _HALF_A_LEVEL])):.1e}, too small for float16"
    return _misfit(scale, multiplies=False)


def _vanished_epsilon(node: NodeProto, constants: Mapping[str, NDArray[Any]]) -> str | None:
    """The constant of an addition that keeps a root or a divisor from 0, and would be 0 itself."""
    for name in node.input if node.op_type == "Add" else ():
        value = constants.get(name)
        if value is not None and value.size == 1 and float(value.item()) != 0 and _to_f16(value).item() == 0:
            return f"its constant {name} of {value.item():.0e} is 0 in float16"
    return None


def _sizes(graph: onnx.GraphProto) -> set[str]:
    """Tensors whose values come from shapes alone: half precision cannot count beyond 2048 (256)."""
    found: set[str] = set()
    constants = {tensor.name for tensor in graph.initializer}
    moved = {"Expand", "Reshape", "ConstantOfShape", "Slice", "Tile", "Pad", "Resize", "Unsqueeze", "Squeeze"}
    for node in graph.node:
        # What a shape only gives its form to is no size itself.
        names = [name for name in (node.input[:1] if node.op_type in moved else node.input) if name]
        sized = node.op_type in ("Shape", "Size") or (
            node.op_type != "ConstantOfShape" and any(n in found for n in names) and found | constants >= set(names)
        )
        if sized:
            found |= set(node.output)
    return found


def _with_epsilons(graph: onnx.GraphProto, found: dict[str, str], constants: Mapping[str, NDArray[Any]]) -> None:
    """An epsilon that float16 does not hold is added in float32, and read so."""
    for node in graph.node:
        why = _vanished_epsilon(node, constants)
        if why is not None:
            found.setdefault(key_of(node), why)
            for reader in graph.node:
                if set(node.output) & set(reader.input):
                    found.setdefault(key_of(reader), f"reads {node.output[0]}: {why.removeprefix('its ')}")


def _with_coordinates(graph: onnx.GraphProto, floats: set[str], found: dict[str, str]) -> None:
    """What makes coordinates makes them in float32: back to a layer that computes them, or to their quantization."""
    wanted: set[str] = set()
    for node in reversed(graph.node):
        wanted |= {n for i, n in enumerate(node.input) if i in _FLOAT_INPUTS.get(node.op_type, ()) and n in floats}
        if wanted & set(node.output) and node.op_type not in QDQ:
            found.setdefault(key_of(node), "makes coordinates")
            if node.op_type not in _COMPUTE:
                wanted |= floats & set(node.input)


def _with_readers(graph: onnx.GraphProto, found: dict[str, str]) -> None:
    """A layer whose 8-bit values are scaled in float32 computes in float32 too: a Cast between would unfuse it."""
    makers = {name: node for node in graph.node for name in node.output}
    for node in graph.node:
        if node.op_type not in _COMPUTE or key_of(node) in found:
            continue
        for name in node.input:
            maker = makers.get(name)
            if maker is not None and maker.op_type == "DequantizeLinear" and key_of(maker) in found:
                found[key_of(node)] = f"reads {key_of(maker)}, which is float"
                break
