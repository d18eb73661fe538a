"""Where two forms of one network part ways: tensors that both have, compared from the first to the last.

An exporter renames values, folds BatchNorm and adds shapes. But inputs, convolutions, matrix products, additions and
activations stay in their order, so the k-th of a kind in one form is the k-th of that kind in the other.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from edgekd.export.onnx_file import load
from edgekd.export.parity import run_reference
from edgekd.export.preprocessing import raw_inputs

_OF_ONNX = {"Conv": "Conv", "Gemm": "Gemm", "MatMul": "Gemm", "Relu": "Relu", "Add": "Add"}


@dataclass(frozen=True)
class Anchor:
    """One tensor of a PyTorch graph: its kind, the module whose code it is, its value."""

    kind: str
    module: str
    value: NDArray[Any]


@dataclass(frozen=True)
class Fork:
    """The first tensor that differs: its name in the file, the module of the network, how far it is off."""

    tensor: str
    module: str
    relative_error: float

    def words(self) -> str:
        """For a message."""
        by = f"{self.relative_error:.1e} of its size"
        return f"the first tensor that differs is {self.tensor!r}, of {self.module}, by {by}"


def first_fork(path: Path, feeds: Mapping[str, NDArray[Any]], expected: Sequence[Anchor], limit: float) -> Fork | None:
    """The first input or anchor of an ONNX file that is off its value in PyTorch by more than `limit` (mean squares).

    Kinds of which the two have different numbers are left out. None: there is no such anchor.
    """
    given = [anchor for anchor in expected if anchor.kind == "Input"]
    model = load(path)
    prepared = raw_inputs(model)  # raw frames are what the network sees behind their preprocessing
    seen = [(prepared.get(name, name), anchor) for name, anchor in zip(feeds, given, strict=True)]
    inside = [(name, anchor) for name, anchor in seen if name not in feeds]
    pairs = paired(model, expected)
    shown = with_outputs(model, [name for name, _ in (*inside, *pairs)])
    values = {**feeds, **run_reference(shown.SerializeToString(), feeds)}
    for name, anchor in (*seen, *pairs):
        error = off(values[name], anchor.value) if values[name].shape == anchor.value.shape else math.nan
        if not error <= limit:  # NaN is beyond every limit
            return Fork(name, anchor.module, error)
    return None


def off(found: NDArray[Any], expected: NDArray[Any]) -> float:
    """Root mean square error over the expected values' size: single values may round to the next level."""
    size = math.sqrt(float(np.square(expected, dtype=np.float64).mean()))
    return math.sqrt(float(np.square(np.subtract(found, expected, dtype=np.float64)).mean())) / max(size, 1e-12)


def paired(model: onnx.ModelProto, expected: Sequence[Anchor]) -> list[tuple[str, Anchor]]:
    """Names of values in the file with the anchors that they are, in the file's order."""
    names: dict[str, list[str]] = {}
    for node in model.graph.node:
        kind = _OF_ONNX.get(node.op_type)
        if kind is not None:
            names.setdefault(kind, []).append(node.output[0])
    anchors_of: dict[str, list[Anchor]] = {}
    for anchor in expected:
        anchors_of.setdefault(anchor.kind, []).append(anchor)
    matched = {
        name: anchor
        for kind, found in names.items()
        if len(found) == len(anchors_of.get(kind, []))
        for name, anchor in zip(found, anchors_of[kind], strict=True)
    }
    order = [output for node in model.graph.node for output in node.output]
    return [(name, matched[name]) for name in order if name in matched]


def with_outputs(model: onnx.ModelProto, names: Sequence[str]) -> onnx.ModelProto:
    """A copy that also gives these values."""
    model = onnx.ModelProto.FromString(model.SerializeToString())
    known = {value.name for value in model.graph.output}
    model.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names if name not in known)
    return model
