"""Does a file say what the network says? Compared on real data, in ONNX Runtime with its optimizations off."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from numpy.typing import NDArray

Arrays = Mapping[str, NDArray[Any]]


def run_reference(path: Path, feeds: Arrays) -> dict[str, NDArray[Any]]:
    """Outputs of an ONNX file as written: ONNX Runtime on the CPU, one thread, no optimization."""
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    return dict(zip(names, session.run(names, dict(feeds)), strict=True))


def max_error(outputs: Arrays, reference: Arrays) -> float:
    """Largest absolute difference over all outputs."""
    return max(float(np.abs(outputs[name] - reference[name]).max()) for name in reference)


def relative_error(outputs: Arrays, reference: Arrays) -> float:
    """Largest difference of each output relative to that output's largest value; the worst over all outputs."""
    worst = 0.0
    for name, expected in reference.items():
        size = max(float(np.abs(expected).max()), 1e-12)
        worst = max(worst, float(np.abs(outputs[name] - expected).max()) / size)
    return worst


def agreement(output: NDArray[Any], reference: NDArray[Any], task: str) -> float:
    """Share of samples that agree: the same top-1 class, or (regression) within 5% of the reference's spread."""
    if task == "classification":
        return float((output.argmax(1) == reference.argmax(1)).mean())
    spread = float(np.ptp(reference)) or 1.0
    near = np.abs(output - reference) <= 0.05 * spread
    return float(near.reshape(len(near), -1).all(1).mean())
