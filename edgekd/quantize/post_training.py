"""Post-training quantization: from a float network and calibration data to a quantized one, without training."""

from __future__ import annotations

import math
from collections.abc import Sequence

from torch import Tensor, nn

from edgekd.quantize.calibration import Answers, Divergence, calibrate, observe, squared_error
from edgekd.quantize.quantizer import QuantizedNetwork, prepare
from edgekd.quantize.sensitivity import choose, measure, measure_whole, staying
from edgekd.quantize.settings import QuantizationSettings


def calibrated(
    network: nn.Module,
    example: tuple[Tensor, ...],
    batches: Sequence[tuple[Tensor, ...]],
    settings: QuantizationSettings,
    *,
    outputs: tuple[str, ...] = ("output",),
    divergence: Divergence = squared_error,
) -> QuantizedNetwork:
    """A quantized copy of a float network, its scales and, where the settings ask for it, its layers' bits from data.

    Args:
        network: in evaluation mode; stays as it is.
        example: inputs of at least two samples.
        batches: calibration data, inputs (N, ..) in the order of the network's forward.
        outputs: names of what the network returns.
        divergence: how far answers are from the float network's: what every choice is judged by.

    Raises:
        ExportError: the network cannot be captured, or has nothing to quantize.
        ConfigError: the settings name a layer or an output that is not there.
    """
    mixed, limit = settings.mixed, settings.stays_float_above
    if mixed is None and limit is None:
        quantized = prepare(network, example, settings, outputs)
        return _calibrated(quantized, Answers(quantized, batches, outputs, divergence), settings)
    most = settings if mixed is None else settings.model_copy(update={"weights": max(mixed.bits)})
    trial = prepare(network, example, most, outputs)
    answers = Answers(trial, batches, outputs, divergence)
    observe(trial, batches)
    measured = measure(trial, answers, mixed.bits if mixed is not None else ())
    if limit is not None:
        measured = measure_whole(trial, answers, measured)
    mixture = choose(measured, mixed, settings.layers, staying(measured, limit, settings.layers))
    # Layers are measured alone and are not alone: what the mixture comes to is compared with equal bits for all.
    found = []
    for way in (mixture, mixture.even(mixed)) if mixed is not None else (mixture,):
        own = settings.model_copy(update={"layers": way.layers, "mixed": None, "float_above": None})
        found.append(_calibrated(prepare(network, example, own, outputs), answers, own))
        found[-1].mixture = way
    return min(found, key=lambda quantized: quantized.calibration.divergence if quantized.calibration else math.inf)


def _calibrated(quantized: QuantizedNetwork, answers: Answers, settings: QuantizationSettings) -> QuantizedNetwork:
    quantized.calibration = calibrate(quantized, answers, settings)
    return quantized
