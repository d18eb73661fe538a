"""Post-training quantization: from a float network and calibration data to a quantized one, without training."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor, nn

from edgekd.quantize.calibration import Answers, Divergence, Outputs, calibrate, observe, squared_error
from edgekd.quantize.quantizer import QuantizedNetwork, prepare
from edgekd.quantize.sensitivity import choose, measure
from edgekd.quantize.settings import QuantizationSettings


def calibrated(
    network: nn.Module,
    example: tuple[Tensor, ...],
    batches: Sequence[tuple[Tensor, ...]],
    settings: QuantizationSettings,
    *,
    outputs: Callable[[Any], Outputs] = lambda result: {"output": result},
    divergence: Divergence = squared_error,
) -> QuantizedNetwork:
    """A quantized copy of a float network, its scales and, where the settings ask for it, its layers' bits from data.

    Args:
        network: in evaluation mode; stays as it is.
        example: inputs of at least two samples.
        batches: calibration data, inputs (N, ..) in the order of the network's forward.
        outputs: names what the network returns.
        divergence: how far answers are from the float network's: what every choice is judged by.

    Raises:
        ExportError: the network cannot be captured, or has nothing to quantize.
        ConfigError: the settings name a layer that is not there.
    """
    mixture = None
    if settings.mixed is not None:
        widest = settings.model_copy(update={"weights": max(settings.mixed.bits)})
        trial = prepare(network, example, widest)
        answers = Answers(trial, batches, outputs, divergence)
        observe(trial, batches)
        mixture = choose(measure(trial, answers, settings.mixed.bits), settings.mixed, settings.layers)
        settings = settings.model_copy(update={"layers": mixture.layers, "mixed": None})
    quantized = prepare(network, example, settings)
    answers = Answers(quantized, batches, outputs, divergence)
    quantized.calibration, quantized.mixture = calibrate(quantized, answers, settings), mixture
    return quantized
