"""Every width of weights and activations, one scale or many: the file says what the fake-quantized network says."""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from structures import inputs, make

from edgekd.export.onnx_file import write_onnx
from edgekd.export.parity import run_reference
from edgekd.quantize.post_training import calibrated
from edgekd.quantize.quantizer import convert
from edgekd.quantize.settings import QuantizationSettings

WIDTHS = st.integers(2, 8)


@settings(max_examples=8, deadline=None, derandomize=True)
@given(weights=WIDTHS, activations=WIDTHS, per_channel=st.booleans(), name=st.sampled_from(["dense", "tied"]))
def test_files_hold_the_values_of_the_network_at_every_width(
    weights: int, activations: int, per_channel: bool, name: str
) -> None:
    network, (x,) = make(name), inputs(32)
    given_ = QuantizationSettings(weights=weights, activations=activations, per_channel=per_channel)
    quantized = calibrated(network, (x[:2],), [(x,)], given_)
    with torch.no_grad():
        said = quantized(x).numpy()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "int8.onnx"
        write_onnx(convert(quantized), {"image": x[:2].contiguous()}, ("y",), path, opset=20, metadata={})
        found = run_reference(path, {"image": x.numpy()})["y"]
    # Sums in another order may put a value on the edge between two levels onto the other: one such in a map of 16 x 16.
    assert np.sqrt(np.square(found - said).mean()) <= 0.01 * said.std() + 1e-6
