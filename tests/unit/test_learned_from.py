"""A build that is scored on what it was made with: said by the manifest of its run, or of its bundle."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from edgekd.cli.evaluate_command import _learned_from
from edgekd.data.source import Data
from edgekd.pipeline.found_data import find_data, open_found
from edgekd.report.lineage import learned_from


def draw(folder: Path, *, shade: int) -> None:
    for name in ("a", "b"):
        (folder / name).mkdir(parents=True)
        for index in range(4):
            Image.new("RGB", (8, 8), (index, shade, 0)).save(folder / name / f"{index}.png")


def opened(path: Path) -> Data:
    found = find_data(path)
    return open_found(found.source, found.options, size=None, channels=None, seed=0, validation=0.0, test=0.0)


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run on images with a train and a test split, as far as `evaluate` looks at it."""
    draw(tmp_path / "images/train", shade=1)
    draw(tmp_path / "images/test", shade=2)
    draw(tmp_path / "others", shade=3)
    data = opened(tmp_path / "images")
    (tmp_path / "run/artifacts/builds/ort.int8").mkdir(parents=True)
    about = {"files": data.digests, "learned_from": list(data.files_of("train"))}
    (tmp_path / "run/manifest.json").write_text(json.dumps({"data": about}))
    return tmp_path / "run"


def test_what_calibrated_a_build_is_known_wherever_it_lies_and_its_test_images_are_new(run: Path) -> None:
    images, build = run.parent / "images", run / "artifacts/builds/ort.int8"
    assert _learned_from(build, opened(images), "train") is True
    assert _learned_from(build, opened(images), "test") is False
    assert _learned_from(build, opened(images / "train"), "train") is True
    assert _learned_from(build, opened(run.parent / "others"), "train") is False
    copied = run.parent / "elsewhere"
    (images / "train").rename(copied)
    assert _learned_from(build, opened(copied), "train") is True


def test_a_bundle_knows_it_too_and_without_a_manifest_nothing_is_said(run: Path) -> None:
    unpacked = run.parent / "unpacked"
    unpacked.mkdir()
    told = learned_from(json.loads((run / "manifest.json").read_text()))
    (unpacked / "manifest.json").write_text(json.dumps({"learned_from": told}))
    assert _learned_from(unpacked, opened(run.parent / "images"), "train") is True
    (run / "manifest.json").unlink()
    assert _learned_from(run / "artifacts/builds/ort.int8", opened(run.parent / "images"), "train") is None


@pytest.mark.parametrize(
    "damaged",
    [
        {},
        {"data": None},
        {"data": {"files": [], "learned_from": ["a"]}},
        {"data": {"files": {"a": 3}}},
        {"learned_from": [1]},
    ],
)
def test_a_manifest_that_says_nothing_of_it_is_no_error(damaged: dict[str, Any]) -> None:
    assert learned_from(damaged) == []
