"""Raw frames at the border: image inputs become uint8 NHWC, and layout and normalisation move into the graph.

Each such input, float32 (N, C, H, W) and normalised by the caller, becomes uint8 (N, H, W, C), normalised by the file:

    frame -> Cast to float32 -> Transpose to NCHW -> Mul scale / std -> Sub mean / std -> the network

The Cast comes first because TensorRT takes a uint8 input of a network only where nothing but a Cast reads it. Two
operations, not the three of `(x * scale - mean) / std`: both factors are rounded to float32 once, so a value is off by
the last bits of a float at most. Nothing behind them changes: every scale of a quantized graph stays as it was.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import NodeProto, TensorProto, numpy_helper

from edgekd.errors import ExportError
from edgekd.export.graphs import copied

_NODE = "preprocess"
_NORMALIZED = ".normalized"
_AXES = 4


@dataclass(frozen=True)
class Affine:
    """x * factor - offset, per channel: float32 (C,) or (1,) each."""

    factor: NDArray[np.float32]
    offset: NDArray[np.float32]


def affine(scale: float, mean: Sequence[float], std: Sequence[float]) -> Affine:
    """(x * scale - mean) / std in the form that stands in the graph."""
    divisor = np.asarray(std, dtype=np.float64)
    factor, offset = scale / divisor, np.asarray(mean, dtype=np.float64) / divisor
    return Affine(factor.astype(np.float32), offset.astype(np.float32))


def fuse(model: onnx.ModelProto, inputs: Mapping[str, Affine]) -> onnx.ModelProto:
    """A copy of a model whose named image inputs take raw frames.

    Raises:
        ExportError: one of them is not a float32 input of four axes.
    """
    fused = copied(model)
    graph = fused.graph
    given = {value.name: value for value in graph.input}
    nodes: list[NodeProto] = []
    for name, how in inputs.items():
        value = given.get(name)
        if value is None or value.type.tensor_type.elem_type != TensorProto.FLOAT or len(_dims(value)) != _AXES:
            raise ExportError(
                f"the input {name!r} cannot take raw frames: it is no float32 image (N, C, H, W)",
                hint="leave out `export.raw_input`",
            )
        _rename_readers(graph, name, name + _NORMALIZED)
        nodes += _prefix(graph, name, how)
        _retype(value, TensorProto.UINT8, (0, 2, 3, 1))
    behind = list(graph.node)
    del graph.node[:]
    graph.node.extend([*nodes, *behind])
    return fused


def raw_inputs(model: onnx.ModelProto) -> dict[str, str]:
    """Inputs that take raw frames, each with the name of the value that the network reads in its place."""
    ends = {node.output[0] for node in model.graph.node if node.name.startswith(f"{_NODE}/")}
    return {v.name: v.name + _NORMALIZED for v in model.graph.input if v.name + _NORMALIZED in ends}


def rewrite_behind(model: onnx.ModelProto, rewrite: Callable[[onnx.ModelProto], onnx.ModelProto]) -> onnx.ModelProto:
    """Rewrite a network behind its preprocessing, which stays as it is.

    A float16 flavour would otherwise normalise in float16, whose steps near 255 are as large as 1/8.
    """
    raw = raw_inputs(model)
    if not raw:
        return rewrite(model)
    bare, found = _apart(model, raw)
    return fuse(rewrite(bare), found)


def raw_frames(images: NDArray[Any]) -> NDArray[Any]:
    """Images as the data room holds them, uint8 (N, C, H, W), as a device's camera gives them: (N, H, W, C)."""
    assert images.dtype == np.uint8 and images.ndim == _AXES
    return np.ascontiguousarray(images.transpose(0, 2, 3, 1))


def _prefix(graph: onnx.GraphProto, name: str, how: Affine) -> list[NodeProto]:
    make, end = onnx.helper.make_node, name + _NORMALIZED
    values = [f"{name}.{step}" for step in ("float", "nchw", "scaled")]
    shifts = bool(np.any(how.offset))
    nodes = [
        make("Cast", [name], [values[0]], name=f"{_NODE}/{name}/cast", to=TensorProto.FLOAT),
        make("Transpose", [values[0]], [values[1]], name=f"{_NODE}/{name}/layout", perm=[0, 3, 1, 2]),
        make("Mul", [values[1], f"{name}.factor"], [values[2] if shifts else end], name=f"{_NODE}/{name}/scale"),
    ]
    graph.initializer.append(numpy_helper.from_array(how.factor.reshape(1, -1, 1, 1), f"{name}.factor"))
    if shifts:
        nodes.append(make("Sub", [values[2], f"{name}.offset"], [end], name=f"{_NODE}/{name}/shift"))
        graph.initializer.append(numpy_helper.from_array(how.offset.reshape(1, -1, 1, 1), f"{name}.offset"))
    return nodes


def _apart(model: onnx.ModelProto, raw: Mapping[str, str]) -> tuple[onnx.ModelProto, dict[str, Affine]]:
    """The network with float32 inputs, and what `fuse` needs to put its preprocessing back."""
    bare = copied(model)
    graph = bare.graph
    constants = {tensor.name: numpy_helper.to_array(tensor).reshape(-1) for tensor in graph.initializer}
    found = {}
    for value in graph.input:
        if value.name in raw:
            factor = constants[f"{value.name}.factor"]
            found[value.name] = Affine(factor, constants.get(f"{value.name}.offset", np.zeros_like(factor)))
            _retype(value, TensorProto.FLOAT, (0, 3, 1, 2))
    behind = [node for node in graph.node if not node.name.startswith(f"{_NODE}/")]
    del graph.node[:]
    graph.node.extend(behind)
    for name, inside in raw.items():
        _rename_readers(graph, inside, name)
    own = {f"{name}.{part}" for name in raw for part in ("factor", "offset")}
    kept = [tensor for tensor in graph.initializer if tensor.name not in own]
    del graph.initializer[:]
    graph.initializer.extend(kept)
    # Shapes that inference noted of values which are gone now.
    stays = [value for value in graph.value_info if value.name.rsplit(".", 1)[0] not in raw]
    del graph.value_info[:]
    graph.value_info.extend(stays)
    return bare, found


def _retype(value: onnx.ValueInfoProto, dtype: int, order: tuple[int, ...]) -> None:
    dims = [copied(dim) for dim in _dims(value)]
    value.type.tensor_type.elem_type = dtype
    del value.type.tensor_type.shape.dim[:]
    value.type.tensor_type.shape.dim.extend([dims[axis] for axis in order])


def _rename_readers(graph: onnx.GraphProto, old: str, new: str) -> None:
    for node in graph.node:
        for i, name in enumerate(node.input):
            if name == old:
                node.input[i] = new


def _dims(value: onnx.ValueInfoProto) -> Any:
    return value.type.tensor_type.shape.dim
