"""A ReLU6 that cuts runs in 8 bits in ONNX Runtime: what was quantized is cut, not what is to be."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from torch import nn

from edgekd.export.flavours import to_uint8
from edgekd.export.onnx_file import load, save, write_onnx
from edgekd.export.parity import run_reference
from edgekd.quantize.post_training import calibrated
from edgekd.quantize.quantizer import QuantizedNetwork, convert
from edgekd.quantize.settings import QuantizationSettings
from edgekd.runtimes.registry import runtime


class Cut(nn.Module):
    """Convolutions whose outputs go far beyond 6, and a skip that takes one of them past its block."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1, groups=8)
        self.third, self.act = nn.Conv2d(8, 4, 1), nn.ReLU6()
        with torch.no_grad():
            for parameter in self.parameters():
                parameter.mul_(12)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.act(self.first(x))
        x = self.act(x + self.act(self.second(x)))
        y: torch.Tensor = self.third(x).mean((2, 3))
        return y


@pytest.fixture(scope="module")
def images() -> torch.Tensor:
    return torch.randn(8, 3, 12, 12, generator=torch.Generator().manual_seed(0))


def quantized(images: torch.Tensor, levels: Any) -> QuantizedNetwork:
    torch.manual_seed(0)
    return calibrated(Cut().eval(), (images[:2],), [(images,)], QuantizationSettings(relu_levels=levels))


def written(network: QuantizedNetwork, images: torch.Tensor, folder: Path) -> onnx.ModelProto:
    write_onnx(convert(network), {"image": images[:2]}, ("y",), folder / "int8.onnx", opset=20, metadata={})
    return load(folder / "int8.onnx")


@pytest.fixture(scope="module")
def model(images: torch.Tensor, tmp_path_factory: pytest.TempPathFactory) -> onnx.ModelProto:
    return written(quantized(images, 127), images, tmp_path_factory.mktemp("cut"))


def test_a_relu6_that_cuts_leaves_its_convolution_in_8_bits(model: onnx.ModelProto, tmp_path: Path) -> None:
    assert [node.op_type for node in model.graph.node].count("Clip") == 3
    save(to_uint8(model, set()), tmp_path / "uint8.onnx")
    engine = runtime("onnxruntime")
    built = engine.compile(tmp_path / "uint8.onnx", tmp_path, device="CPU", threads=1, options={"precision": "int8"})
    assert {layer.kind for layer in built.layers if "Conv" in layer.kind} == {"QLinearConv"}
    assert "Clip" not in {layer.kind for layer in built.layers}


def test_what_is_cut_after_rounding_is_what_was_cut_before(model: onnx.ModelProto, images: torch.Tensor) -> None:
    feeds = {"image": images.numpy()}
    cut = to_uint8(model, set())
    values = run_reference(model.SerializeToString(), feeds)["y"]
    assert np.abs(run_reference(cut.SerializeToString(), feeds)["y"] - values).max() <= 1e-5 * np.abs(values).max()
    # Without the cut the values go on to twice 6: the test would see it.
    for node in cut.graph.node:
        if node.op_type == "Clip":
            node.op_type = "Identity"
            del node.input[1:]
    assert np.abs(run_reference(cut.SerializeToString(), feeds)["y"] - values).max() > 0.02 * np.abs(values).max()


def test_levels_that_int8_has_no_room_for_are_in_the_uint8_file(images: torch.Tensor, tmp_path: Path) -> None:
    network, feeds = quantized(images, 255), {"image": images.numpy()}
    model, halves = written(network, images, tmp_path), network.half_steps()
    assert halves
    fine = to_uint8(model, halves)
    assert "Clip" not in {node.op_type for node in fine.graph.node}  # 255 is where it cuts
    with torch.no_grad():
        said = network(images).numpy()
    assert np.abs(run_reference(fine.SerializeToString(), feeds)["y"] - said).max() <= 1e-5 * np.abs(said).max()
    coarse = run_reference(to_uint8(model, set()).SerializeToString(), feeds)["y"]
    assert np.abs(coarse - said).max() > 1e-3 * np.abs(said).max()
    before, after = (
        {t.name: float(onnx.numpy_helper.to_array(t)) for t in m.graph.initializer if not t.dims} for m in (model, fine)
    )
    made = [name for name in after if name.endswith(".half")]
    assert made
    assert all(2 * after[name] == before[name.removesuffix(".half")] for name in made)


def test_a_clip_that_is_read_otherwise_or_begins_elsewhere_stays(model: onnx.ModelProto) -> None:
    shown = onnx.ModelProto.FromString(model.SerializeToString())
    first = next(node for node in shown.graph.node if node.op_type == "Clip")
    shown.graph.output.append(onnx.helper.make_tensor_value_info(first.output[0], 1, None))
    kinds = [node.op_type for node in to_uint8(shown, set()).graph.node if node.name == first.name]
    assert kinds == ["Clip"]
    lower = next(t for t in shown.graph.initializer if t.name == first.input[1])
    lower.CopyFrom(onnx.numpy_helper.from_array(np.float32(-1.0), lower.name))
    again = [node.op_type for node in to_uint8(shown, set()).graph.node]
    assert "Relu" not in again
