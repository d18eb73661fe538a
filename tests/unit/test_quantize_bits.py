"""Every width of weights and activations, one scale or many: the file says what the fake-quantized network says."""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from structures import inputs, make
from torch import nn

from edgekd.export.flavours import to_uint8
from edgekd.export.onnx_file import load, write_onnx
from edgekd.export.parity import run_reference
from edgekd.quantize.fake_quant import BiasGrid, FakeQuant
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
        said = quantized.in_int8()(x).numpy()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "int8.onnx"
        write_onnx(convert(quantized), {"image": x[:2].contiguous()}, ("y",), path, opset=20, metadata={})
        found = run_reference(path, {"image": x.numpy()})["y"]
    # Sums in another order may put a value on the edge between two levels onto the other: one such in a map of 16 x 16.
    assert np.sqrt(np.square(found - said).mean()) <= 0.01 * said.std() + 1e-6


def test_onnx_runtime_answers_as_the_network_with_few_bits_for_both_have_biases_in_coarse_steps(tmp_path: Path) -> None:
    torch.manual_seed(0)
    network = nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 3), nn.Flatten(), nn.Linear(16, 5)
    ).eval()
    x = torch.randn(64, 3, 8, 8)
    quantized = calibrated(network, (x[:2],), [(x,)], QuantizationSettings(weights=4, activations=4))
    grids = [module for module in quantized.modules() if isinstance(module, BiasGrid)]
    assert len(grids) == 4
    path = tmp_path / "int8.onnx"
    write_onnx(convert(quantized), {"image": x[:2]}, ("y",), path, opset=20, metadata={})
    found = run_reference(
        to_uint8(load(path), quantized.half_steps()).SerializeToString(), {"image": x.numpy()}, optimized=True
    )["y"]
    with torch.no_grad():
        said = quantized(x).numpy()
        for grid in grids:
            grid.forward = lambda bias: bias  # type: ignore[method-assign]
        without = quantized(x).numpy()
    assert np.abs(found - said).max() < 1e-4 * np.abs(said).max() < np.abs(found - without).max()


def test_a_bias_is_rounded_where_its_layer_is_and_still_learns() -> None:
    scales = FakeQuant(bits=4), FakeQuant(bits=4, axis=0, weight=True)
    for scale, values in zip(scales, (torch.tensor([0.5]), torch.tensor([0.5, 0.25])), strict=True):
        scale.scale = nn.Parameter(values)
    grid, bias = BiasGrid(*scales), nn.Parameter(torch.tensor([0.3, -0.3]))
    assert torch.equal(grid(bias), bias)
    for scale in scales:
        scale.set_mode("rounding")
    assert grid(bias).tolist() == [0.25, -0.25]
    grid(bias).square().sum().backward()
    assert bias.grad is not None
    assert bias.grad.tolist() == [0.5, -0.5]
    assert list(grid.state_dict()) == []
