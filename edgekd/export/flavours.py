"""One quantized model, several spellings: mechanical rewrites of a Q/DQ graph that keep every scale.

f32        float32
f16        float16 tensors inside, float32 at the borders: TensorRT's baseline
int8       int8, zero point 0: what TensorRT requires, fine in OpenVINO
uint8      uint8 activations (zero point 0 after a ReLU, else 128): what ONNX Runtime fuses on a CPU
int8_f16   int8 Q/DQ with a float16 remainder: TensorRT's int8
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TypeVar

import numpy as np
import onnx
from onnx import NodeProto, TensorProto, numpy_helper

from edgekd.errors import ExportError

M = TypeVar("M", onnx.ModelProto, NodeProto)
# Operations that hand values on unchanged, so that a tensor after a ReLU is still not negative behind them.
_KEEP_SIGN = {"MaxPool", "AveragePool", "GlobalAveragePool", "GlobalMaxPool", "Reshape", "Flatten", "Transpose",
              "ReduceMean", "ReduceMax", "Squeeze", "Unsqueeze", "Identity", "Concat", "Slice", "Split",
              "QuantizeLinear", "DequantizeLinear"}  # fmt: skip
# Inputs that ONNX defines as float32 whatever the data is: Resize's region and scales.
_FLOAT_INPUTS = {"Resize": (1, 2), "Upsample": (1,)}
_NOT_NEGATIVE = {"Relu", "Sigmoid", "Softmax", "HardSigmoid"}


def to_uint8(model: onnx.ModelProto) -> onnx.ModelProto:
    """The int8 flavour with uint8 activations: same scales, stored values shifted by their zero point."""
    model = _copy(model)
    graph = model.graph
    constants = {tensor.name: tensor for tensor in graph.initializer}
    producers = {name: node for node in graph.node for name in node.output}
    shifted: dict[str, int] = {}
    for node in graph.node:
        if node.op_type == "QuantizeLinear" and node.input[0] not in constants:
            zero_point = 0 if _never_negative(node.input[0], producers, constants) else 128
            shifted[node.output[0]] = zero_point
            node.input[2] = _zero_point(graph, np.uint8(zero_point))
    for node in graph.node:
        if node.op_type == "DequantizeLinear" and node.input[0] in shifted:
            node.input[2] = _zero_point(graph, np.uint8(shifted[node.input[0]]))
    _drop_unused(graph)
    del graph.value_info[:]
    return onnx.shape_inference.infer_shapes(model, strict_mode=True)


def to_f16(model: onnx.ModelProto) -> onnx.ModelProto:
    """Float16 inside, float32 at inputs and outputs; Q/DQ pairs keep their int8 grid and get float16 scales.

    Raises:
        ExportError: a weight or scale does not fit float16.
    """
    model = _copy(model)
    graph = model.graph
    float_only = {
        node.input[i] for node in graph.node for i in _FLOAT_INPUTS.get(node.op_type, ()) if i < len(node.input)
    }
    for tensor in graph.initializer:
        if tensor.data_type == TensorProto.FLOAT and tensor.name not in float_only:
            tensor.CopyFrom(numpy_helper.from_array(_half(numpy_helper.to_array(tensor), tensor.name), tensor.name))
    for node in graph.node:
        _half_attributes(node)
    nodes = list(graph.node)
    casts_in = [_cast_input(nodes, value.name) for value in graph.input if _is_float(value)]
    casts_out = [_cast_output(nodes, value.name) for value in graph.output if _is_float(value)]
    del graph.node[:]
    graph.node.extend([*casts_in, *nodes, *casts_out])
    del graph.value_info[:]
    return onnx.shape_inference.infer_shapes(model, strict_mode=True)


def tensorrt_violations(model: onnx.ModelProto) -> list[str]:
    """What TensorRT refuses (or would silently not do) in a Q/DQ graph: its own check, before its parser sees it."""
    constants = {tensor.name: tensor for tensor in model.graph.initializer}
    found = []
    for node in model.graph.node:
        if node.op_type not in {"QuantizeLinear", "DequantizeLinear"} or len(node.input) < 3 or not node.input[2]:
            continue
        zero = constants.get(node.input[2])
        if zero is None:
            found.append(f"{node.name}: the zero point is not a constant")
        elif zero.data_type != TensorProto.INT8:
            found.append(f"{node.name}: type {TensorProto.DataType.Name(zero.data_type)}, TensorRT takes INT8 only")
        elif np.any(numpy_helper.to_array(zero)):
            found.append(f"{node.name}: a zero point other than 0")
    found += [f"{n.name}: unknown domain {n.domain}" for n in model.graph.node if n.domain not in ("", "ai.onnx")]
    return found


def _copy(message: M) -> M:
    copied = type(message)()
    copied.CopyFrom(message)
    return copied


def _never_negative(name: str, producers: dict[str, NodeProto], constants: dict[str, TensorProto]) -> bool:
    node = producers.get(name)
    if node is None:
        return name in constants and not np.any(numpy_helper.to_array(constants[name]) < 0)
    if node.op_type in _NOT_NEGATIVE:
        return True
    if node.op_type == "Clip":
        lower = constants.get(node.input[1]) if len(node.input) > 1 else None
        if lower is not None and float(numpy_helper.to_array(lower)) >= 0:
            return True
        return _never_negative(node.input[0], producers, constants)
    if node.op_type == "Concat":
        return all(_never_negative(source, producers, constants) for source in node.input)
    return node.op_type in _KEEP_SIGN and _never_negative(node.input[0], producers, constants)


def _zero_point(graph: onnx.GraphProto, value: np.uint8) -> str:
    name = f"zero_point_u8_{int(value)}"
    if all(tensor.name != name for tensor in graph.initializer):
        graph.initializer.append(numpy_helper.from_array(np.array(value, dtype=np.uint8), name))
    return name


def _drop_unused(graph: onnx.GraphProto) -> None:
    used = {name for node in graph.node for name in node.input} | {value.name for value in graph.output}
    kept = [tensor for tensor in graph.initializer if tensor.name in used]
    del graph.initializer[:]
    graph.initializer.extend(kept)


def _half(values: np.ndarray, name: str) -> np.ndarray:
    with np.errstate(over="ignore"):
        half = values.astype(np.float16)
    if not np.isfinite(half).all():
        raise ExportError(f"{name} does not fit float16", hint="use precision f32 for this network")
    if name.endswith("scale") and np.any(half == 0):
        raise ExportError(f"the scale {name} is too small for float16", hint="use precision f32 for this network")
    return half


def _half_attributes(node: NodeProto) -> None:
    for attribute in node.attribute:
        if attribute.type == onnx.AttributeProto.TENSOR and attribute.t.data_type == TensorProto.FLOAT:
            attribute.t.CopyFrom(numpy_helper.from_array(_half(numpy_helper.to_array(attribute.t), node.name)))
        if node.op_type == "Cast" and attribute.name == "to" and attribute.i == TensorProto.FLOAT:
            attribute.i = TensorProto.FLOAT16


def _is_float(value: onnx.ValueInfoProto) -> bool:
    return value.type.tensor_type.elem_type == TensorProto.FLOAT


def _cast_input(nodes: Iterable[NodeProto], name: str) -> NodeProto:
    inside = _rename(nodes, name)
    return onnx.helper.make_node("Cast", [name], [inside], name=f"cast_{name}", to=TensorProto.FLOAT16)


def _cast_output(nodes: Iterable[NodeProto], name: str) -> NodeProto:
    inside = _rename(nodes, name)
    return onnx.helper.make_node("Cast", [inside], [name], name=f"cast_{name}", to=TensorProto.FLOAT)


def _rename(nodes: Iterable[NodeProto], name: str) -> str:
    """Give a tensor of the border its float16 name inside the graph, wherever it is made and read."""
    inside = f"{name}_f16"
    for node in nodes:
        for names in (node.input, node.output):
            for i, found in enumerate(names):
                if found == name:
                    names[i] = inside
    return inside
