"""Does a file say what the network says? Compared on real data, in ONNX Runtime with its optimizations off."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from edgekd.errors import ParityError
from edgekd.export.settings import ExportSettings

Arrays = Mapping[str, NDArray[Any]]


def run_reference(model: Path | bytes, feeds: Arrays, *, optimized: bool = False) -> dict[str, NDArray[Any]]:
    """Outputs of an ONNX file, or of its bytes, as written: ONNX Runtime on the CPU, one thread.

    With `optimized` as ONNX Runtime would run it, else without any optimization.
    """
    options = onnxruntime.SessionOptions()
    if not optimized:
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    options.add_session_config_entry("session.x64quantprecision", "1")  # as the adapter of ONNX Runtime does
    session = onnxruntime.InferenceSession(
        str(model) if isinstance(model, Path) else model, options, providers=["CPUExecutionProvider"]
    )
    names = [output.name for output in session.get_outputs()]
    return dict(zip(names, session.run(names, dict(feeds)), strict=True))


@dataclass(frozen=True)
class Parity:
    """How far a file's outputs are from what they should be, on n samples."""

    n: int
    max_abs_error: float
    relative_error: float
    noise: float
    agreement: dict[str, float]

    def facts(self) -> dict[str, Any]:
        """As it stands in report.json."""
        return {"reference": "pytorch", "n": self.n, "max_abs_error": self.max_abs_error, "agreement": self.agreement}


def compare(found: Arrays, expected: Arrays, tasks: Mapping[str, str]) -> Parity:
    """Compare named outputs; `tasks` says of each output what it is for.

    The relative error is each output's largest difference over that output's largest value, the noise its root mean
    square difference over its spread from sample to sample; the worst output counts.
    """
    errors = {name: float(np.abs(found[name] - expected[name]).max()) for name in expected}
    sizes = {name: max(float(np.abs(values).max()), 1e-12) for name, values in expected.items()}
    return Parity(
        n=len(next(iter(expected.values()))),
        max_abs_error=max(errors.values()),
        relative_error=max(errors[name] / sizes[name] for name in expected),
        noise=max(_noise(found[name], values) for name, values in expected.items()),
        agreement={name: agreement(found[name], expected[name], task) for name, task in tasks.items()},
    )


def require(name: str, parity: Parity, *, exact: bool, settings: ExportSettings) -> None:
    """Raise ParityError when a file does not say what its network says.

    A float file (`exact`) must match in numbers. In a quantized one values on the edge between two levels may round
    either way: its error must be small against what the outputs say, and its answers must agree (judged with a 95%
    interval).
    """
    if not math.isfinite(parity.relative_error) or (exact and parity.relative_error > settings.max_error):
        raise ParityError(
            f"{name} differs from PyTorch by {parity.relative_error:.2e} of its largest output; "
            f"the limit is {settings.max_error:.0e}",
            hint="an operation that ONNX writes differently? raise export.max_error only if that is meant",
        )
    if not exact and parity.noise > settings.max_noise:
        raise ParityError(
            f"{name} differs from the fake-quantized network by {parity.noise:.2f} of its outputs' spread; "
            f"the limit is {settings.max_noise:g}",
            hint="an operation that ONNX rounds differently? raise export.max_noise only if that is meant",
        )
    worst = min(parity.agreement, key=lambda output: parity.agreement[output])
    share = parity.agreement[worst]
    slack = 1.96 * math.sqrt(settings.min_agreement * (1 - settings.min_agreement) / parity.n)
    if share < settings.min_agreement - slack:
        raise ParityError(
            f"{name} agrees with PyTorch on {share:.1%} of {parity.n} samples (output {worst}); "
            f"the limit is {settings.min_agreement:.1%}",
            hint="lower export.min_agreement if the network is this unsure, or use more bits",
        )


def _noise(found: NDArray[Any], expected: NDArray[Any]) -> float:
    """Root mean square error over the expected values' spread; a constant output counts a hundredth of its size."""
    size = float(np.sqrt(np.square(expected).mean()))
    spread = float(np.sqrt(np.square(expected - expected.mean(0)).mean()))
    return float(np.sqrt(np.square(found - expected).mean())) / max(spread, 0.01 * size, 1e-12)


def agreement(output: NDArray[Any], reference: NDArray[Any], task: str) -> float:
    """Share of samples that agree: the same top-1 class, or (regression) within 5% of the reference's spread."""
    if task == "classification":
        return float((output.argmax(1) == reference.argmax(1)).mean())
    spread = float(np.ptp(reference)) or 1.0
    near = np.abs(output - reference) <= 0.05 * spread
    return float(near.reshape(len(near), -1).all(1).mean())
