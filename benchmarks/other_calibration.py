"""Post-training quantization by NNCF and by ONNX Runtime: what quantize_cifar10.py holds ours against."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from edgekd.data.settings import DataSettings
from edgekd.data.source import Data, open_data
from edgekd.data.table import row_groups
from edgekd.quantize.phases import calibration_rows
from edgekd.runtimes.protocol import infer_batched
from edgekd.runtimes.registry import runtime
from edgekd.train.feed import to_input
from edgekd.train.world import World

Array = NDArray[Any]
SAMPLES, BATCH = 256, 64


@functools.cache
def _open(settings: str, seed: int) -> tuple[Data, World]:
    data = open_data(DataSettings.model_validate_json(settings), base=Path(), seed=seed)
    return data, World({}, {}, (), data.normalization())


def _images(world: World, images: Any) -> Array:
    import torch

    found: Array = to_input(world, "image", images, torch.device("cpu")).contiguous().numpy()
    return found


def accuracy_of(way: str, onnx_file: Path, data: Mapping[str, Any], seed: int, work: Path) -> dict[str, Any]:
    """Points of accuracy on the test split of a float ONNX file that one way has quantized, in that way's engine."""
    opened, world = _open(json.dumps(data), seed)
    rows = calibration_rows(opened.load("train"), SAMPLES, seed)
    calibration = _images(world, rows.inputs["image"])
    folder = work / f"other-{way.replace(' ', '_')}"
    folder.mkdir(parents=True, exist_ok=True)
    engine, quantize = WAYS[way]
    session = runtime(engine).load(quantize(onnx_file, calibration, folder), device="CPU", threads=1)
    test = opened.load("test")
    right = 0
    for batch in test.batches(row_groups(len(test), 1024)):
        answers = infer_batched(session, {session.inputs[0].name: _images(world, batch.inputs["image"])}, BATCH)
        right += int((answers[session.outputs[0].name].argmax(1) == batch.targets["label"].numpy()).sum())
    session.close()
    return {"accuracy": round(100 * right / len(test), 2), "engine": engine}


def _nncf(onnx_file: Path, calibration: Array, folder: Path, *, accurate: bool) -> Path:
    """NNCF over OpenVINO's model, with its defaults (activations asymmetric), with fast or accurate bias correction."""
    import nncf
    import openvino

    model = openvino.Core().read_model(str(onnx_file))
    samples = [calibration[i : i + 1] for i in range(len(calibration))]
    done = nncf.quantize(model, nncf.Dataset(samples), subset_size=len(samples), fast_bias_correction=not accurate)
    openvino.save_model(done, str(folder / "model.xml"), compress_to_fp16=False)
    return folder / "model.xml"


def _onnxruntime(onnx_file: Path, calibration: Array, folder: Path, *, method: str) -> Path:
    """ONNX Runtime's static quantization, after its own preparation: Q/DQ, uint8 activations, weights by channel."""
    from onnxruntime.quantization import CalibrationDataReader, CalibrationMethod, QuantType, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    class Reader(CalibrationDataReader):  # type: ignore[misc]
        def __init__(self, feeds: Iterable[dict[str, Array]]) -> None:
            self._feeds = iter(feeds)

        def get_next(self) -> dict[str, Array] | None:
            return next(self._feeds, None)

    import onnx

    name = onnx.load(str(onnx_file)).graph.input[0].name
    quant_pre_process(str(onnx_file), str(folder / "prepared.onnx"), skip_symbolic_shape=True)
    quantize_static(
        str(folder / "prepared.onnx"),
        str(folder / "model.onnx"),
        Reader({name: calibration[i : i + 1]} for i in range(len(calibration))),
        per_channel=True,
        activation_type=QuantType.QUInt8,
        weight_type=QuantType.QInt8,
        calibrate_method=getattr(CalibrationMethod, method),
    )
    return folder / "model.onnx"


WAYS: dict[str, tuple[str, Callable[[Path, Array, Path], Path]]] = {
    "NNCF": ("openvino", functools.partial(_nncf, accurate=False)),
    "NNCF, accurate bias correction": ("openvino", functools.partial(_nncf, accurate=True)),
    "ONNX Runtime, min-max": ("onnxruntime", functools.partial(_onnxruntime, method="MinMax")),
    "ONNX Runtime, entropy": ("onnxruntime", functools.partial(_onnxruntime, method="Entropy")),
    "ONNX Runtime, percentile": ("onnxruntime", functools.partial(_onnxruntime, method="Percentile")),
}
