"""Quantization: LSQ against the published fixture, ranges, placement, saved scales."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from edgekd.errors import ConfigError, ExportError
from edgekd.models.weights import load_state, save_state
from edgekd.pipeline.schema import load_pipeline
from edgekd.quantize.fake_quant import FakeQuant, lsq
from edgekd.quantize.graph import input_quant, layers_of, weight_quant
from edgekd.quantize.placement import fits
from edgekd.quantize.post_training import calibrated
from edgekd.quantize.quantizer import capture, convert, prepare
from edgekd.quantize.settings import QuantizationSettings
from edgekd.stages.settings import QuantizeStage


class Residual(nn.Module):
    """A residual block between convolutions, a pool and a linear layer."""

    def __init__(self, channels: int = 8) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, channels, 3, padding=1, bias=False), nn.BatchNorm2d(channels), nn.ReLU())
        self.body = nn.Sequential(nn.Conv2d(channels, channels, 3, padding=1, bias=False), nn.BatchNorm2d(channels))
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.head = nn.Linear(channels, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        return self.head(self.pool(torch.relu(x + self.body(x))).flatten(1))


def example(rows: int = 32) -> Tensor:
    return torch.randn(rows, 3, 8, 8, generator=torch.Generator().manual_seed(0))


def quantized(settings: QuantizationSettings | None = None) -> tuple[nn.Module, nn.Module]:
    torch.manual_seed(0)
    network = Residual().eval()
    x = example()
    return network, calibrated(network, (x[:2],), [(x[:16],), (x[16:],)], settings or QuantizationSettings())


class Normalised(Residual):
    """The same behind a normalisation of its own, which has no weights."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward((x - 0.5) / 0.25)


@pytest.mark.parametrize("kind", [Residual, Normalised])
@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, [7, 7, 7]),
        ({"relu_levels": 127}, [7, 8, 8]),
        ({"overflow_fix": "first_layer"}, [7, 8, 8]),
        ({"overflow_fix": "off"}, [8, 8, 8]),
        ({"weights": 4}, [4, 4, 4]),
        ({"layers": {"stem": {"weights": 8}}}, [8, 7, 7]),
    ],
)
def test_weights_leave_room_for_sums_in_16_bits(
    kind: type[nn.Module], options: dict[str, object], expected: list[int]
) -> None:
    torch.manual_seed(0)
    network, x = kind().eval(), example()
    found = calibrated(network, (x[:2],), [(x,)], QuantizationSettings(**options))
    layers = layers_of(found.graph_module)
    assert [weight_quant(found.graph_module, layer.node).bits for layer in layers] == expected
    stored = [p for p in convert(found).state_dict().values() if p.dtype == torch.int8]
    assert len(stored) == 3
    for weight, bits in zip(stored, expected, strict=True):
        assert weight.int().abs().max() <= 2 ** (bits - 1)


class Bottleneck(nn.Module):
    """Inverted: what is handed on has no ReLU; then one with GELU, one with a ReLU6 behind a pool, and a mixture."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.project = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 4, 1)
        self.expand, self.smooth = nn.Conv2d(4, 8, 1), nn.Conv2d(8, 8, 1)
        self.pooled, self.mixed = nn.Conv2d(8, 8, 1), nn.Conv2d(16, 8, 1)
        self.head = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = functional.relu6(self.expand(self.project(self.stem(x).clamp(0, 3))))
        x = self.smooth(functional.max_pool2d(x, 2))
        y = self.pooled(functional.gelu(x))
        return self.head(torch.sigmoid(self.mixed(torch.cat((torch.relu(x), y), 1))).mean((2, 3)))


@pytest.mark.parametrize(
    ("fix", "expected"),
    [("signed_inputs", [7, 8, 7, 8, 7, 7, 8]), ("first_layer", [7, 8, 8, 8, 8, 8, 8]), ("off", [8] * 7)],
)
def test_weights_leave_room_where_inputs_may_be_negative(fix: Any, expected: list[int]) -> None:
    found = prepare(Bottleneck().eval(), (example(2),), QuantizationSettings(overflow_fix=fix))
    assert [weight_quant(found.graph_module, layer.node).bits for layer in layers_of(found.graph_module)] == expected


@pytest.mark.parametrize("levels", [127, 255])
def test_what_is_never_negative_has_the_levels_that_are_asked_for(levels: Any) -> None:
    x = example()
    found = calibrated(Bottleneck().eval(), (x[:2],), [(x,)], QuantizationSettings(relu_levels=levels))
    graph = found.graph_module
    ends = [input_quant(graph, layer.node).quant_max for layer in layers_of(graph)]
    assert ends == [127, levels, 127, levels, 127, 127, levels]
    coarse = found.in_int8()
    assert {f.quant_max for f in coarse.fake_quants() if not f.weight} == {127}
    assert len(found.half_steps()) == len({f for f in found.fake_quants() if f.quant_max == 255})
    if levels == 127:
        assert torch.equal(coarse(x), found(x))


@pytest.mark.parametrize(
    ("targets", "given", "expected"),
    [
        ("ov: {runtime: openvino}", "", (255, "auto")),
        ("ov: {runtime: openvino, device: NPU}", "", (255, "off")),
        ("ort: {runtime: onnxruntime}, ov: {runtime: openvino, precision: [f32]}", "", (255, "off")),
        ("ort: {runtime: onnxruntime, device: OpenVINO}", "", (255, "auto")),
        (
            "ov: {runtime: openvino, precision: [f32]}, rtx: {runtime: tensorrt_rtx, precision: [f16]}",
            "",
            (255, "off"),
        ),
        ("ov: {runtime: openvino}, rtx: {runtime: tensorrt_rtx}", "", (127, "auto")),
        ("rtx: {runtime: tensorrt_rtx}", "overflow_fix: all", (127, "all")),
        ("ov: {runtime: openvino}", "relu_levels: 127", (127, "auto")),
    ],
)
def test_levels_and_room_follow_the_targets_unless_they_are_given(
    targets: str, given: str, expected: tuple[int, str], tmp_path: Path
) -> None:
    path = tmp_path / "p.yaml"
    path.write_text(
        "{name: p, task: classification, data: {digits: {}}, model: resnet8, "
        f"stages: [{{quantize: {{{given}}}}}, export: {{}}, compile: {{}}], targets: {{{targets}}}}}"
    )
    (found,) = [e.settings for e in load_pipeline(path).stages if isinstance(e.settings, QuantizeStage)]
    assert (found.relu_levels, found.overflow_fix) == expected


def test_levels_that_a_target_has_not_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "p.yaml"
    path.write_text(
        "{name: p, task: classification, data: {digits: {}}, model: resnet8, "
        "stages: [{quantize: {relu_levels: 255}}, export: {}, compile: {}], targets: {rtx: {runtime: tensorrt_rtx}}}"
    )
    with pytest.raises(ConfigError, match=r"TensorRT's int8 \(target rtx\) has 127 levels"):
        load_pipeline(path)


def test_concatenated_maps_share_a_grid_that_may_be_negative() -> None:
    class Joined(Bottleneck):
        def forward(self, x: Tensor) -> Tensor:
            x = torch.relu(self.stem(x))
            y = self.smooth(x)
            once = torch.cat((x, torch.relu(y)), 1)  # would be 0 .. 255, but for what its parts are in below
            return self.head(self.mixed(torch.cat((x, y), 1)).mean((2, 3)) + self.mixed(once).mean((2, 3)))

    x = example()
    found = calibrated(Joined().eval(), (x[:2],), [(x,)], QuantizationSettings())
    mixed = [layer for layer in layers_of(found.graph_module) if layer.weight.startswith("mixed")]
    assert [input_quant(found.graph_module, layer.node).quant_max for layer in mixed] == [127, 127]


def test_lsq_has_the_published_values_and_gradients() -> None:
    x, scale = torch.tensor([0.9, -0.3, 0.1], dtype=torch.float64), torch.tensor([0.25], dtype=torch.float64)
    scale.requires_grad_()
    found = lsq(x, scale, -2, 1)
    assert found.tolist() == [0.25, -0.25, 0.0]
    factor = 1 / math.sqrt(3 * 1)
    assert factor == pytest.approx(0.57735, abs=1e-5)
    for value, expected in zip(found, [1.0, 0.2, -0.4], strict=True):
        (gradient,) = torch.autograd.grad(value, scale, retain_graph=True)
        assert gradient.item() == pytest.approx(expected * factor, rel=1e-9)


def test_lsq_passes_gradients_inside_its_range_and_none_outside() -> None:
    x = torch.tensor([0.9, -0.3, 0.1], requires_grad=True)
    lsq(x, torch.tensor([0.25]), -2, 1).sum().backward()
    assert x.grad is not None
    assert x.grad.tolist() == [0.0, 1.0, 1.0]


@pytest.mark.parametrize("shape", [(1,), (6, 1, 1, 1), (1, 5, 1, 1)])
@pytest.mark.parametrize("grid", [(-8, 7), (0, 15), (-128, 127)])
def test_gradients_of_lsq_are_those_of_autograd_over_its_formula(shape: tuple[int, ...], grid: tuple[int, int]) -> None:
    draw = torch.Generator().manual_seed(0)
    x = torch.randn(6, 5, 4, 3, generator=draw, dtype=torch.float64).requires_grad_()
    scale = (torch.rand(shape, generator=draw, dtype=torch.float64) * 0.1 + 0.01).requires_grad_()
    weights = torch.randn(6, 5, 4, 3, generator=draw, dtype=torch.float64)
    v = (x / scale).clamp(*grid)
    formula = (v + (v.round() - v).detach()) * scale  # straight through
    right = torch.autograd.grad((formula * weights).sum(), (x, scale))
    of_x, of_scale = torch.autograd.grad((lsq(x, scale, *grid) * weights).sum(), (x, scale))
    torch.testing.assert_close(lsq(x, scale, *grid), formula)
    torch.testing.assert_close(of_x, right[0])
    torch.testing.assert_close(of_scale, right[1] / math.sqrt(x.numel() / scale.numel() * grid[1]))


@pytest.mark.parametrize("ranges", ["entropy", "mse", "percentile"])
def test_a_single_outlier_does_not_spoil_the_range(ranges: str) -> None:
    x = torch.randn(100_000, generator=torch.Generator().manual_seed(0))
    x[0] = 30.0
    scales = {}
    for name in (ranges, "minmax"):
        fake_quant = FakeQuant(bits=4)
        fake_quant(x[:50_000])
        fake_quant(x[50_000:])
        fake_quant.set_range(name)
        scales[name] = float(fake_quant.scale.detach())
    assert scales["minmax"] == pytest.approx(30 / 7)
    assert scales[ranges] < scales["minmax"] / 3


def test_ranges_by_mse_are_near_the_best_scale() -> None:
    x = torch.randn(50_000, generator=torch.Generator().manual_seed(0))
    fake_quant = FakeQuant(bits=4)
    fake_quant(x)
    fake_quant.set_range("mse")

    def error(scale: float) -> float:
        return float((lsq(x, torch.tensor([scale]), -8, 7) - x).square().mean())

    best = min(error(s) for s in torch.linspace(0.05, 1.0, 400).tolist())
    assert error(float(fake_quant.scale.detach())) < best * 1.03


def test_the_quantized_network_stays_near_the_float_one_and_every_parameter_learns() -> None:
    network, result = quantized()
    x = example()
    with torch.no_grad():
        expected = network(x)
        error = (result(x) - expected).abs().max() / expected.abs().max()
    assert 0 < error < 0.05
    result(x).square().mean().backward()
    assert [name for name, p in result.named_parameters() if p.grad is None] == []


def test_calibration_leaves_the_float_network_as_it_was() -> None:
    torch.manual_seed(0)
    network = Residual().eval()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    result = calibrated(network, (example()[:2],), [(example(),)], QuantizationSettings())
    with torch.no_grad():
        for parameter in result.parameters():
            parameter.add_(1.0)
    assert all(torch.equal(before[name], value) for name, value in network.state_dict().items())


def test_saved_weights_and_scales_load_into_a_fresh_preparation(tmp_path: Path) -> None:
    network, result = quantized()
    save_state(result, tmp_path / "q.safetensors")
    again = prepare(network, (example()[:2],), QuantizationSettings())
    again.load_state_dict(load_state(tmp_path / "q.safetensors"))
    with torch.no_grad():
        assert torch.equal(again(example()), result(example()))


def test_both_inputs_of_an_addition_and_the_pool_are_quantized() -> None:
    _, result = quantized()
    graph = convert(result).graph  # type: ignore[arg-type]
    for node in graph.nodes:
        name = str(node.target)
        if "conv2d" in name or "aten.add" in name or "adaptive_avg_pool" in name or "linear" in name:
            sources = [a for a in node.args[:2] if isinstance(a, torch.fx.Node)]
            assert all("dequantize" in str(source.target) for source in sources), node


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_fewer_bits_mean_fewer_levels(bits: int) -> None:
    _, result = quantized(QuantizationSettings(weights=bits, activations=bits, overflow_fix="off"))
    signed = {f.quant_max for f in result.fake_quants() if not f.unsigned}  # type: ignore[operator]
    assert signed == {2 ** (bits - 1) - 1}
    # What a ReLU gave never needs the negative half.
    after_relu = {(f.quant_min, f.quant_max) for f in result.fake_quants() if f.unsigned}  # type: ignore[operator]
    assert after_relu == {(0, 2**bits - 1)}
    weights = [f for f in result.fake_quants() if f.axis == 0]  # type: ignore[operator]
    levels = weights[0](torch.randn(8, 3, 3, 3)) / weights[0].scale.reshape(-1, 1, 1, 1)
    assert len(levels.round().unique()) <= 2**bits


def test_a_network_that_branches_on_values_is_refused_with_the_line_of_its_code() -> None:
    class Branches(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 4, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.conv(x) if float(x.sum()) > 0 else x

    with pytest.raises(ExportError, match=r"cannot be captured as a graph: .*\(test_quantize.py:\d+\)"):
        capture(Branches(), (example()[:2],))


def test_a_network_without_anything_to_quantize_is_refused() -> None:
    with pytest.raises(ExportError, match="nothing in the network can be quantized"):
        prepare(nn.Flatten(), (example()[:2],), QuantizationSettings())


@pytest.mark.parametrize(
    ("pattern", "fitting"),
    [
        ("block1", {"block1.conv1", "block1.conv2"}),
        ("block1.*1", {"block1.conv1"}),
        ("block*", {"block1.conv1", "block1.conv2", "block2"}),
        ("head", set()),
    ],
)
def test_a_pattern_may_name_a_module_that_holds_layers(pattern: str, fitting: set[str]) -> None:
    assert {name for name in ("block1.conv1", "block1.conv2", "block2", "header") if fits(name, pattern)} == fitting
