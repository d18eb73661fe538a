"""Calibration: ranges from data, equalised channels, corrected biases; of all that can be chosen, what serves best.

The judge is how far the quantized network's answers are from the float network's on the calibration data; no labels.
Choices are made one after the other, each kept if the answers come closer: equalisation, the ranges of activations,
those of weights, the correction of biases.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.fx import Node

from edgekd.quantize.equalize import equalize, pairs_of
from edgekd.quantize.graph import channel_means, correct_biases, layers_of
from edgekd.quantize.quantizer import QuantizedNetwork
from edgekd.quantize.ranges import METHODS
from edgekd.quantize.settings import QuantizationSettings

Outputs = Mapping[str, Tensor]
Divergence = Callable[[Outputs, Outputs], float]
"""How far named outputs (N, ..) are from those that are right; 0 where they are equal."""

_BIAS_BATCHES = 2  # they are all in memory at once
_BETTER = 0.98  # what is more work must bring this much; equal divergences differ by chance


@dataclass
class Calibration:
    """What was tried, in order, and what came of it: `divergence` of the answers, `kept` whether it went on."""

    tried: list[dict[str, object]] = field(default_factory=list)

    def note(self, what: str, divergence: float, kept: bool) -> bool:
        """Remember one trial; hands `kept` back."""
        self.tried.append({"what": what, "divergence": divergence, "kept": kept})
        return kept


def squared_error(found: Outputs, reference: Outputs) -> float:
    """Mean squared difference over all outputs: for whoever knows nothing of what they mean."""
    return float(torch.stack([(found[name] - reference[name]).square().mean() for name in reference]).sum())


def calibrate(
    network: QuantizedNetwork,
    batches: Sequence[tuple[Tensor, ...]],
    settings: QuantizationSettings,
    *,
    outputs: Callable[[Any], Outputs] = lambda result: {"output": result},
    divergence: Divergence = squared_error,
) -> Calibration:
    """Set all scales of a prepared network, in place; it quantizes from now on.

    Args:
        batches: inputs (N, ..) in the order of the network's forward; labels are not needed.
        outputs: names what the network returns.
        divergence: the judge of what is to be chosen.

    Returns: what was tried.
    """
    found = _Calibrator(network, batches, outputs, divergence).run(settings)
    network.calibration = found
    return found


class _Calibrator:
    """The work of `calibrate`."""

    def __init__(
        self,
        network: QuantizedNetwork,
        batches: Sequence[tuple[Tensor, ...]],
        outputs: Callable[[Any], Outputs],
        divergence: Divergence,
    ) -> None:
        self.network, self.batches = network, batches
        self._outputs, self._divergence = outputs, divergence
        self.report = Calibration()
        self._reference: list[Outputs] = []

    @torch.no_grad()
    def run(self, settings: QuantizationSettings) -> Calibration:
        """Observe, choose, and quantize from now on."""
        self._observe()
        if settings.equalization is not False:
            self._try_equalization(settings)
        self._choose_ranges(settings)
        if settings.bias_correction is not False:
            self._try_bias_correction(always=settings.bias_correction is True)
        for fake_quant in self.network.fake_quants():
            fake_quant.finish()
        return self.report

    def _observe(self) -> None:
        for fake_quant in self.network.fake_quants():
            fake_quant.observe()
        self._reference = [self._outputs(self.network(*batch)) for batch in self.batches]

    def _try_equalization(self, settings: QuantizationSettings) -> None:
        """Equalise and observe again, unless the answers were closer before."""
        graph = self.network.graph_module
        if not pairs_of(graph):
            return
        method = "mse" if settings.ranges == "auto" else settings.ranges
        before = {name: value.clone() for name, value in graph.named_parameters()}
        plain = self._with_ranges(method, "minmax")
        self._observe()
        equalize(graph, self.batches)
        self._observe()
        found = self._with_ranges(method, "minmax")
        always = settings.equalization is True
        if not self.report.note("equalization", found, always or found < _BETTER * plain):
            for name, value in before.items():
                if not name.endswith(".scale"):
                    graph.get_parameter(name).copy_(value)
        self._observe()

    def _choose_ranges(self, settings: QuantizationSettings) -> None:
        methods = METHODS if settings.ranges == "auto" else (settings.ranges,)
        weights = ("minmax", "mse") if settings.weight_ranges == "auto" else (settings.weight_ranges,)
        found = {method: self._with_ranges(method, weights[0]) for method in methods}
        method = min(found, key=lambda name: found[name])
        for name, divergence in found.items():
            self.report.note(f"activations {name}, weights {weights[0]}", divergence, name == method)
        chosen, best = weights[0], found[method]
        for other in weights[1:]:
            divergence = self._with_ranges(method, other)
            if self.report.note(f"activations {method}, weights {other}", divergence, divergence < _BETTER * best):
                chosen, best = other, divergence
        self._set_ranges(method, chosen)

    def _set_ranges(self, activations: str, weights: str) -> None:
        for fake_quant in self.network.fake_quants():
            fake_quant.set_range(weights if fake_quant.weight else activations)

    def _with_ranges(self, activations: str, weights: str) -> float:
        self._set_ranges(activations, weights)
        return self._answers()

    def _answers(self) -> float:
        """Divergence of the quantized answers on all batches."""
        found = [self._outputs(self.network(*batch)) for batch in self.batches]
        together = [{n: torch.cat([part[n] for part in parts]) for n in parts[0]} for parts in (found, self._reference)]
        return self._divergence(together[0], together[1])

    def _try_bias_correction(self, *, always: bool) -> None:
        """Add to biases what rounding takes off their channels' means (Nagel et al. 2019), if the answers come closer."""
        graph = self.network.graph_module
        biases = {layer.node: graph.get_parameter(layer.bias) for layer in layers_of(graph) if layer.bias is not None}
        if not biases:
            return
        plain = self._answers()
        before = {node: bias.clone() for node, bias in biases.items()}
        correct_biases(graph, biases, self._float_means([*biases]), self.batches[:_BIAS_BATCHES])
        corrected = self._answers()
        if not self.report.note("bias correction", corrected, always or corrected < _BETTER * plain):
            for node, bias in biases.items():
                bias.copy_(before[node])

    def _float_means(self, nodes: Sequence[Node]) -> dict[Node, Tensor]:
        """Means of nodes' channels without any rounding."""
        fake_quants = self.network.fake_quants()
        for fake_quant in fake_quants:
            fake_quant.mode = "passing"
        means = channel_means(self.network.graph_module, nodes, self.batches[:_BIAS_BATCHES])
        for fake_quant in fake_quants:
            fake_quant.mode = "rounding"
        return means
