"""Captured graphs in functional form: same values, nothing in place, whoever else reads what is written."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.fx import GraphModule
from torch.nn import functional as F

from edgekd.errors import ExportError
from edgekd.export.onnx_file import write_onnx
from edgekd.export.parity import run_reference
from edgekd.quantize import quantizer
from edgekd.quantize.functional import functional_module
from edgekd.quantize.graph import layers_of
from edgekd.quantize.placement import module_of
from edgekd.quantize.post_training import calibrated
from edgekd.quantize.quantizer import capture, convert, prepare
from edgekd.quantize.settings import QuantizationSettings
from edgekd.quantize.stays_float import stays_float


class Mobile(nn.Module):
    """What torchvision's MobileNetV3 does: everything in place, a gate behind a curve, dropout of a view."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)
        self.gate = nn.Conv2d(4, 4, 1)
        self.head, self.last = nn.Linear(4, 4), nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = F.hardswish(self.norm(self.conv(x)), inplace=True)
        x = F.hardsigmoid(self.gate(F.adaptive_avg_pool2d(x, 1)), inplace=True) * x
        x = self.head(F.adaptive_avg_pool2d(x, 1).flatten(1))
        return self.last(F.dropout(F.hardswish(x, inplace=True), 0.2, self.training, inplace=True))


class ChannelsLast(nn.Module):
    """What ConvNeXt and Swin do: pooling of maps whose channels lie last."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.head = nn.Linear(3, 4), nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        maps = self.body(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
        return self.head(F.adaptive_avg_pool2d(maps, 1).flatten(1))


class Rectified(nn.Module):
    """Someone else reads what is changed in place: a view, made before."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x)
        flat = x.flatten(1)
        return F.relu(x, inplace=True).sum((1, 2, 3)) + flat.sum(1)


class Odd(nn.Module):
    """Something in place after a convolution whose weights are frozen, which torch captures of any kind."""

    def __init__(self, change: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.conv, self.change = nn.Conv2d(3, 4, 3).requires_grad_(False), change

    def forward(self, x: Tensor) -> Tensor:
        return self.change(self.conv(x))


def of_a_chunk(y: Tensor) -> Tensor:
    torch.relu_(y.chunk(2, 1)[0])
    return y.mean((2, 3))


def of_an_einsum(y: Tensor) -> Tensor:
    torch.relu_(torch.einsum("nchw->nhwc", y))
    return y.mean((2, 3))


def of_an_unbound(y: Tensor) -> Tensor:
    torch.relu_(y.unbind(1)[1])
    return y.mean((2, 3))


def compared(y: Tensor) -> Tensor:
    return y.gt_(0.0) - 0.5


def compared_at_the_end(y: Tensor) -> Tensor:
    return y.ge_(0.0)


def wider(y: Tensor) -> Tensor:
    y += torch.ones(1, dtype=torch.float64)
    return y


def shifted(y: Tensor) -> Tensor:
    y += 0.5
    return y.clamp_(0, 1).flatten(1).tanh_()


def _operations(network: nn.Module, x: Tensor) -> tuple[list[str], float]:
    graph = capture(network, (x,))
    names = [str(node.target) for node in graph.graph.nodes if node.op == "call_function"]
    with torch.no_grad():
        return names, float((graph(x) - network(x)).abs().max())


@pytest.mark.parametrize("network", [Mobile(), ChannelsLast()], ids=["in place", "channels last"])
def test_a_captured_network_changes_nothing_in_place_and_answers_the_same(network: nn.Module) -> None:
    names, error = _operations(network.eval(), torch.randn(2, 3, 8, 8))
    assert not [name for name in names if name.split(".")[1].endswith("_")]
    assert ("aten.mean.dim" in names) == isinstance(network, ChannelsLast)
    assert error == 0


def a_part(y: Tensor) -> Tensor:
    y[:, :2] *= -2
    return y.mean((2, 3))


def a_part_by_name(y: Tensor) -> Tensor:
    part = y[:, 1:]
    part.zero_()
    return y.mean((2, 3))


def all_of_it_by_a_view(y: Tensor) -> Tensor:
    y.flatten(1).mul_(-3)
    return y.mean((2, 3))


WRITTEN = (
    of_a_chunk, of_an_einsum, of_an_unbound, compared, compared_at_the_end, wider, shifted, a_part, a_part_by_name,
    all_of_it_by_a_view,
)  # fmt: skip


@pytest.mark.parametrize("network", [Rectified(), *map(Odd, WRITTEN)])
def test_what_others_see_changed_is_computed_anew_for_them_too(network: nn.Module) -> None:
    network, x = network.eval(), torch.randn(2, 3, 8, 8)
    graph = capture(network, (x,))
    with torch.no_grad():
        found, wanted = graph(x), network(x)
    assert found.dtype == wanted.dtype
    assert torch.equal(found, wanted)
    names = [str(node.target) for node in graph.graph.nodes if node.op == "call_function"]
    assert not [name for name in names if "." in name and name.split(".")[1].endswith("_")]


class Halved(nn.Module):
    """A part is written between two convolutions with BatchNorm."""

    def __init__(self, change: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.first = nn.Sequential(nn.Conv2d(3, 4, 3, bias=False), nn.BatchNorm2d(4), nn.ReLU(inplace=True))
        self.second, self.change = nn.Sequential(nn.Conv2d(4, 4, 3, bias=False), nn.BatchNorm2d(4)), change

    def forward(self, x: Tensor) -> Tensor:
        y = self.first(x)
        self.change(y)
        return self.second(y).mean((2, 3))


@pytest.mark.parametrize("change", [a_part, a_part_by_name, all_of_it_by_a_view])
def test_a_part_that_is_written_in_place_is_in_the_quantized_network_and_its_file(
    change: Callable[[Tensor], Tensor], tmp_path: Path
) -> None:
    torch.manual_seed(0)
    network, x = Halved(change).train(), torch.randn(32, 3, 10, 10)
    with torch.no_grad():
        network(x)
        exact = network.eval()(x).numpy()
        quantized = calibrated(network, (x[:2],), [(x,)], QuantizationSettings())
        said = quantized.in_int8()(x).numpy()
    write_onnx(convert(quantized), {"image": x[:2]}, ("y",), tmp_path / "int8.onnx", opset=20, metadata={})
    written = run_reference(tmp_path / "int8.onnx", {"image": x.numpy()})["y"]
    largest = np.abs(exact).max()
    assert np.abs(said - exact).max() < 0.1 * largest
    assert np.abs(written - said).max() < 1e-3 * largest
    assert [module_of(layer.node) for layer in layers_of(quantized.graph_module)] == ["first.0", "second.0"]


def test_a_captured_network_that_answers_otherwise_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    network, x = Halved(a_part).eval(), torch.randn(2, 3, 10, 10)

    def without_relu(program: torch.export.ExportedProgram) -> GraphModule:
        graph = functional_module(program)
        next(node for node in graph.graph.nodes if node.target is torch.ops.aten.relu.default).target = torch.neg
        graph.recompile()
        return graph

    monkeypatch.setattr(quantizer, "functional_module", without_relu)
    with pytest.raises(ExportError, match="gives other values, off by") as refused:
        prepare(network, (x,), QuantizationSettings())
    assert refused.value.hint is not None
    assert "part of a tensor" in refused.value.hint


def test_the_reasons_of_what_stays_float_are_true() -> None:
    torch.manual_seed(0)
    x = torch.randn(2, 3, 8, 8)
    rows, eight = stays_float(prepare(Mobile().eval(), (x,), QuantizationSettings()).graph_module)
    assert eight == 4
    assert [row["kind"] for row in rows] == ["mul", "hardswish"]
    assert "a gate of maps that a curve gave" in rows[0]["why"]


def test_a_graph_that_is_at_hand_is_not_captured_again(monkeypatch: pytest.MonkeyPatch) -> None:
    network, x = Mobile().eval(), torch.randn(2, 3, 8, 8)
    before = copy.deepcopy(network.state_dict())
    graph = capture(network, (x,))
    monkeypatch.setattr(torch.export, "export", None)
    prepared = prepare(network, (x,), QuantizationSettings(), graph=graph)
    prepared.set_mode("passing")
    with torch.no_grad():
        assert torch.allclose(prepared(x), network(x), atol=1e-6)
    assert all(torch.equal(value, network.state_dict()[name]) for name, value in before.items())


class PreActivation(nn.Module):
    """What ResNet v2 and WideResNet do: BatchNorm reads a convolution that a skip reads as well."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm, self.second = (
            nn.Conv2d(3, 4, 3, padding=1),
            nn.BatchNorm2d(4),
            nn.Conv2d(4, 4, 3, padding=1),
        )

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        return (x + self.second(F.relu(self.norm(x)))).mean((2, 3))


def test_a_norm_is_not_folded_into_a_convolution_that_others_read() -> None:
    torch.manual_seed(0)
    network, x = PreActivation().train(), 3 + torch.randn(8, 3, 8, 8)
    with torch.no_grad():
        for _ in range(50):
            network(x)  # statistics that are far from 0 and 1
        quantized = prepare(network.eval(), (x,), QuantizationSettings())
        quantized.set_mode("passing")
        assert torch.allclose(quantized(x), network(x), atol=1e-5)
    assert any(node.target is torch.ops.aten.batch_norm.default for node in quantized.graph_module.graph.nodes)
