"""Every structure through the whole of quantization: prepared, calibrated, trained, converted, exported, executed."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from numpy.typing import NDArray
from structures import STRUCTURES, TwoAndTwo, conv, inputs, make
from torch import Tensor, nn

from edgekd.errors import ConfigError
from edgekd.export.flavours import tensorrt_violations, to_uint8
from edgekd.export.onnx_file import load, save, write_onnx
from edgekd.export.parity import run_reference
from edgekd.quantize.graph import layers_of, weight_quant
from edgekd.quantize.placement import module_of
from edgekd.quantize.post_training import calibrated
from edgekd.quantize.quantizer import QuantizedNetwork, convert, prepare
from edgekd.quantize.settings import QuantizationSettings
from edgekd.runtimes.onnxruntime import OnnxRuntime
from edgekd.runtimes.openvino import OpenVino
from edgekd.runtimes.protocol import Runtime, infer
from edgekd.train.world import named_outputs

Arrays = dict[str, NDArray[Any]]
FAST = {
    "overflow_fix": "all",
    "ranges": "minmax",
    "weight_ranges": "minmax",
    "equalization": False,
    "bias_correction": False,
}
KINDS = ("Conv", "QLinearConv", "Convolution", "ConvTranspose", "Deconvolution")
# Convolutions that engines have no 8-bit kernel for, or no use: ONNX Runtime leaves one float that gives the network's
# output, whose values nothing rounds, and has none for a transposed one; OpenVINO none for a transposed one in groups.
FLOATS = {
    ("onnxruntime", "U-Net bilinear"): 1,
    ("onnxruntime", "U-Net transposed"): 2,
    ("onnxruntime", "grouped transposed"): 1,
    ("openvino", "grouped transposed"): 1,
}


def names_of(name: str) -> tuple[str, ...]:
    return ("kind", "place") if name == "two and two" else ("y",)


def trained(network: nn.Module, name: str, **given: Any) -> tuple[QuantizedNetwork, dict[str, Tensor]]:
    """Calibrated and a few steps nearer to its original, and what the original says."""
    x, outputs = inputs(64, name=name), names_of(name)
    with torch.no_grad():
        right = named_outputs(network(*x), outputs)
    settings = QuantizationSettings.model_validate({**FAST, **given}, strict=False)
    quantized = calibrated(network, tuple(v[:2] for v in x), [x], settings, outputs=outputs)
    with torch.no_grad():
        assert noise(arrays(quantized, name), {key: value.numpy() for key, value in right.items()}) < 0.05
    optimizer = torch.optim.SGD(quantized.parameters(), lr=1e-4)
    for _ in range(3):
        optimizer.zero_grad()
        found = named_outputs(quantized(*x), outputs)
        torch.stack([(found[key] - right[key]).square().mean() for key in outputs]).sum().backward()
        optimizer.step()
    assert [key for key, value in quantized.named_parameters() if value.grad is None] == []
    return quantized, right


@torch.no_grad()
def arrays(network: nn.Module, name: str) -> Arrays:
    return {key: value.numpy() for key, value in named_outputs(network(*inputs(64, name=name)), names_of(name)).items()}


def noise(found: Arrays, right: Arrays) -> float:
    """Root mean square error over the spread of what is right; the worst output counts."""
    return max(math.sqrt(np.square(found[key] - right[key]).mean()) / float(right[key].std()) for key in right)


def files(network: QuantizedNetwork, name: str, folder: Path) -> tuple[Path, Path, Arrays]:
    x = inputs(64, name=name)
    feeds = dict(zip(("image", "vector"), x, strict=False))
    int8, uint8 = folder / "int8.onnx", folder / "uint8.onnx"
    example = {key: value[:2].contiguous() for key, value in feeds.items()}
    write_onnx(convert(network), example, names_of(name), int8, opset=20, metadata={})
    save(to_uint8(load(int8), network.half_steps()), uint8)
    return int8, uint8, {key: value.numpy() for key, value in feeds.items()}


@pytest.mark.parametrize("name", STRUCTURES)
def test_a_structure_is_quantized_trained_exported_and_executed_in_8_bits(name: str, tmp_path: Path) -> None:
    quantized, _ = trained(make(name), name)
    said = arrays(quantized, name)
    int8, uint8, feeds = files(quantized, name, tmp_path)
    graph = load(int8)
    onnx.checker.check_model(graph, full_check=True)
    assert tensorrt_violations(graph) == []
    assert noise(run_reference(int8, feeds), arrays(quantized.in_int8(), name)) < 1e-3
    assert noise(run_reference(uint8, feeds), said) < 1e-3
    engines: tuple[Runtime, ...] = (OpenVino(), OnnxRuntime())
    for engine in engines:
        folder = tmp_path / engine.name
        folder.mkdir()
        build = engine.compile(uint8, folder, device="CPU", threads=1, options={})
        found = infer(engine.load(folder / build.file, device="CPU", threads=1), feeds)
        # Engines add the bias in 32-bit integers and round once; a value on an edge may go to the next level.
        assert noise(found, said) < 0.02
        ran = [layer.precision for layer in build.layers if layer.kind in KINDS]
        expected = sum(node.op_type in ("Conv", "ConvTranspose") for node in graph.graph.node)
        assert len(ran) == expected
        assert ran.count("f32") == FLOATS.get((engine.name, name), 0), build.layers


def kinds(quantized: QuantizedNetwork) -> list[str]:
    """Operations of a converted graph that read what was dequantized."""
    found = []
    for node in convert(quantized).graph.nodes:
        sources = [s for s in node.all_input_nodes if "dequantize" in str(s.target)]
        if sources and "quantize" not in str(node.target):
            found.append(str(node.target).removeprefix("aten."))
    return found


@pytest.mark.parametrize("name", ["attention module", "attention fused", "attention by hand"])
def test_softmax_norms_and_products_of_attention_stay_float(name: str) -> None:
    quantized, _ = trained(make(name), name)
    rounded = {kind.split(".")[0] for kind in kinds(quantized)}
    assert rounded <= {"conv2d", "linear", "view", "reshape", "flatten", "permute", "transpose", "mean"}
    assert sum(kind.startswith("linear") for kind in kinds(quantized)) == 5


def test_what_is_concatenated_shares_one_scale_and_a_gate_is_rounded_too() -> None:
    dense, _ = trained(make("dense"), "dense")
    for node in convert(dense).graph.nodes:
        if "cat" in str(node.target):
            (user,) = node.users
            assert {s.args[1] for s in node.all_input_nodes} == {user.args[1]}
    gated, _ = trained(make("squeeze and excitation"), "squeeze and excitation")
    assert any(kind.startswith("mul") for kind in kinds(gated))
    assert not any(kind.startswith("mul") for kind in kinds(trained(make("SiLU"), "SiLU")[0]))


def test_a_transposed_convolution_has_a_scale_for_each_output_channel() -> None:
    quantized, _ = trained(make("U-Net transposed"), "U-Net transposed")
    graph = quantized.graph_module
    (layer,) = [layer for layer in layers_of(graph) if module_of(layer.node) == "up"]
    fake_quant = weight_quant(graph, layer.node)
    assert fake_quant is not None
    assert fake_quant.axis == 1
    assert fake_quant.scale.shape == (8,)
    grouped, _ = trained(make("grouped transposed"), "grouped transposed")
    (layer,) = [layer for layer in layers_of(grouped.graph_module) if "up" in module_of(layer.node)]
    fake_quant = weight_quant(grouped.graph_module, layer.node)
    assert fake_quant is not None
    assert fake_quant.axis is None


class TiedNorms(nn.Module):
    """One convolution, followed by a BatchNorm of its own at each use, or by none."""

    def __init__(self, bias: bool) -> None:
        super().__init__()
        self.stem, self.shared = conv(3, 8), nn.Conv2d(8, 8, 3, padding=1, bias=bias)
        self.first, self.second = nn.BatchNorm2d(8), nn.BatchNorm2d(8)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.first(self.shared(self.stem(x))))
        x = torch.relu(self.second(self.shared(x)))
        return self.shared(x).mean((2, 3))


@pytest.mark.parametrize("bias", [True, False])
def test_batchnorms_behind_one_shared_convolution_are_folded_each_into_its_own_use(bias: bool) -> None:
    torch.manual_seed(0)
    network = TiedNorms(bias)
    with torch.no_grad():
        for _ in range(20):
            network(*inputs(32, seed=3))
        network.second.weight.mul_(-2)
        network.eval()
        prepared = prepare(network, (inputs(2)[0],), QuantizationSettings())
        prepared.set_mode("passing")
        assert torch.allclose(prepared(*inputs(8)), network(*inputs(8)), rtol=1e-4, atol=1e-5)


class TiedUp(nn.Module):
    """A transposed convolution in groups, used twice with one BatchNorm and no bias."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm = conv(3, 8), nn.BatchNorm2d(8)
        self.up = nn.ConvTranspose2d(8, 8, 3, padding=1, groups=2, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.norm(self.up(self.stem(x))))
        return self.norm(self.up(x)).mean((2, 3))


def test_a_transposed_convolution_in_groups_may_be_used_twice() -> None:
    torch.manual_seed(0)
    network = TiedUp()
    with torch.no_grad():
        for _ in range(20):
            network(*inputs(32, seed=3))
        network.eval()
        prepared = prepare(network, (inputs(2)[0],), QuantizationSettings())
        prepared.set_mode("passing")
        assert torch.allclose(prepared(*inputs(8)), network(*inputs(8)), rtol=1e-4, atol=1e-5)


def test_uses_of_one_convolution_with_one_batchnorm_keep_one_weight() -> None:
    network = make("tied")
    prepared = prepare(network, (inputs(2)[0],), QuantizationSettings())
    weights = [layer.weight for layer in layers_of(prepared.graph_module)]
    assert len(weights) == 4
    assert len(set(weights)) == 3


def layers_in_8_bits(network: nn.Module, float_outputs: list[str], outputs: tuple[str, ...], x: Any) -> set[str]:
    settings = QuantizationSettings.model_validate({"float_outputs": float_outputs}, strict=False)
    graph = prepare(network, x, settings, outputs).graph_module
    return {module_of(layer.node) for layer in layers_of(graph) if weight_quant(graph, layer.node) is not None}


SHARED = {"image.0.0", "image.1.0", "vector.0", "neck.0"}


@pytest.mark.parametrize(
    ("float_outputs", "rest"),
    [
        ([], SHARED | {"kind", "place.0", "place.2"}),
        (["place"], SHARED | {"kind"}),
        (["kind"], SHARED | {"place.0", "place.2"}),
        (["kind", "place"], SHARED | {"place.0"}),
    ],
)
def test_what_serves_a_float_output_alone_stays_float(float_outputs: list[str], rest: set[str]) -> None:
    x = inputs(2, name="two and two")
    assert layers_in_8_bits(TwoAndTwo().eval(), float_outputs, ("kind", "place"), x) == rest


def test_of_a_network_with_one_output_the_last_layer_stays_float() -> None:
    x = inputs(2)
    assert layers_in_8_bits(make("sigmoid head"), ["y"], ("y",), x) == {"stem.0", "middle.0"}
    assert layers_in_8_bits(make("sigmoid map"), ["y"], ("y",), x) == {"0.0"}


class Scales(nn.Module):
    """A detector: boxes and scores of two scales, each concatenated."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.down = conv(3, 8), conv(8, 8, stride=2)
        self.boxes = nn.ModuleList(nn.Conv2d(8, 4, 1) for _ in range(2))
        self.scores = nn.ModuleList(nn.Conv2d(8, 3, 1) for _ in range(2))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        fine = self.stem(x)
        maps = fine, self.down(fine)
        boxes = [layer(x).flatten(2) for layer, x in zip(self.boxes, maps, strict=True)]
        scores = [layer(x).flatten(2) for layer, x in zip(self.scores, maps, strict=True)]
        return torch.cat(boxes, 2), torch.cat(scores, 2).sigmoid()


@pytest.mark.parametrize("floats", [["boxes"], ["boxes", "scores"]])
def test_a_detectors_boxes_stay_float_at_all_scales(floats: list[str]) -> None:
    rest = {"stem.0", "down.0"} | ({"scores.0", "scores.1"} if "scores" not in floats else set())
    assert layers_in_8_bits(Scales().eval(), floats, ("boxes", "scores"), inputs(2)) == rest


def test_an_output_that_is_not_there_is_named_with_the_nearest() -> None:
    with pytest.raises(ConfigError, match="no output is called 'palce'") as caught:
        layers_in_8_bits(TwoAndTwo().eval(), ["palce"], ("kind", "place"), inputs(2, name="two and two"))
    assert "place" in caught.value.hint
