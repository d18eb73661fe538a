"""One quantized model, several spellings: mechanical rewrites of a Q/DQ graph.

f32        float32
f16, bf16  half precision inside, float32 at the borders and where it is needed (half.py)
int8       int8, zero point 0: what TensorRT requires, fine in OpenVINO
uint8      uint8 activations (zero point 0 after a ReLU, else 128): what ONNX Runtime fuses on a CPU. Scales are the
           same, or half of them where int8 has every other value only
int8_f16   int8 Q/DQ with a float16 remainder: TensorRT's int8
"""

from __future__ import annotations

from collections.abc import Collection, Mapping

import numpy as np
import onnx
from onnx import NodeProto, TensorProto, numpy_helper

from edgekd.export.graphs import copied, drop_unused, read_nodes

# Operations that hand values on unchanged, so that a tensor after a ReLU is still not negative behind them.
_KEEP_SIGN = {"MaxPool", "AveragePool", "GlobalAveragePool", "GlobalMaxPool", "Reshape", "Flatten", "Transpose",
              "ReduceMean", "ReduceMax", "Squeeze", "Unsqueeze", "Identity", "Concat", "Slice", "Split",
              "QuantizeLinear", "DequantizeLinear"}  # fmt: skip
_MOST = np.iinfo(np.uint8).max
_NOT_NEGATIVE = {"Relu", "Sigmoid", "Softmax", "HardSigmoid"}


def to_uint8(model: onnx.ModelProto, half_steps: Collection[float]) -> onnx.ModelProto:
    """The int8 flavour with uint8 activations: stored values shifted by their zero point.

    Args:
        half_steps: scales that become half of what they are, zero point 0: `QuantizedNetwork.half_steps` says which.

    Weights get zero points of their own: ONNX Runtime's way around saturating processors fails on shared ones. A ReLU6
    is cut in uint8 (`_cut_later`).
    """
    model = copied(model)
    graph = model.graph
    constants = {tensor.name: tensor for tensor in graph.initializer}
    producers = {name: node for node in graph.node for name in node.output}
    shifted: dict[str, int] = {}
    halved = _halves(graph, half_steps, constants)
    for node in graph.node:
        if node.op_type == "QuantizeLinear" and node.input[0] not in constants:
            from_zero = node.input[1] in halved or _never_negative(node.input[0], producers, constants)
            zero_point = 0 if from_zero else 128
            shifted[node.output[0]] = zero_point
            node.input[1] = halved.get(node.input[1], node.input[1])
            node.input[2] = _byte(graph, np.uint8(zero_point))
    for node in graph.node:
        if node.op_type == "DequantizeLinear" and node.input[0] in shifted:
            node.input[1:] = producers[node.input[0]].input[1:]  # the scale and zero point of its pair
        elif node.op_type == "DequantizeLinear" and node.input[0] in constants and len(node.input) > 2:
            own = copied(constants[node.input[2]])
            own.name = f"{node.input[0]}.zero_point"
            graph.initializer.append(own)
            node.input[2] = own.name
    _cut_later(graph, shifted, constants)
    drop_unused(graph)
    del graph.value_info[:]
    return onnx.shape_inference.infer_shapes(model, strict_mode=True)


def _halves(graph: onnx.GraphProto, half_steps: Collection[float], constants: dict[str, TensorProto]) -> dict[str, str]:
    """Add half of each of those scales that a graph has; the new names by the old."""
    found = {}
    for name in dict.fromkeys(node.input[1] for node in graph.node if node.op_type == "QuantizeLinear"):
        scale = numpy_helper.to_array(constants[name]) if name in constants else np.empty(0)
        if scale.size == 1 and float(scale) in half_steps:
            found[name] = f"{name}.half"
            constants[found[name]] = numpy_helper.from_array(scale / scale.dtype.type(2), found[name])
            graph.initializer.append(constants[found[name]])
    return found


def _cut_later(graph: onnx.GraphProto, shifted: Mapping[str, int], constants: Mapping[str, TensorProto]) -> None:
    """Turn a Clip to 0 .. m before a QuantizeLinear of zero point 0 into a ReLU, and cut at round(m / scale) after it.

    Rounding keeps the order, so every value stays. In float, ONNX Runtime fuses the Clip with its convolution, which
    then runs in float; a ReLU it leaves to the saturation of uint8.
    """
    readers: dict[str, list[NodeProto]] = {}
    for node in graph.node:
        for name in node.input:
            readers.setdefault(name, []).append(node)
    results = {value.name for value in graph.output}
    cuts: dict[str, NodeProto] = {}
    for clip in graph.node:
        most = _clips_at(clip, constants)
        pairs = readers.get(clip.output[0], []) if most is not None and clip.output[0] not in results else []
        scales = [constants.get(node.input[1]) for node in pairs]
        if not pairs or any(scale is None or scale.dims for scale in scales):
            continue
        if any(shifted.get(node.output[0]) != 0 for node in pairs):
            continue
        del clip.input[1:]
        clip.op_type = "Relu"
        for node, scale in zip(pairs, scales, strict=True):
            level = np.rint(np.float32(most) / numpy_helper.to_array(scale).astype(np.float32))
            if level < _MOST:
                whole = f"{node.output[0]}.whole"
                limits = [_byte(graph, np.uint8(value)) for value in (0, level)]
                cuts[whole] = onnx.helper.make_node("Clip", [whole, *limits], [node.output[0]], f"{node.name}.cut")
                node.output[0] = whole
    ordered = [part for node in graph.node for part in (node, *(cuts[name] for name in node.output if name in cuts))]
    del graph.node[:]
    graph.node.extend(ordered)


def _clips_at(node: NodeProto, constants: Mapping[str, TensorProto]) -> float | None:
    """Where a Clip to 0 .. m ends; None for any other node."""
    ends = [constants.get(name) for name in node.input[1:]] if node.op_type == "Clip" else []
    if len(ends) != 2 or None in ends:
        return None
    low, high = (float(numpy_helper.to_array(end)) for end in ends)
    return high if low == 0 < high else None


def quantize_skips_only(model: onnx.ModelProto) -> onnx.ModelProto:
    """Take the Q/DQ pair off that input of each residual Add which comes straight from a convolution of the block.

    Only the skip then comes in 8 bits, and the sum can be fused into the convolution, which writes it from its own
    accumulators: what NVIDIA advises for TensorRT. Where both inputs come from convolutions, the block is the side with
    more of them. Every scale that stays is as it was. An Add without such a pair stays as it is.
    """
    model = copied(model)
    graph = model.graph
    producers = {name: node for node in graph.node for name in node.output}
    depth: dict[str, int] = {}
    for node in graph.node:
        longest = max((depth.get(name, 0) for name in node.input), default=0) + (node.op_type == "Conv")
        depth.update((name, longest) for name in node.output)
    for node in graph.node:
        before = [_before_pair(name, producers) for name in node.input] if node.op_type == "Add" else []
        if len(before) != 2 or None in before:
            continue
        straight = [i for i, x in enumerate(before) if x in producers and producers[x].op_type == "Conv"]
        if straight:
            block = max(straight, key=lambda i: depth[str(before[i])])
            node.input[block] = str(before[block])
    kept = read_nodes(list(graph.node), {value.name for value in graph.output})
    del graph.node[:]
    graph.node.extend(kept)
    drop_unused(graph)
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


def _byte(graph: onnx.GraphProto, value: np.uint8) -> str:
    name = f"u8_{int(value)}"
    if all(tensor.name != name for tensor in graph.initializer):
        graph.initializer.append(numpy_helper.from_array(np.array(value, dtype=np.uint8), name))
    return name


def _before_pair(name: str, producers: dict[str, NodeProto]) -> str | None:
    """The tensor that a Q/DQ pair quantizes, by the pair's output; None where there is no pair."""
    for kind in ("DequantizeLinear", "QuantizeLinear"):
        node = producers.get(name)
        if node is None or node.op_type != kind:
            return None
        name = node.input[0]
    return name
