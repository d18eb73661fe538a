"""Calibration: ranges, equalised channels, corrected biases, bits by layer; places of a captured network."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from edgekd.config import validate
from edgekd.errors import ConfigError, ExportError
from edgekd.quantize.calibration import Answers, observe
from edgekd.quantize.equalize import equalize, pairs_of
from edgekd.quantize.graph import channel_means, layers_of
from edgekd.quantize.places import add_places
from edgekd.quantize.post_training import calibrated
from edgekd.quantize.quantizer import QuantizedNetwork, convert, prepare
from edgekd.quantize.ranges import BINS, METHODS, clipping_value, weight_clipping
from edgekd.quantize.sensitivity import Sensitivity, choose, staying
from edgekd.quantize.settings import LayerBits, MixedSettings, QuantizationSettings


class Depthwise(nn.Module):
    """A stem, a depthwise and two dense convolutions, whose channels differ a thousandfold in size."""

    def __init__(self, activation: type[nn.Module] = nn.ReLU) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.depthwise = nn.Conv2d(8, 8, 3, padding=1, groups=8)
        self.mix = nn.Conv2d(8, 12, 1)
        self.grouped = nn.Conv2d(12, 6, 1, groups=2)
        self.act = activation()
        self.head = nn.Linear(6, 5)
        with torch.no_grad():
            for layer, low, high in ((self.stem, -2, 0.5), (self.depthwise, -1, 1), (self.mix, -1, 1)):
                sizes = torch.logspace(low, high, layer.out_channels)
                layer.weight.mul_(sizes.view(-1, 1, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        x = self.act(self.depthwise(self.act(self.stem(x))))
        return self.head(self.grouped(self.act(self.mix(x))).mean((2, 3)))


def images(rows: int = 64) -> Tensor:
    return torch.randn(rows, 3, 8, 8, generator=torch.Generator().manual_seed(0))


def network(activation: type[nn.Module] = nn.ReLU) -> nn.Module:
    torch.manual_seed(0)
    return Depthwise(activation).eval()


def settings(**given: object) -> QuantizationSettings:
    found, problems = validate(QuantizationSettings, given)
    assert found is not None, problems
    return found


def error(found: nn.Module, like: nn.Module) -> float:
    x = images()
    with torch.no_grad():
        return float((found(x) - like(x)).square().mean() / like(x).var())


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("bits", [2, 4, 8])
def test_a_clipping_value_lies_within_what_was_seen_and_keeps_what_is_common(method: str, bits: int) -> None:
    x = torch.randn(200_000, generator=torch.Generator().manual_seed(1)).abs()
    top = float(x.max())
    counts = torch.histc(x, BINS, 0.0, top).double()
    found = clipping_value(method, counts, top, 2 ** (bits - 1) - 1)
    assert found <= top
    assert found >= (0.5 if bits == 2 else 1.5)  # of a standard deviation of 1


def test_entropy_cuts_off_a_few_far_values_and_keeps_a_flat_distribution_whole() -> None:
    far = torch.cat((torch.randn(100_000, generator=torch.Generator().manual_seed(1)).abs(), torch.tensor([40.0])))
    counts = torch.histc(far, BINS, 0.0, 40.0).double()
    assert clipping_value("entropy", counts, 40.0, 127) < 10
    flat = torch.full((BINS,), 50.0, dtype=torch.float64)
    assert clipping_value("entropy", flat, 1.0, 127) > 0.95


def test_zeros_of_a_relu_do_not_move_the_entropy_range() -> None:
    counts = torch.histc(
        torch.randn(100_000, generator=torch.Generator().manual_seed(1)).abs(), BINS, 0.0, 5.0
    ).double()
    with_zeros = counts.clone()
    with_zeros[0] += 1e6
    assert clipping_value("entropy", with_zeros, 5.0, 127) == clipping_value("entropy", counts, 5.0, 127)


@pytest.mark.parametrize("levels", [1, 7])
def test_weights_are_clipped_where_their_squared_error_is_least(levels: int) -> None:
    weight = torch.randn(4, 500, generator=torch.Generator().manual_seed(2))

    def squared(clip: Tensor) -> Tensor:
        scale = (clip / levels).unsqueeze(1)
        return ((weight / scale).round().clamp(-levels - 1, levels) * scale - weight).square().sum(1)

    found = weight_clipping("mse", weight, levels)
    tried = torch.stack([squared(weight.abs().amax(1) * share) for share in torch.linspace(0.05, 1.0, 200)])
    assert bool((squared(found) <= 1.03 * tried.amin(0)).all())
    assert torch.equal(weight_clipping("minmax", weight, levels), weight.abs().amax(1))


@pytest.mark.parametrize("activation", [nn.ReLU, nn.ReLU6])
def test_equalising_changes_nothing_that_the_network_says_and_brings_channels_together(
    activation: type[nn.Module],
) -> None:
    float_network = network(activation)
    prepared = prepare(float_network, (images(2),), settings())
    prepared.set_mode("passing")
    with torch.no_grad():
        before = prepared(images())
        equalize(prepared.graph_module, [(images(),)])
        after = prepared(images())
    assert len(pairs_of(prepared.graph_module)) == 3  # stem-depthwise, depthwise-mix, mix-grouped
    assert torch.allclose(before, after, rtol=1e-4, atol=1e-5)
    stem = next(layer for layer in layers_of(prepared.graph_module))
    sizes = prepared.graph_module.get_parameter(stem.weight).detach().flatten(1).norm(dim=1)
    assert float(sizes.max() / sizes.min()) < 30  # of 300


def test_equalisation_helps_where_channels_differ_much_and_is_then_kept() -> None:
    float_network, x = network(), images()
    found = {
        choice: calibrated(
            float_network, (x[:2],), [(x,)], settings(equalization=choice, bias_correction=False, relu_levels=127)
        )
        for choice in (True, False, "auto")
    }
    errors = {choice: error(quantized, float_network) for choice, quantized in found.items()}
    assert errors[True] < 0.5 * errors[False]
    assert errors["auto"] == errors[True]
    tried = found["auto"].calibration
    assert tried is not None
    assert [trial["kept"] for trial in tried.tried if trial["what"] == "equalization"] == [True]


def test_corrected_biases_give_each_channel_the_mean_that_it_had() -> None:
    float_network, x = network(), images()
    common = {"weights": 3, "activations": 8, "equalization": False, "ranges": "minmax", "weight_ranges": "minmax"}
    shifts = {}
    for choice in (True, False):
        quantized = calibrated(float_network, (x[:2],), [(x,)], settings(bias_correction=choice, **common))
        nodes = [layer.node for layer in layers_of(quantized.graph_module)]
        rounded = channel_means(quantized.graph_module, nodes, [(x,)])
        right = prepare(float_network, (x[:2],), settings())
        right.set_mode("passing")
        wanted = channel_means(right.graph_module, [layer.node for layer in layers_of(right.graph_module)], [(x,)])
        pairs = zip(rounded.values(), wanted.values(), strict=True)
        shifts[choice] = max(float((a - b).abs().max() / b.abs().max()) for a, b in pairs)
    assert shifts[True] < 0.05  # biases come in steps
    assert shifts[False] > 0.01


def test_the_best_of_all_ranges_is_taken_and_the_report_says_what_was_tried() -> None:
    float_network, x = network(), images()
    found = calibrated(float_network, (x[:2],), [(x[:40],), (x[40:],)], settings(weights=4, activations=4))
    report = found.calibration
    assert report is not None
    assert report.samples == 64
    assert len(report.digest) == 64
    ranges = {str(t["what"]): t for t in report.tried if str(t["what"]).startswith("activations")}
    assert {name.split(",")[0].removeprefix("activations ") for name in ranges} == set(METHODS)
    best = min(t["divergence"] for t in ranges.values() if "weights minmax" in str(t["what"]))  # type: ignore[type-var]
    assert next(t["divergence"] for t in ranges.values() if t["kept"]) == best
    again = calibrated(float_network, (x[:2],), [(x[:40],), (x[40:],)], settings(weights=4, activations=4))
    assert again.calibration == report
    other = calibrated(float_network, (x[:2],), [(x[1:41],), (x[40:],)], settings(weights=4, activations=4)).calibration
    assert other is not None
    assert other.digest != report.digest


def bits_of(quantized: QuantizedNetwork) -> dict[str, int]:
    from edgekd.quantize.graph import weight_quant
    from edgekd.quantize.placement import module_of

    found = {}
    for layer in layers_of(quantized.graph_module):
        fake_quant = weight_quant(quantized.graph_module, layer.node)
        if fake_quant is not None:
            found[module_of(layer.node)] = fake_quant.bits
    return found


def test_layers_take_their_own_bits_or_stay_float() -> None:
    x = images()
    given = {"*": {"weights": 6}, "mix": {"weights": 2, "activations": 3}, "head": "float"}
    quantized = calibrated(network(), (x[:2],), [(x,)], settings(layers=given))
    assert bits_of(quantized) == {"stem": 6, "depthwise": 6, "mix": 2, "grouped": 6}
    graph = convert(quantized)
    linear = next(node for node in graph.graph.nodes if "linear" in str(node.target))
    assert "dequantize" not in str(linear.args[1])
    assert error(quantized, network()) < 1


def test_a_layer_that_is_not_there_is_named_with_the_nearest() -> None:
    with pytest.raises(ConfigError, match="no layer fits 'steam'") as caught:
        prepare(network(), (images(2),), settings(layers={"steam": {"weights": 4}}))
    assert "stem" in caught.value.hint


def test_one_scale_for_a_whole_weight_if_asked() -> None:
    x = images()
    quantized = calibrated(network(), (x[:2],), [(x,)], settings(per_channel=False))
    assert {tuple(f.scale.shape) for f in quantized.fake_quants()} == {(1,)}
    with torch.no_grad():
        assert torch.allclose(convert(quantized)(x), quantized.in_int8()(x), atol=1e-5)


@pytest.mark.parametrize("bits", [2, 3, 5, 8])
def test_converted_graphs_compute_what_the_fake_quantized_network_does(bits: int) -> None:
    x = images()
    quantized = calibrated(network(), (x[:2],), [(x,)], settings(weights=bits, activations=bits))
    with torch.no_grad():
        found, expected = convert(quantized)(x), quantized.in_int8()(x)
    assert float((found - expected).abs().max()) <= 1e-4 * float(expected.abs().max())


def sensitivities() -> list[Sensitivity]:
    return [
        Sensitivity("robust", 1000, {8: 0.0, 4: 0.001, 2: 0.002}),
        Sensitivity("fragile", 1000, {8: 0.0, 4: 0.5, 2: 2.0}),
        Sensitivity("small", 10, {8: 0.3, 4: 0.4, 2: 0.9}),
    ]


def test_bits_go_where_they_count_within_the_budget() -> None:
    mixture = choose(sensitivities(), MixedSettings(budget=5.1, bits=(8, 4, 2)), {})
    bits = {name: choice.weights for name, choice in mixture.layers.items() if isinstance(choice, LayerBits)}
    assert bits["robust"] == 2
    assert bits["fragile"] == 8
    assert mixture.steps[-1].mean_bits <= 5.1 < mixture.steps[-2].mean_bits
    assert [step.mean_bits for step in mixture.steps] == sorted((s.mean_bits for s in mixture.steps), reverse=True)


def test_what_is_given_stays_and_what_is_too_sensitive_stays_float() -> None:
    whole = [replace(s, whole=w) for s, w in zip(sensitivities(), (0.0, 0.5, 0.3), strict=True)]
    given = {"fragile": LayerBits(weights=8), "*": LayerBits(activations=8)}
    assert staying(whole, 0.1, given) == {"small"}
    assert staying(whole, 0.4, {}) == {"fragile"}
    assert staying(whole, None, {}) == set()
    mixture = choose(whole, MixedSettings(budget=4.0, bits=(8, 4, 2)), {"fragile": LayerBits(weights=8)}, {"small"})
    assert mixture.layers["small"] == "float"
    assert mixture.layers["fragile"] == LayerBits(weights=8)
    assert mixture.layers["robust"] == LayerBits(weights=4)
    assert [*choose(whole, None, given, {"small"}).layers] == ["fragile", "*", "small"]  # the last that fits counts


class Fragile(nn.Module):
    """Two branches; in one a few inputs are ten thousand times as large as those that its answers hang on."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.good = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1)
        self.bad, self.head = nn.Linear(8, 5), nn.Linear(8, 5)
        self.register_buffer("sizes", torch.tensor([1e4, *[1.0] * 7]))
        with torch.no_grad():
            self.bad.weight[:, 0] = 0.0

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.good(torch.relu(self.stem(x)))).mean((2, 3))
        return self.head(x) + self.bad(x * self.sizes)


def test_float_above_leaves_float_what_its_inputs_make_fragile_with_and_without_mixed_bits() -> None:
    torch.manual_seed(0)
    float_network, x = Fragile().eval(), images()
    plain = calibrated(float_network, (x[:2],), [(x,)], settings(ranges="minmax"))
    found = calibrated(float_network, (x[:2],), [(x,)], settings(ranges="minmax", float_above=1e-4))
    assert set(bits_of(found)) == {"stem", "good", "head"}
    assert error(found, float_network) < 0.1 * error(plain, float_network)
    assert found.mixture is not None
    rows = {row["layer"]: row for row in found.mixture.rows()}
    assert [rows[layer]["chosen"] for layer in ("bad", "head")] == ["float", "as asked"]
    assert rows["bad"]["divergence with its inputs"] > 1e-4 > rows["head"]["divergence with its inputs"]  # type: ignore[operator]
    for given in ({"budget": 6, "float_above": 1e-4}, {"budget": 6}):
        more = {} if "float_above" in given else {"float_above": 1e-4}
        mixed = calibrated(float_network, (x[:2],), [(x,)], settings(ranges="minmax", mixed=given, **more))
        assert "bad" not in bits_of(mixed)
    kept = settings(ranges="minmax", float_above=1e-4, layers={"bad": {"weights": 8}})
    assert "bad" in bits_of(calibrated(float_network, (x[:2],), [(x,)], kept))
    again = prepare(float_network, (x[:2],), found.settings)
    again.load_state_dict(found.state_dict())
    with torch.no_grad():
        assert torch.equal(again(x), found(x))


def test_one_limit_for_float_layers_and_one_that_leaves_nothing_is_told() -> None:
    _, problems = validate(QuantizationSettings, {"float_above": 1, "mixed": {"budget": 4, "float_above": 1}})
    assert "float_above stands here and under mixed" in problems[0].message
    with pytest.raises(ExportError, match="every layer of the network stays float"):
        prepare(network(), (images(2),), settings(layers={"*": "float"}))


def test_the_order_of_patterns_survives_a_file_that_sorts_its_keys() -> None:
    given = settings(layers={"layer1": {"weights": 4}, "layer?": {"weights": 6}, "*": "float"})
    turned = settings(layers={"*": "float", "layer?": {"weights": 6}, "layer1": {"weights": 4}})
    assert json.dumps(given.canonical(), sort_keys=True) != json.dumps(turned.canonical(), sort_keys=True)
    for one in (given, turned, settings()):
        again = QuantizationSettings.model_validate_json(json.dumps(one.canonical(), sort_keys=True))
        assert [*again.layers.items()] == [*one.layers.items()]


def test_a_budget_below_every_width_is_a_mistake() -> None:
    found, problems = validate(MixedSettings, {"budget": 3, "bits": [8, 4]})
    assert found is None
    assert "no layer has fewer than 4 bits" in problems[0].message


def test_mixed_bits_keep_the_budget_and_serve_no_worse_than_uniform_bits() -> None:
    float_network, x = network(), images()
    mixed = calibrated(float_network, (x[:2],), [(x,)], settings(mixed={"budget": 4.0}))
    uniform = calibrated(float_network, (x[:2],), [(x,)], settings(weights=4))
    counts = {name: dict(float_network.named_modules())[name].weight.numel() for name in bits_of(mixed)}
    mean = sum(bits * counts[name] for name, bits in bits_of(mixed).items()) / sum(counts.values())
    assert mean <= 4.0
    assert error(mixed, float_network) <= error(uniform, float_network)
    roomy = calibrated(float_network, (x[:2],), [(x,)], settings(mixed={"budget": 5.5}))
    assert len(set(bits_of(roomy).values())) > 1
    assert error(roomy, float_network) < error(uniform, float_network)
    # It is rebuilt from its settings alone.
    again = prepare(float_network, (x[:2],), mixed.settings)
    again.load_state_dict(mixed.state_dict())
    with torch.no_grad():
        assert torch.equal(again(x), mixed(x))


def test_places_show_what_modules_gave_and_leave_no_trace_in_the_converted_graph() -> None:
    x = images(8)
    quantized = calibrated(network(), (x[:2],), [(x,)], settings())
    with torch.no_grad():
        plain, converted = quantized(x), convert(quantized)(x)
    add_places(quantized, quantized.graph_module, ["mix", "head:in"])
    seen: dict[str, Tensor] = {}
    for name in ("mix", "head"):
        quantized.get_submodule(name).register_forward_hook(lambda m, i, o, n=name: seen.update({n: o}))
    with torch.no_grad():
        assert torch.equal(quantized(x), plain)
        assert torch.equal(convert(quantized)(x), converted)
    assert seen["mix"].shape == (8, 12, 8, 8)
    assert seen["head"].shape == (8, 6)
    with pytest.raises(ConfigError, match="no layer 'mixx'"):
        add_places(quantized, quantized.graph_module, ["mixx"])


def test_answers_are_judged_against_the_float_network_whatever_was_calibrated() -> None:
    x = images()
    prepared = prepare(network(), (x[:2],), settings())
    answers = Answers(prepared, [(x,)])
    observe(prepared, [(x,)])
    assert answers.divergence(prepared) == 0  # observing rounds nothing
    for fake_quant in prepared.fake_quants():
        fake_quant.set_range("minmax")
    coarse = answers.divergence(prepared)
    assert math.isfinite(coarse)
    assert coarse > 0
