"""Networks of the zoo as ONNX files in every flavour; those that several files of tests ask for are made once.

Quantizing and exporting the zoo is minutes of work, so that the processes of pytest-xdist share what one of them made.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from edgekd.export.flavours import to_uint8
from edgekd.export.half import to_half
from edgekd.export.onnx_file import load, save, write_onnx
from edgekd.files import lock
from edgekd.models.resolve import build
from edgekd.quantize.post_training import calibrated
from edgekd.quantize.quantizer import convert
from edgekd.quantize.settings import QuantizationSettings

FLAVOURS = {"f16": ("f32", "f16"), "bf16": ("f32", "bf16"), "int8_f16": ("int8", "f16")}
PLAIN = QuantizationSettings(ranges="minmax", weight_ranges="minmax", equalization=False, bias_correction=False)
# Those that are asked for in float32 as well; the others are in 8 bits alone.
IN_FLOAT = ("convnet", "resnet8", "vgg8", "mobilenetv2", "shufflenetv2", "wrn_16_2", "vit_tiny")
SAID = ("expected", "quantized", "in_int8")


@dataclass(frozen=True)
class Files:
    """A network of the zoo in some flavours, the inputs of all, and what it says in float, in 8 bits and in int8."""

    folder: Path
    feeds: dict[str, NDArray[Any]]
    expected: NDArray[Any]
    quantized: NDArray[Any]
    in_int8: NDArray[Any]

    def path(self, flavour: str) -> Path:
        """The ONNX file of a flavour."""
        return self.folder / f"{flavour}.onnx"


def make(
    name: str,
    folder: Path,
    settings: QuantizationSettings,
    flavours: Sequence[str] = tuple(FLAVOURS),
    momentum: float | None = None,
) -> Files:
    """Always in int8 and uint8; in f32 if asked for, or for flavours that are made of it.

    BatchNorm has statistics of the one batch alone (`momentum` None): with others, what 110 layers hand on grows
    beyond float16. With a momentum, what it hands on shrinks from layer to layer, and with it what rounding changes.
    """
    torch.manual_seed(0)
    torch.set_num_threads(1)
    network = build(name, {}, folder, {"num_classes": 10, "in_channels": 3, "image_size": 32}).train()
    x = torch.randn(16, 3, 32, 32)
    for module in network.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.momentum = momentum
    with torch.no_grad():
        network(x)  # BatchNorm statistics that are not 0 and 1
    quantized = calibrated(network.eval(), (x[:2],), [(x,)], settings)
    if any(flavour == "f32" or FLAVOURS[flavour][0] == "f32" for flavour in flavours):
        write_onnx(network, {"image": x[:2]}, ("logits",), folder / "f32.onnx", opset=20, metadata={"a": "b"})
    write_onnx(convert(quantized), {"image": x[:2]}, ("logits",), folder / "int8.onnx", opset=20, metadata={})
    save(to_uint8(load(folder / "int8.onnx"), quantized.half_steps()), folder / "uint8.onnx")
    for flavour in FLAVOURS.keys() & flavours:
        origin, half = FLAVOURS[flavour]
        save(to_half(load(folder / f"{origin}.onnx"), half)[0], folder / f"{flavour}.onnx")
    with torch.no_grad():
        said = [form(x).numpy() for form in (network, quantized, quantized.in_int8())]
    return Files(folder, {"image": x.numpy()}, *said)


def of_zoo(name: str, temporary: pytest.TempPathFactory) -> Files:
    """A network in int8 and uint8, plainly calibrated, with its float16 remainder, and those of IN_FLOAT in f32 too.

    Nobody may write to its folder: it belongs to all tests of this run.
    """
    base = temporary.getbasetemp()
    home = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "zoo"
    folder = home / name
    folder.mkdir(parents=True, exist_ok=True)
    with lock(home / f"{name}.lock", timeout_s=600, holder_hint="it makes these files"):
        kept = folder / "values.npz"
        if not kept.exists():
            in_float = name in IN_FLOAT  # what it answers in half precision is compared there
            flavours = ["int8_f16", "f32"] if in_float else ["int8_f16"]
            made = make(name, folder, PLAIN, flavours, momentum=0.1 if in_float else None)
            said = {name: getattr(made, name) for name in SAID}
            np.savez(kept, image=made.feeds["image"], **said)
        with np.load(kept) as values:
            return Files(folder, {"image": values["image"]}, *(values[name] for name in SAID))
