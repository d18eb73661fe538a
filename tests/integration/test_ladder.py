"""The parity ladder through a run, and an engine that computes one layer wrongly: it is named."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from chain import Workshop
from onnx import numpy_helper

from edgekd.export.onnx_file import load, write_onnx
from edgekd.models.resolve import build
from edgekd.runtimes.onnxruntime import OnnxRuntime
from edgekd.runtimes.protocol import Build
from edgekd.stages.ladder import engine_fork
from edgekd.stages.tensors import anchors_of
from edgekd.train.world import Model

FILE = """
name: ladder
data: {digits: {}, limit: {train: 320}}
train: {batch: 32}
stages:
  - teacher: {model: resnet8, epochs: 3}
  - quantize: {}
  - export: {}
  - compile: {}
  - evaluate: {}
targets:
  ov: {runtime: openvino}
  ort: {runtime: onnxruntime}
"""


class Wrong(OnnxRuntime):
    """ONNX Runtime, but for the weights of one convolution, which it halves."""

    def __init__(self, number: int) -> None:
        self.number, self.builds = number, 0

    def compile(self, onnx: Path, folder: Path, *, device: str, threads: int, options: Mapping[str, Any]) -> Build:
        self.builds += 1
        model = load(onnx)
        node = [node for node in model.graph.node if node.op_type == "Conv"][self.number]
        weight = next(tensor for tensor in model.graph.initializer if tensor.name == node.input[1])
        weight.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(weight) * np.float32(0.5), weight.name))
        onnx.write_bytes(model.SerializeToString())
        return super().compile(onnx, folder, device=device, threads=threads, options=options)


@pytest.mark.parametrize("number", [0, 4, 8])
def test_an_engine_that_computes_a_layer_wrongly_is_bisected_to_it(number: int, tmp_path: Path) -> None:
    torch.manual_seed(0)
    x = torch.randn(8, 3, 32, 32)
    network = build("resnet8", {}, tmp_path, {"num_classes": 10, "in_channels": 3, "image_size": 32})
    network(x)
    model = Model(network.eval(), ("image",), ("logits",))
    write_onnx(network, {"image": x[:2]}, ("logits",), tmp_path / "f32.onnx", opset=20, metadata={})
    feeds = {"image": x.numpy()}
    found, limit = anchors_of(model, feeds)
    engine = Wrong(number)
    fork = engine_fork(engine, tmp_path / "f32.onnx", feeds, found, limit, device="CPU", options={})
    assert fork is not None
    assert fork.module == [a.module for a in found if a.kind == "Conv"][number]
    assert engine.builds < len(found)
    right = engine_fork(OnnxRuntime(), tmp_path / "f32.onnx", feeds, found, limit, device="CPU", options={})
    assert right is None


@pytest.mark.slow
def test_every_rung_stands_in_the_report_and_a_broken_one_ends_the_run(tmp_path: Path) -> None:
    place = Workshop(tmp_path)
    place.write(FILE)
    result = place.run()
    assert result.code == 0, result.err
    path = next(d["path"] for d in result.report["details"] if d["kind"] == "ladder")
    rows = json.loads((place.out / path).read_text())["rows"]
    rungs = [row["rung"] for row in rows]
    assert rungs[:2] == ["teacher in PyTorch", "quantized in PyTorch"]
    assert [rung for rung in rungs if rung.startswith("the build")] == [
        f"the build {name}" for name in ("ov.f32", "ov.int8", "ort.f32", "ort.int8")
    ]
    assert all(0 <= row["accuracy"] <= 1 for row in rows)
    assert all(row["agreement"] > 0.9 for row in rows[1:])
    limited = place.run("--set", "export.max_error=1e-12", "--out", str(tmp_path / "strict"))
    assert limited.code == 4
    assert "differs from PyTorch" in limited.err
