"""A build that is scored on what it was made with: said by the manifest of its run, or of its bundle."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import data_sets
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


def test_what_calibrated_a_build_is_known_wherever_it_lies_and_nothing_is_said_of_others(run: Path) -> None:
    images, build = run.parent / "images", run / "artifacts/builds/ort.int8"
    assert _learned_from(build, opened(images), "train") is True
    assert _learned_from(build, opened(images), "test") is None
    assert _learned_from(build, opened(images / "train"), "train") is True
    assert _learned_from(build, opened(run.parent / "others"), "train") is None
    copied = run.parent / "elsewhere"
    (images / "train").rename(copied)
    assert _learned_from(build, opened(copied), "train") is True


def test_one_image_more_in_each_folder_leaves_it_unknown_and_is_not_taken_for_new_data(run: Path) -> None:
    images, build = run.parent / "images", run / "artifacts/builds/ort.int8"
    for name in ("a", "b"):
        Image.new("RGB", (8, 8), (9, 9, 9)).save(images / "train" / name / "new.png")
    assert _learned_from(build, opened(images), "train") is None


def test_a_table_that_names_the_images_of_all_splits_makes_none_of_them_known(tmp_path: Path) -> None:
    draw(tmp_path / "images", shade=1)
    rows = [f"images/{name}/{i}.png,{name},{'test' if i == 3 else 'train'}" for name in ("a", "b") for i in range(4)]
    (tmp_path / "set.csv").write_text("\n".join(["path,label,split", *rows]))
    data = data_sets.opened(tmp_path, csv={"path": "set.csv", "split": "split"}, validation=0)
    (tmp_path / "run/artifacts/builds/ort.int8").mkdir(parents=True)
    build = tmp_path / "run/artifacts/builds/ort.int8"
    for names in (list(data.files_of("train")), list(data.digests)[:2]):  # runs of old count the table, too
        about = {"files": data.digests, "learned_from": names}
        (tmp_path / "run/manifest.json").write_text(json.dumps({"data": about}))
        assert [_learned_from(build, data, split) for split in ("train", "test")] == [True, None]


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
