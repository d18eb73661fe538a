"""Three small networks of fixed weights and shapes, as ONNX files: about 30 us, 100 us and 3 ms a call on one core."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper


@dataclass(frozen=True)
class Shape:
    """`depth` convolutions of 3x3 from `channels` to `channels` on `pixels` x `pixels`, after one that brings them."""

    channels: int
    depth: int
    pixels: int


SHAPES = {"30 us": Shape(8, 2, 12), "100 us": Shape(16, 4, 20), "3 ms": Shape(64, 6, 24)}
CLASSES = 10


def write_network(name: str, path: Path) -> Path:
    """Write the network of that size; the same bytes every time."""
    shape, rng = SHAPES[name], np.random.default_rng(0)
    weights, nodes, value = [], [], "x"
    for layer in range(shape.depth + 1):
        ins = 3 if layer == 0 else shape.channels
        kernel = rng.normal(0, (2 / (9 * ins)) ** 0.5, (shape.channels, ins, 3, 3)).astype(np.float32)
        weights.append(numpy_helper.from_array(kernel, f"w{layer}"))
        nodes.append(helper.make_node("Conv", [value, f"w{layer}"], [f"c{layer}"], pads=[1, 1, 1, 1]))
        nodes.append(helper.make_node("Relu", [f"c{layer}"], [f"r{layer}"]))
        value = f"r{layer}"
    weights.append(numpy_helper.from_array(rng.normal(0, 0.1, (shape.channels, CLASSES)).astype(np.float32), "head"))
    nodes.append(helper.make_node("GlobalAveragePool", [value], ["pooled"]))
    nodes.append(helper.make_node("Flatten", ["pooled"], ["flat"]))
    nodes.append(helper.make_node("MatMul", ["flat", "head"], ["y"]))
    graph = helper.make_graph(
        nodes,
        name.replace(" ", "_"),
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 3, shape.pixels, shape.pixels])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, CLASSES])],
        weights,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    onnx.checker.check_model(model)
    path.write_bytes(model.SerializeToString(deterministic=True))
    return path
