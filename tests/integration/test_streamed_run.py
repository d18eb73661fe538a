"""A whole run on streamed images: it leaves what a run in memory leaves."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from chain import Result, Workshop
from PIL import Image

from edgekd.files import sha256_file

pytestmark = pytest.mark.slow

PIPELINE = """
name: streamed
data:
  parquet: {path: images, image: img, label: label}
  augment: {crop: 1, flip: true}
train: {batch: 16, precision: f32}
stages:
  - teacher: {model: convnet, args: {width: 8}, epochs: 2}
  - quantize: {self_distillation: true, epochs: 1}
  - export: {min_agreement: 0.5, max_noise: 1.0}
  - compile: {}
  - evaluate: {}
targets:
  ort: {runtime: onnxruntime}
"""


def write_images(path: Path, count: int) -> None:
    """Images of two classes, light and dark."""
    rng = np.random.default_rng(count)
    rows = []
    for i in range(count):
        buffer = io.BytesIO()
        pixels = rng.integers(0, 128, (16, 16, 3)) + 127 * (i % 2)
        Image.fromarray(pixels.astype(np.uint8)).save(buffer, "PNG")
        rows.append({"bytes": buffer.getvalue(), "path": None})
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    pq.write_table(pa.table({"img": pa.array(rows, kind), "label": pa.array([i % 2 for i in range(count)])}), path)


def run(folder: Path, stream: str) -> tuple[Workshop, Result]:
    folder.mkdir()
    workshop = Workshop(folder)
    workshop.write(PIPELINE)
    (folder / "images").mkdir()
    for split, count in (("train", 120), ("test", 40)):
        write_images(folder / "images" / f"{split}.parquet", count)
    result = workshop.run("--set", f"data.stream={stream}")
    assert result.code == 0, result.err
    return workshop, result


def test_a_streamed_run_leaves_the_same_files_and_scores(tmp_path: Path) -> None:
    (streamed, mine), (resident, theirs) = run(tmp_path / "a", "always"), run(tmp_path / "b", "never")
    assert len(list((streamed.folder / "store" / "caches" / "data").glob("*/images.bin"))) == 2
    assert not (resident.folder / "store" / "caches" / "data").exists()
    for name in ("teacher.safetensors", "teacher.int8.onnx"):
        assert sha256_file(streamed.out / "artifacts" / name) == sha256_file(resident.out / "artifacts" / name)
    for part in ("models", "data"):
        assert mine.report[part] == theirs.report[part]
    assert [b["metrics"] for b in mine.report["builds"]] == [b["metrics"] for b in theirs.report["builds"]]
    again = streamed.run("--set", "data.stream=never", "--set", "data.workers=0")
    assert {stage["why"] for stage in again.report["stages"]} == {"unchanged"}
