"""When a build that answers otherwise is put down to sums that overflow."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from edgekd.quantize.quantizer import prepare
from edgekd.quantize.settings import QuantizationSettings
from edgekd.runtimes import saturation
from edgekd.stages.evaluate import _may_overflow

BUILD = {"runtime": "openvino", "device": "CPU", "precision": "int8"}


@pytest.mark.parametrize(
    ("options", "change", "expected"),
    [
        ({}, {}, False),
        ({"overflow_fix": "signed_inputs"}, {}, True),
        ({"overflow_fix": "off"}, {}, True),
        ({"overflow_fix": "all"}, {}, False),
        ({"weights": 4}, {}, False),
        ({"overflow_fix": "off"}, {"runtime": "onnxruntime"}, False),
        ({"overflow_fix": "off"}, {"device": "GPU"}, False),
        ({"overflow_fix": "off"}, {"precision": "f32"}, False),
    ],
)
def test_overflow_is_named_only_where_it_can_be(
    monkeypatch: pytest.MonkeyPatch, options: dict[str, Any], change: dict[str, str], expected: bool
) -> None:
    monkeypatch.setattr(saturation, "saturates", lambda: True)
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 3), nn.Flatten(), nn.Linear(4 * 16, 2))
    quantized = prepare(network.eval(), (torch.rand(2, 3, 8, 8),), QuantizationSettings(**options))
    assert _may_overflow({**BUILD, **change}, quantized) is expected
    assert not _may_overflow(BUILD, network)
    monkeypatch.setattr(saturation, "saturates", lambda: False)
    assert not _may_overflow({**BUILD, **change}, quantized)
