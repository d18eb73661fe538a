"""What does not fit float16, found by running a float graph on real data with every tensor inside shown.

A tensor does not fit when it comes near float16's end (a quarter of 65504: other data may reach further), when it is
not finite, when all of it lies where float16 loses digits, or when values that are divided by, or under a root or a
logarithm, would become 0. A sum inside a node counts too: a mean of a thousand values near 100 is 100, but an engine
that adds them up in float16 meets 1e5. Convolutions and matrix products are judged by their outputs: engines add their
products up in float32.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
from numpy.typing import NDArray
from onnx import NodeProto, TensorProto, numpy_helper

from edgekd.export.forks import with_outputs
from edgekd.export.onnx_file import load
from edgekd.export.stays import LARGEST, TINY, Misfits, float_types, key_of

HEADROOM = 4.0
_LIMIT = LARGEST / HEADROOM
_ROWS = 8  # at a time: every tensor of the network is held
Array = NDArray[Any]
Sum = Callable[[NodeProto, Array, Mapping[str, Array]], Array]


def find_misfits(path: Path, feeds: Mapping[str, Array]) -> Misfits:
    """Tensors and sums of a float (or Q/DQ) graph that do not fit float16 on these samples, each with its reason."""
    model = load(path)
    types = float_types(model)
    made = [name for node in model.graph.node for name in node.output if types.get(name) == TensorProto.FLOAT]
    session = _session(with_outputs(model, made))
    constants = {t.name: numpy_helper.to_array(t) for t in model.graph.initializer}
    tensors, sums = _Extent(), _Extent()
    floats = [name for name in feeds if types.get(name) == TensorProto.FLOAT]
    for start in range(0, len(next(iter(feeds.values()))), _ROWS):
        rows = {name: values[start : start + _ROWS] for name, values in feeds.items()}
        shown = {**rows, **dict(zip(made, session.run(made, rows), strict=True))}
        for name in (*floats, *made):
            tensors.add(name, shown[name])
        for node in model.graph.node:
            _look_inside(node, {**constants, **shown}, tensors, sums)
    nodes = {name: f"sums up to {value:.1e} inside" for name, value in sums.largest.items() if not value <= _LIMIT}
    return Misfits(tensors.misfits(), nodes)


class _Extent:
    """The largest absolute value of each tensor so far, and whether small values of it would vanish."""

    def __init__(self) -> None:
        self.largest: dict[str, float] = {}
        self.vanishing: dict[str, float] = {}

    def add(self, name: str, values: Array) -> None:
        largest = float(np.abs(values).max()) if values.size else 0.0
        known = self.largest.get(name, 0.0)
        self.largest[name] = max(known, largest) if np.isfinite(largest) and np.isfinite(known) else np.inf

    def misfits(self) -> dict[str, str]:
        found = {}
        for name, value in self.largest.items():
            if not np.isfinite(value):
                found[name] = "is not finite"
            elif value > _LIMIT:
                found[name] = f"reaches {value:.1e}: float16 ends at {LARGEST:.0f}"
            elif 0 < value < TINY:
                found[name] = f"stays below {value:.1e}: float16 loses digits there"
            elif name in self.vanishing:
                found[name] = f"has {self.vanishing[name]:.1e}, which is 0 in float16, where 0 will not do"
        return found


@np.errstate(all="ignore")  # what does not fit is what is looked for
def _look_inside(node: NodeProto, values: Mapping[str, Array], tensors: _Extent, sums: _Extent) -> None:
    """Sums that a node makes inside, and inputs of it that must not become 0."""
    if node.op_type in _SUMS and node.input[0] in values:
        sums.add(key_of(node), _SUMS[node.op_type](node, values[node.input[0]].astype(np.float64), values))
    for index in _NO_ZEROS.get(node.op_type, ()):
        x = values.get(node.input[index])
        if x is None or x.dtype != np.float32:
            continue
        small = np.abs(x[(x != 0) & (x.astype(np.float64).astype(np.float16, casting="unsafe") == 0)])
        if small.size:
            name = node.input[index]
            tensors.vanishing[name] = max(float(small.max()), tensors.vanishing.get(name, 0.0))


_NO_ZEROS = {"Div": (1,), "Reciprocal": (0,), "Log": (0,), "Sqrt": (0,)}


def _attribute(node: NodeProto, name: str, default: Any) -> Any:
    return next((onnx.helper.get_attribute_value(a) for a in node.attribute if a.name == name), default)


def _axes(node: NodeProto, x: Array, values: Mapping[str, Array]) -> tuple[int, ...]:
    """Axes of a Reduce: an attribute, or since opset 18 an input."""
    given = values.get(node.input[1]) if len(node.input) > 1 and node.input[1] else None
    axes = _attribute(node, "axes", ()) if given is None else np.atleast_1d(given).tolist()
    return tuple(int(axis) for axis in axes) or tuple(range(x.ndim))


def _sum_of_sizes(node: NodeProto, x: Array, values: Mapping[str, Array]) -> Array:
    return np.asarray(np.abs(x).sum(_axes(node, x, values)))


def _sum_of_squares(node: NodeProto, x: Array, values: Mapping[str, Array]) -> Array:
    return np.asarray(np.square(x).sum(_axes(node, x, values)))


def _sum_of_exponentials(node: NodeProto, x: Array, values: Mapping[str, Array]) -> Array:
    return np.asarray(np.exp(x).sum(_axes(node, x, values)))


def _softmax(node: NodeProto, x: Array, values: Mapping[str, Array]) -> Array:
    return np.asarray(x.shape[_attribute(node, "axis", -1)])  # the largest term is 1


def _spread(axes: Callable[[NodeProto, Array], tuple[int, ...]]) -> Sum:
    """Squares of what differs from the mean, summed as a normalisation does."""

    def total(node: NodeProto, x: Array, values: Mapping[str, Array]) -> Array:
        over = axes(node, x)
        return np.asarray(np.square(x - x.mean(over, keepdims=True)).sum(over))

    return total


def _group_spread(node: NodeProto, x: Array, values: Mapping[str, Array]) -> Array:
    groups = x.reshape(len(x), int(_attribute(node, "num_groups", 1)), -1)
    return np.asarray(np.square(groups - groups.mean(2, keepdims=True)).sum(2))


def _last_axes(node: NodeProto, x: Array) -> tuple[int, ...]:
    return tuple(range(int(_attribute(node, "axis", -1)) % x.ndim, x.ndim))


def _places(node: NodeProto, x: Array) -> tuple[int, ...]:
    return tuple(range(2, x.ndim))


def _pooled(node: NodeProto, x: Array, values: Mapping[str, Array]) -> Array:
    window = int(np.prod(_attribute(node, "kernel_shape", [1])))
    return np.asarray(np.abs(x).max() * window)


def _pooled_whole(node: NodeProto, x: Array, values: Mapping[str, Array]) -> Array:
    return np.asarray(np.abs(x).sum(_places(node, x)))


def _normed(node: NodeProto, x: Array, values: Mapping[str, Array]) -> Array:
    return np.asarray(np.square(x).sum(int(_attribute(node, "axis", -1))))


_SUMS: dict[str, Sum] = {
    "ReduceMean": _sum_of_sizes,
    "ReduceSum": _sum_of_sizes,
    "ReduceL1": _sum_of_sizes,
    "ReduceL2": _sum_of_squares,
    "ReduceSumSquare": _sum_of_squares,
    "ReduceLogSumExp": _sum_of_exponentials,
    "GlobalAveragePool": _pooled_whole,
    "AveragePool": _pooled,
    "LayerNormalization": _spread(_last_axes),
    "RMSNormalization": _spread(_last_axes),
    "InstanceNormalization": _spread(_places),
    "GroupNormalization": _group_spread,
    "LpNormalization": _normed,
    "Softmax": _softmax,
    "LogSoftmax": _softmax,
}


def _session(model: onnx.ModelProto) -> onnxruntime.InferenceSession:
    """As written: fused, a tensor might not be there to look at."""
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
