"""Which layers bear few bits: each is quantized alone, and its bits are chosen under a budget.

A layer's sensitivity at some bits is how far the answers move when its weight alone is rounded to them, on calibration
data, without labels. Beginning at the most bits everywhere, the layer that loses least for what it saves goes down one
step at a time, until the mean is within the budget (Dong et al. 2019 allot bits by such a measure, too).

What a layer costs as a whole, its weight and its inputs rounded together, says whether it had better stay float.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch.fx import Node

from edgekd.quantize.calibration import Answers
from edgekd.quantize.fake_quant import FakeQuant
from edgekd.quantize.graph import input_quant, layers_of, weight_quant
from edgekd.quantize.placement import fits, module_of
from edgekd.quantize.quantizer import QuantizedNetwork
from edgekd.quantize.settings import LayerBits, LayerChoice, MixedSettings


@dataclass(frozen=True)
class Sensitivity:
    """One layer: its name, how many weights it has, and how far the answers move.

    `divergence`: by the bits of its weight alone. `whole`: with its weight and its inputs at the bits asked for.
    """

    layer: str
    weights: int
    divergence: Mapping[int, float]
    whole: float | None = None


@dataclass(frozen=True)
class Step:
    """One step down: the layer, its bits from then on, and what all together then come to."""

    layer: str
    bits: int
    mean_bits: float
    divergence: float


@dataclass(frozen=True)
class Mixture:
    """What was measured, the way down, what was chosen at its end, and what was given beforehand."""

    measured: tuple[Sensitivity, ...]
    steps: tuple[Step, ...]
    chosen: Mapping[str, LayerChoice]
    given: Mapping[str, LayerChoice]

    @property
    def layers(self) -> dict[str, LayerChoice]:
        """Each layer's bits, for the settings, where the last that fits counts: what was given comes after bits that
        were found, but a pattern does not make a layer 8-bit that stays float."""
        stay = {layer: choice for layer, choice in self.chosen.items() if choice == "float"}
        bits = {layer: choice for layer, choice in self.chosen.items() if choice != "float"}
        # A name that was given keeps its place in a dictionary: what comes last is put in last.
        return {**bits, **{k: v for k, v in self.given.items() if k not in stay}, **stay}

    def even(self, settings: MixedSettings) -> Mixture:
        """The same with the most bits that all layers can have within the budget."""
        most = LayerBits(weights=max(bits for bits in settings.bits if bits <= settings.budget))
        chosen = {layer: choice if choice == "float" else most for layer, choice in self.chosen.items()}
        return dataclasses.replace(self, chosen=chosen)

    def rows(self) -> list[dict[str, object]]:
        """A row for each layer: its weights, its sensitivity by bits, and what was chosen."""
        return [
            {"layer": s.layer, "weights": s.weights}
            | {f"divergence at {bits} bits": value for bits, value in s.divergence.items()}
            | ({} if s.whole is None else {"divergence with its inputs": s.whole})
            | {"chosen": self._words(s.layer)}
            for s in self.measured
        ]

    def _words(self, layer: str) -> str:
        if layer not in self.chosen:
            return "given" if _given(layer, self.given) else "as asked"
        choice = self.chosen[layer]
        return choice if isinstance(choice, str) else f"{choice.weights} bits"


@torch.no_grad()
def measure(network: QuantizedNetwork, answers: Answers, bits: Sequence[int]) -> list[Sensitivity]:
    """Sensitivities of all layers of a prepared network that has observed its calibration data.

    Everything else passes as it is; a layer that several operations share counts once.
    """
    network.set_mode("passing")
    found = []
    for node, fake_quant, count in _weighted(network):
        own, by_bits = fake_quant.bits, {}
        for width in bits:
            fake_quant.set_bits(width)
            fake_quant.set_range("minmax" if width >= 8 else "mse")
            by_bits[width] = answers.divergence(network)
        fake_quant.set_bits(own)
        fake_quant.set_mode("passing")
        found.append(Sensitivity(module_of(node), count, by_bits))
    return found


@torch.no_grad()
def measure_whole(network: QuantizedNetwork, answers: Answers, measured: Sequence[Sensitivity]) -> list[Sensitivity]:
    """The same with what each layer costs as a whole: its weight and its inputs rounded, at the bits that they have.

    Inputs that other layers read too are rounded for those as well.
    """
    network.set_mode("passing")
    found = []
    for (node, weight, _), known in zip(_weighted(network), measured, strict=True):
        rounded = [f for f in (weight, input_quant(network.graph_module, node)) if f is not None]
        for fake_quant in rounded:
            fake_quant.set_range("minmax" if fake_quant.bits >= 8 else "mse")
        found.append(dataclasses.replace(known, whole=answers.divergence(network)))
        for fake_quant in rounded:
            fake_quant.set_mode("passing")
    return found


def staying(measured: Sequence[Sensitivity], limit: float | None, given: Mapping[str, LayerChoice]) -> set[str]:
    """Layers that cost more than the limit and so stay float; those given by their full name are as they are given."""
    if limit is None:
        return set()
    return {s.layer for s in measured if s.whole is not None and s.whole > limit and s.layer not in given}


def choose(
    measured: Sequence[Sensitivity],
    settings: MixedSettings | None,
    given: Mapping[str, LayerChoice],
    floats: Collection[str] = (),
) -> Mixture:
    """The bits of every layer that is not given, such that the mean over their weights is within the budget.

    Args:
        settings: None where bits are not to be found.
        floats: layers that stay float.
    """
    stay: dict[str, LayerChoice] = dict.fromkeys(sorted(floats), "float")
    if settings is None:
        return Mixture(tuple(measured), (), stay, given)
    widths = sorted(settings.bits, reverse=True)
    free = [s for s in measured if s.layer not in stay and not _given(s.layer, given)]
    level = {s.layer: 0 for s in free}
    total = sum(s.weights for s in free)
    steps: list[Step] = []

    def mean() -> float:
        return sum(s.weights * widths[level[s.layer]] for s in free) / max(total, 1)

    while free and mean() > settings.budget:
        down = [s for s in free if level[s.layer] + 1 < len(widths)]

        def price(s: Sensitivity) -> float:
            now, then = widths[level[s.layer]], widths[level[s.layer] + 1]
            return (s.divergence[then] - s.divergence[now]) / (s.weights * (now - then))

        cheapest = min(down, key=price)
        level[cheapest.layer] += 1
        moved = sum(s.divergence[widths[level[s.layer]]] for s in free)
        steps.append(Step(cheapest.layer, widths[level[cheapest.layer]], mean(), moved))
    chosen: dict[str, LayerChoice] = {s.layer: LayerBits(weights=widths[level[s.layer]]) for s in free}
    return Mixture(tuple(measured), tuple(steps), chosen | stay, given)


def _given(layer: str, given: Mapping[str, LayerChoice]) -> bool:
    return any(fits(layer, pattern) for pattern in given)


def _weighted(network: QuantizedNetwork) -> list[tuple[Node, FakeQuant, int]]:
    """Layers with the fake-quant of their weight and its number of values, each weight once."""
    graph = network.graph_module
    found: dict[str, tuple[Node, FakeQuant, int]] = {}
    for layer in layers_of(graph):
        fake_quant = weight_quant(graph, layer.node)
        if fake_quant is not None:
            found.setdefault(layer.weight, (layer.node, fake_quant, graph.get_parameter(layer.weight).numel()))
    return list(found.values())
