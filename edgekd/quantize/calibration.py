"""Calibration: ranges from data, equalised channels, corrected biases; of all that can be chosen, what serves best.

The judge is how far the quantized network's answers are from the float network's on the calibration data; no labels.
Choices are made one after the other, each kept if the answers come closer: equalisation, the ranges of activations,
those of weights, the correction of biases.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from edgekd.quantize.equalize import equalize, pairs_of
from edgekd.quantize.graph import channel_means, correct_biases, layers_of
from edgekd.quantize.quantizer import QuantizedNetwork
from edgekd.quantize.ranges import METHODS
from edgekd.quantize.settings import QuantizationSettings
from edgekd.train.world import named_outputs

Outputs = Mapping[str, Tensor]
Divergence = Callable[[Outputs, Outputs], float]
"""How far named outputs (N, ..) are from those that are right; 0 where they are equal."""

_BIAS_BATCHES = 2  # they are all in memory at once
_BETTER = 0.98  # what is more work must bring this much; equal divergences differ by chance


def squared_error(found: Outputs, reference: Outputs) -> float:
    """Mean squared difference over all outputs: for whoever knows nothing of what they mean."""
    return float(torch.stack([(found[name] - reference[name]).square().mean() for name in reference]).sum())


class Answers:
    """What a float network says of calibration data, and how far a quantized one is from it.

    Args:
        network: prepared; it is asked with every fake-quant passing.
        batches: inputs (N, ..) in the order of the network's forward; labels are not needed.
        outputs: names of what the network returns.
        divergence: the judge.
    """

    @torch.no_grad()
    def __init__(
        self,
        network: QuantizedNetwork,
        batches: Sequence[tuple[Tensor, ...]],
        outputs: tuple[str, ...] = ("output",),
        divergence: Divergence = squared_error,
    ) -> None:
        self.batches, self._outputs, self._divergence = batches, outputs, divergence
        network.set_mode("passing")
        self._right = self._asked(network)

    @torch.no_grad()
    def divergence(self, network: QuantizedNetwork) -> float:
        """How far the network's answers are, over all batches."""
        return self._divergence(self._asked(network), self._right)

    def _asked(self, network: QuantizedNetwork) -> Outputs:
        parts = [named_outputs(network(*batch), self._outputs) for batch in self.batches]
        return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}


@torch.no_grad()
def observe(network: QuantizedNetwork, batches: Sequence[tuple[Tensor, ...]]) -> None:
    """Let every fake-quant see the batches, anew."""
    network.set_mode("observing")
    for batch in batches:
        network(*batch)


@dataclass
class Calibration:
    """What was looked at, what was tried, in order, and what came of it.

    Attributes:
        samples: how many there were.
        digest: hex sha256 of what the network was given.
        divergence: of the answers, in the end.
        tried: what it was, `divergence` of the answers, `kept` whether it went on.
    """

    samples: int
    digest: str
    divergence: float = math.nan
    tried: list[dict[str, object]] = field(default_factory=list)

    def note(self, what: str, divergence: float, kept: bool) -> bool:
        """Remember one trial; hands `kept` back."""
        self.tried.append({"what": what, "divergence": divergence, "kept": kept})
        return kept


@torch.no_grad()
def calibrate(network: QuantizedNetwork, answers: Answers, settings: QuantizationSettings) -> Calibration:
    """Set all scales of a prepared network, in place; it quantizes from now on. Returns what was tried."""
    samples = sum(len(batch[0]) for batch in answers.batches)
    found = Calibration(samples, _digest(answers.batches))
    if settings.equalization is not False:
        _try_equalization(network, answers, settings, found)
    observe(network, answers.batches)
    _choose_ranges(network, answers, settings, found)
    if settings.bias_correction is not False:
        _try_bias_correction(network, answers, found, always=settings.bias_correction is True)
    found.divergence = answers.divergence(network)
    network.forget()
    return found


def _digest(batches: Sequence[tuple[Tensor, ...]]) -> str:
    digest = hashlib.sha256()
    for batch in batches:
        for x in batch:
            digest.update(x.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


def _try_equalization(
    network: QuantizedNetwork, answers: Answers, settings: QuantizationSettings, found: Calibration
) -> None:
    """Equalise, unless the answers were closer before."""
    graph = network.graph_module
    if not pairs_of(graph):
        return
    # The largest values gain most where channels differ, and what serves one network badly serves the other well.
    methods = ("minmax", "mse") if settings.ranges == "auto" else (settings.ranges,)
    before = {name: value.clone() for name, value in graph.named_parameters()}
    observe(network, answers.batches)
    plain = min(_with_ranges(network, answers, method, "minmax") for method in methods)
    network.set_mode("passing")
    equalize(graph, answers.batches)
    observe(network, answers.batches)
    equal = min(_with_ranges(network, answers, method, "minmax") for method in methods)
    if not found.note("equalization", equal, settings.equalization is True or equal < _BETTER * plain):
        for name, value in before.items():
            if not name.endswith(".scale"):
                graph.get_parameter(name).copy_(value)


def _choose_ranges(
    network: QuantizedNetwork, answers: Answers, settings: QuantizationSettings, found: Calibration
) -> None:
    """First the ranges of activations, then those of weights."""
    methods = METHODS if settings.ranges == "auto" else (settings.ranges,)
    weights = ("minmax", "mse") if settings.weight_ranges == "auto" else (settings.weight_ranges,)
    tried = {method: _with_ranges(network, answers, method, weights[0]) for method in methods}
    method = min(tried, key=lambda name: tried[name])
    for name, divergence in tried.items():
        found.note(f"activations {name}, weights {weights[0]}", divergence, name == method)
    chosen, best = weights[0], tried[method]
    for other in weights[1:]:
        divergence = _with_ranges(network, answers, method, other)
        if found.note(f"activations {method}, weights {other}", divergence, divergence < _BETTER * best):
            chosen, best = other, divergence
    _set_ranges(network, method, chosen)


def _with_ranges(network: QuantizedNetwork, answers: Answers, activations: str, weights: str) -> float:
    _set_ranges(network, activations, weights)
    return answers.divergence(network)


def _set_ranges(network: QuantizedNetwork, activations: str, weights: str) -> None:
    for fake_quant in network.fake_quants():
        fake_quant.set_range(weights if fake_quant.weight else activations)


def _try_bias_correction(network: QuantizedNetwork, answers: Answers, found: Calibration, *, always: bool) -> None:
    """Add to biases what rounding takes off their channels' means (Nagel et al. 2019), if the answers come closer."""
    graph = network.graph_module
    biases = {layer.node: graph.get_parameter(layer.bias) for layer in layers_of(graph) if layer.bias is not None}
    if not biases:
        return
    plain = answers.divergence(network)
    before = {node: bias.clone() for node, bias in biases.items()}
    batches = answers.batches[:_BIAS_BATCHES]
    network.set_mode("passing")
    wanted = channel_means(graph, [*biases], batches)
    network.set_mode("rounding")
    correct_biases(graph, biases, wanted, batches)
    corrected = answers.divergence(network)
    if not found.note("bias correction", corrected, always or corrected < _BETTER * plain):
        for node, bias in biases.items():
            bias.copy_(before[node])
