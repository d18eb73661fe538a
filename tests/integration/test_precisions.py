"""Half precision in the whole chain: built, executed, scored, chosen or not; what stays float is in the report."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jsonschema
import pytest
from chain import Result, Workshop

from edgekd.errors import UnavailableError
from edgekd.report.schema import json_schema
from edgekd.runtimes.registry import runtime

pytestmark = pytest.mark.slow

NETWORK = """
import torch
from torch import nn


class Huge(nn.Module):
    \"\"\"Activations beyond float16 in the middle, ordinary ones at both ends.\"\"\"

    def __init__(self, num_classes):
        super().__init__()
        self.first = nn.Conv2d(1, 8, 3, stride=2, padding=1)
        self.second = nn.Conv2d(8, 8, 3, stride=2, padding=1)
        self.head = nn.Linear(8, num_classes)

    def forward(self, x):
        x = torch.relu(self.first(x)) * 3e5
        x = torch.relu(self.second(x) * 1e-5)
        return self.head(x.mean((2, 3)))


def huge(num_classes, in_channels, image_size):
    return Huge(num_classes)
"""
FILE = """
name: half
data: {digits: {}, limit: {train: 160}}
train: {batch: 32}
stages:
  - teacher: {model: "net:huge", epochs: 1}
  - quantize: {}
  - export: {min_agreement: 0.5, max_noise: 5}
  - compile: {}
  - evaluate: {}
"""


def build(result: Result, target: str, precision: str) -> dict[str, Any]:
    return next(b for b in result.report["builds"] if (b["target"], b["precision"]) == (target, precision))


def run(folder: Path, targets: str, more: str = "") -> Result:
    workshop = Workshop(folder)
    (folder / "net.py").write_text(NETWORK)
    workshop.write(FILE + more + f"targets:\n{targets}")
    result = workshop.run()
    if result.report:
        jsonschema.validate(result.report, json_schema())
    return result


def test_what_overflows_stays_float_in_every_float16_build_and_the_report_says_why(tmp_path: Path) -> None:
    targets = "  ort: {runtime: onnxruntime, precision: [f32, f16, int8]}\n"
    result = run(tmp_path, targets)
    assert result.code == 0, result.err
    kept = {row["node"]: row["why"] for row in build(result, "ort", "f16")["kept_float"]}
    assert kept
    assert any("float16 ends at 65504" in why for why in kept.values())
    assert build(result, "ort", "f32")["kept_float"] == []
    scores = [build(result, "ort", p)["metrics"][0]["value"] for p in ("f32", "f16")]
    assert abs(scores[0] - scores[1]) < 0.01
    assert "tensors do not fit float16" in result.err
    assert f"{len(kept)} kept in f32" in result.out


def test_a_target_that_wants_float16_makes_export_look_for_what_does_not_fit(tmp_path: Path) -> None:
    first = run(tmp_path, "  ort: {runtime: onnxruntime}\n")
    assert first.code == 0, first.err
    assert "do not fit float16" not in first.err
    again = run(tmp_path, "  ort: {runtime: onnxruntime, precision: [f32, f16]}\n")
    states = again.states()
    assert (states["teacher"], states["export"], states["compile"]) == ("cached", "ran", "ran")
    assert build(again, "ort", "f16")["kept_float"]


def test_tensorrt_is_built_with_float16_as_the_baseline_of_8_bits(tmp_path: Path) -> None:
    pytest.importorskip("tensorrt_rtx", reason="the extra edgekd[tensorrt-rtx] is not installed")
    options = 'runtime: tensorrt_rtx, precision: [bf16, int8], residual: skip, compute_capabilities: ["8.6"]'
    workshop = Workshop(tmp_path)
    (tmp_path / "net.py").write_text(NETWORK)
    workshop.write(FILE.replace("  - evaluate: {}\n", "") + f"targets:\n  gpu: {{{options}}}\n")
    result = workshop.run()
    assert result.code == 0, result.err
    builds = {b["precision"]: b for b in result.report["builds"]}
    assert list(builds) == ["bf16", "f16", "int8"]
    assert builds["f16"]["kept_float"] and builds["int8"]["kept_float"]
    reasons = [row["why"] for row in builds["bf16"]["kept_float"]]
    assert not any("65504" in why for why in reasons)  # bfloat16 has float32's range
    assert {b["rejected_because"] for b in builds.values()} == {"built, not measured"}


def has_bf16() -> bool:
    try:
        runtime("openvino").check("CPU", run=True, precisions=("bf16",))
    except UnavailableError:
        return False
    return True


def test_openvino_executes_bf16_where_the_cpu_has_it(tmp_path: Path) -> None:
    targets = "  ov: {runtime: openvino, precision: [f32, bf16, int8]}\n"
    bench = "  - bench: {quick: true, launches: 1, min_time_s: 0.2, min_samples: 20, quiet_wait_s: 0, profile: false}\n"
    result = run(tmp_path, targets, bench)
    if not has_bf16():
        assert result.code == 3, result.err
        assert "OpenVINO's CPU has no bf16 here" in result.err
        return
    assert result.code == 0, result.err
    half, full = build(result, "ov", "bf16"), build(result, "ov", "f32")
    assert set(half["executed_convolutions"]) == {"bf16"}
    assert set(full["executed_convolutions"]) == {"f32"}
    assert half["parity"]["max_abs_error"] > full["parity"]["max_abs_error"]  # it really rounds, also when loaded anew
    rows = {row["precision"]: row for row in result.report["latency"]}
    assert set(rows) == {"f32", "bf16", "int8"}
    builds = [b for b in result.report["builds"] if b["target"] == "ov"]
    assert sum(b["chosen"] for b in builds) == 1
    assert all(b["rejected_because"] for b in builds if not b["chosen"])


def test_a_precision_that_the_device_has_not_is_one_line_before_anything_runs(tmp_path: Path) -> None:
    result = run(tmp_path, "  ov: {runtime: openvino, precision: [f16]}\n")
    if result.code == 0:
        pytest.skip("this CPU has float16")
    assert result.code == 3
    assert "OpenVINO's CPU has no f16 here (it has " in result.err
    assert "leave f16 out of this target's `precision`" in result.err
    assert "Traceback" not in result.err
