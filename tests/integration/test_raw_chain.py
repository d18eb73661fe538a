"""A chain whose files take raw frames: the same accuracy in every engine, in 8 bits, measured on frames."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from chain import Result, Workshop
from mistakes import Place
from sklearn.datasets import load_digits

from edgekd.export.metadata import read_metadata
from edgekd.export.onnx_file import load
from edgekd.runtimes.registry import runtime

pytestmark = pytest.mark.slow

FILE = """
name: frames
data: {npz: {path: digits.npz, inputs: [image], targets: [label]}, limit: {train: 320}}
train: {batch: 32}
stages:
  - teacher: {model: resnet8, epochs: 3}
  - quantize: {}
  - export: {raw_input: true}
  - compile: {}
  - evaluate: {}
  - bench: {quick: true, launches: 1, min_time_s: 0.2, min_samples: 20, quiet_wait_s: 0, profile: false}
targets:
  ov: {runtime: openvino}
  ort: {runtime: onnxruntime}
"""


@pytest.fixture(scope="module")
def workshop(tmp_path_factory: pytest.TempPathFactory) -> Workshop:
    place = Workshop(tmp_path_factory.mktemp("frames"))
    digits = load_digits()
    images = np.kron(digits.images * 15.9375, np.ones((2, 2))).astype(np.uint8)
    colour = np.stack([images, 255 - images, images // 2], 1)  # channels that an exchange would show
    np.savez(place.folder / "digits.npz", image=colour, label=digits.target)
    place.write(FILE)
    return place


@pytest.fixture(scope="module")
def result(workshop: Workshop) -> Result:
    found = workshop.run()
    assert found.code == 0, found.err
    return found


def test_every_build_takes_frames_and_is_as_accurate_as_its_network(result: Result) -> None:
    accuracy = {m["role"]: next(x for x in m["metrics"] if x["split"] == "test") for m in result.report["models"]}
    assert accuracy["teacher"]["value"] > 0.5
    assert len(result.report["builds"]) == 4
    for build in result.report["builds"]:
        assert build["inputs"] == [{"name": "image", "dtype": "uint8", "shape": [-1, 16, 16, 3]}]
        expected = accuracy[build["model"]]["value"]
        slack = 0.0 if build["precision"] == "f32" else 0.02
        assert abs(build["metrics"][0]["value"] - expected) <= slack
        # 1e-4 is the gate of a float build; what the frames' own arithmetic adds is far below it.
        assert build["parity"]["max_abs_error"] < (1e-4 if build["precision"] == "f32" else 1.0)


def test_all_convolutions_behind_the_frames_run_in_8_bits(result: Result, workshop: Workshop) -> None:
    graph = load(workshop.out / "artifacts" / "teacher.f32.onnx").graph
    count = sum(node.op_type == "Conv" for node in graph.node)
    for build in result.report["builds"]:
        precision = "int8" if build["model"] == "quantized" else "f32"
        assert build["executed_convolutions"] == {precision: count}


def test_every_rung_of_the_ladder_was_fed_frames_and_holds(result: Result, workshop: Workshop) -> None:
    path = next(d["path"] for d in result.report["details"] if d["kind"] == "ladder")
    rows = json.loads((workshop.out / path).read_text())["rows"]
    assert len(rows) == 12
    against = {row["rung"]: row["against"] for row in rows}
    assert against["quantized in int8 in PyTorch"] == against["teacher.uint8.onnx as written"] == "quantized in PyTorch"
    assert against["teacher.int8.onnx as written"] == "quantized in int8 in PyTorch"
    assert all(row["agreement"] > 0.9 for row in rows[1:])


def test_files_tell_a_device_that_frames_are_enough_and_frames_are_measured(result: Result, workshop: Workshop) -> None:
    told = read_metadata(workshop.out / "artifacts" / "teacher.uint8.onnx")
    image = told["preprocessing"]["image"]
    assert (image["dtype"], image["layout"], image["normalized_by"]) == ("uint8", "NHWC", "the file")
    assert told["flavour"] == "uint8"
    assert len(result.report["latency"]) == 4


def test_a_file_that_takes_frames_can_be_measured_alone(result: Result, workshop: Workshop, place: Place) -> None:
    files = [str(workshop.out / "artifacts" / f"teacher.{flavour}.onnx") for flavour in ("f32", "uint8")]
    said = place.call("measure", *files, "--quick", "--launches", "1", "--json")
    assert said.code == 0, said.err
    assert len(json.loads(said.out)["latency"]) == 2


@pytest.mark.parametrize("flavour", ["f32", "int8"])
def test_tensorrt_rtx_builds_from_frames(result: Result, workshop: Workshop, flavour: str, tmp_path: Path) -> None:
    pytest.importorskip("tensorrt_rtx", reason="pip install 'edgekd[tensorrt-rtx]'")
    build = runtime("tensorrt_rtx").compile(
        workshop.out / "artifacts" / f"teacher.{flavour}.onnx",
        tmp_path, device="GPU", threads=1, options={"compute_capabilities": ["8.6"]},
    )  # fmt: skip
    assert [(info.name, info.dtype, info.shape) for info in build.inputs] == [("image", "uint8", (-1, 16, 16, 3))]
    assert (tmp_path / build.file).stat().st_size > 10_000
