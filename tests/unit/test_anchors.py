"""The parity ladder names what broke: planted faults in ONNX files of a float and of a quantized network."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper
from torch import nn

from edgekd.export.flavours import to_uint8
from edgekd.export.forks import first_fork
from edgekd.export.onnx_file import load, save, write_onnx
from edgekd.models.resolve import build
from edgekd.quantize.post_training import calibrated
from edgekd.quantize.quantizer import capture, convert
from edgekd.quantize.settings import QuantizationSettings
from edgekd.stages.tensors import anchors

FEEDS = {"image": torch.randn(6, 3, 32, 32, generator=torch.Generator().manual_seed(0))}
ARRAYS = {name: x.numpy() for name, x in FEEDS.items()}
LAYER = "layer2.0.conv2"


@pytest.fixture(scope="module")
def network() -> nn.Module:
    torch.manual_seed(0)
    found = build("resnet8", {}, Path(), {"num_classes": 10, "in_channels": 3, "image_size": 32}).train()
    with torch.no_grad():
        found(FEEDS["image"])  # BatchNorm statistics that are not 0 and 1
    return found.eval()


@pytest.fixture(scope="module")
def files(network: nn.Module, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, nn.Module]:
    folder = tmp_path_factory.mktemp("files")
    x = FEEDS["image"]
    quantized = calibrated(network, (x[:2],), [(x,)], QuantizationSettings(ranges="mse", relu_levels=127))
    write_onnx(network, {"image": x[:2]}, ("logits",), folder / "f32.onnx", opset=20, metadata={})
    write_onnx(convert(quantized), {"image": x[:2]}, ("logits",), folder / "int8.onnx", opset=20, metadata={})
    save(to_uint8(load(folder / "int8.onnx"), set()), folder / "uint8.onnx")
    return folder, quantized.graph_module


def convolution(model: onnx.ModelProto, number: int) -> onnx.NodeProto:
    return [node for node in model.graph.node if node.op_type == "Conv"][number]


def changed(model: onnx.ModelProto, name: str, change: Callable[[np.ndarray], np.ndarray]) -> None:
    tensor = next(t for t in model.graph.initializer if t.name == name)
    tensor.CopyFrom(numpy_helper.from_array(change(numpy_helper.to_array(tensor)).copy(), name))


def test_files_as_they_are_written_differ_nowhere(files: tuple[Path, nn.Module], network: nn.Module) -> None:
    folder, graph = files
    exact = anchors(capture(network, (FEEDS["image"],)), (FEEDS["image"],))
    assert len(exact) == 21  # the input, 9 convolutions, 7 activations, 3 additions, 1 linear layer
    assert first_fork(folder / "f32.onnx", ARRAYS, exact, 1e-4) is None
    for name in ("int8", "uint8"):
        assert first_fork(folder / f"{name}.onnx", ARRAYS, anchors(graph, (FEEDS["image"],)), 0.05) is None  # type: ignore[arg-type]


def test_a_wrong_scale_in_one_layer_is_named(files: tuple[Path, nn.Module], tmp_path: Path) -> None:
    folder, graph = files
    expected = anchors(graph, (FEEDS["image"],))  # type: ignore[arg-type]
    number = [a.module for a in expected if a.kind == "Conv"].index(LAYER)
    model = load(folder / "int8.onnx")
    producers = {output: node for node in model.graph.node for output in node.output}
    weight = producers[convolution(model, number).input[1]]
    changed(model, weight.input[1], lambda scale: scale * 1.5)
    save(model, tmp_path / "wrong.onnx")
    fork = first_fork(tmp_path / "wrong.onnx", ARRAYS, expected, 0.05)
    assert fork is not None
    assert fork.module == LAYER
    assert fork.relative_error == pytest.approx(0.5, abs=0.2)
    assert LAYER in fork.words()


def test_swapped_channels_are_named(files: tuple[Path, nn.Module], network: nn.Module, tmp_path: Path) -> None:
    folder, _ = files
    expected = anchors(capture(network, (FEEDS["image"],)), (FEEDS["image"],))
    number = [a.module for a in expected if a.kind == "Conv"].index(LAYER)
    model = load(folder / "f32.onnx")
    changed(model, convolution(model, number).input[1], lambda weight: weight[:, ::-1])
    save(model, tmp_path / "swapped.onnx")
    fork = first_fork(tmp_path / "swapped.onnx", ARRAYS, expected, 1e-3)
    assert fork is not None
    assert fork.module == LAYER


def test_an_unnormalised_input_is_named(files: tuple[Path, nn.Module]) -> None:
    folder, graph = files
    raw = {name: x * 0.25 + 0.5 for name, x in ARRAYS.items()}
    fork = first_fork(folder / "uint8.onnx", raw, anchors(graph, (FEEDS["image"],)), 0.05)  # type: ignore[arg-type]
    assert fork is not None
    assert (fork.tensor, fork.module) == ("image", "the input")


def test_a_value_that_is_not_a_number_is_a_fork(
    files: tuple[Path, nn.Module], network: nn.Module, tmp_path: Path
) -> None:
    folder, _ = files
    expected = anchors(capture(network, (FEEDS["image"],)), (FEEDS["image"],))
    model = load(folder / "f32.onnx")
    changed(model, convolution(model, 4).input[1], lambda weight: weight * np.float32("nan"))
    save(model, tmp_path / "nan.onnx")
    fork = first_fork(tmp_path / "nan.onnx", ARRAYS, expected, 1e-3)
    assert fork is not None
    assert fork.module == [a.module for a in expected if a.kind == "Conv"][4]
