"""Post-training quantization: from a float network and calibration data to a quantized one, without training."""

from __future__ import annotations

import math
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
    if settings.mixed is None:
        quantized = prepare(network, example, settings)
        return _calibrated(quantized, Answers(quantized, batches, outputs, divergence), settings)
    trial = prepare(network, example, settings.model_copy(update={"weights": max(settings.mixed.bits)}))
    answers = Answers(trial, batches, outputs, divergence)
    observe(trial, batches)
    mixture = choose(measure(trial, answers, settings.mixed.bits), settings.mixed, settings.layers)
    # Layers are measured alone and are not alone: what the mixture comes to is compared with equal bits for all.
    found = []
    for way in (mixture, mixture.even(settings.mixed)):
        own = settings.model_copy(update={"layers": way.layers, "mixed": None})
        found.append(_calibrated(prepare(network, example, own), answers, own))
        found[-1].mixture = way
    return min(found, key=lambda quantized: quantized.calibration.divergence if quantized.calibration else math.inf)


def _calibrated(quantized: QuantizedNetwork, answers: Answers, settings: QuantizationSettings) -> QuantizedNetwork:
    quantized.calibration = calibrate(quantized, answers, settings)
    return quantized
