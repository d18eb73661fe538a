"""`edgekd data check`, and a run on the same folder: 300 photos of many sizes and modes, two broken, one a GIF."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from mistakes import Place, Said
from PIL import Image

PHOTOS = 300
BROKEN = ("dog/007.jpg", "owl/008.png")
COLOURS = {"cat": (220, 40, 40), "dog": (40, 220, 40), "owl": (40, 40, 220)}
FORMS = [
    ("jpg", "RGB"), ("png", "RGBA"), ("webp", "RGB"), ("bmp", "RGB"), ("tif", "RGB"), ("png", "P"), ("png", "L"),
    ("jpg", "CMYK"), ("png", "I;16"), ("png", "LA"),
]  # fmt: skip
RUN = """\
name: photos
data:
  folder: {path: photos}
  size: [8, 8]
  fit: crop
  skip_broken: 0.01
train: {batch: 64, precision: f32}
stages:
  - teacher: {model: convnet, args: {width: 4, depth: 3}, epochs: 1}
  - evaluate: {}
"""


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("photos") / "photos"
    random = np.random.default_rng(0)
    for number in range(PHOTOS):
        name = list(COLOURS)[number % 3]
        height, width = random.integers(9, 40, 2)
        values = np.array(COLOURS[name]) + random.integers(-30, 30, (height, width, 3))
        image = Image.fromarray(values.clip(0, 255).astype(np.uint8))
        suffix, mode = FORMS[number % len(FORMS)] if number != 5 else ("gif", "P")
        if mode == "I;16":
            image = Image.fromarray(np.asarray(image.convert("L")).astype(np.uint16) * 257)
        path = root / name / f"{number:03}.{suffix}"
        path.parent.mkdir(parents=True, exist_ok=True)
        image.convert(mode).save(path) if mode != "I;16" else image.save(path)
    (root / BROKEN[0]).write_bytes((root / BROKEN[0]).read_bytes()[:200])
    (root / BROKEN[1]).write_bytes(b"no image")
    (root / "cat" / "notes.txt").write_text("not called like an image")
    return root


def said(place: Place, *words: str) -> tuple[Said, dict[str, Any]]:
    done = place.call("data", "check", *words, "--json")
    return done, json.loads(done.out)


def test_check_tells_what_the_folder_holds_and_that_two_are_broken(photos: Path, place: Place) -> None:
    page = place.folder / "sheet.html"
    done, found = said(place, str(photos), "--html", str(page))
    assert (done.code, done.err) == (4, "")
    assert found["kind"] == "folder"
    assert found["samples"] == {"train": PHOTOS}
    assert found["samples_in_a_run"] == {"train": 214, "validation": 24, "test": 60}
    assert found["classes"]["train"]["label"] == {"cat": 100, "dog": 100, "owl": 100}
    formats = {row["value"]: row["count"] for row in found["pictures"]["format"]}
    assert formats == {"PNG": 148, "JPEG": 59, "WEBP": 30, "BMP": 30, "TIFF": 30, "GIF": 1}
    assert {row["name"].removeprefix(f"{photos}/") for row in found["broken"]["train"]} == set(BROKEN)
    sizes, broken = found["problems"]
    assert sizes["message"] == "images differ in size, and no size is given to resize them to"
    assert found["data"]["size"] == found["sizes"]["middle"]
    assert broken["message"] == "2 of 300 images of train are broken"
    assert "skip_broken: 0.007" in broken["hint"]
    assert [path.removeprefix(f"{photos}/") for path in found["other_files"]] == ["cat/notes.txt"]
    sheet = page.read_text()
    assert len(sheet.encode()) < 1_000_000
    assert 130 <= sheet.count("<img src") <= 144
    assert not re.search(r"<script|https?://", sheet)
    assert "007.jpg" in sheet


def test_within_the_share_the_folder_passes_and_is_run(photos: Path, place: Place) -> None:
    (place.folder / "photos").symlink_to(photos)
    checked = place.call("data", "check", str(photos), "--skip-broken", "0.01", "--size", "8x8")
    assert checked.code == 0
    assert "skip_broken: 0.01" in checked.out
    assert "problem" not in checked.out
    done = place.run(RUN)
    assert done.code == 0, done.err
    assert "data: 2 broken images of train are left out" in done.err
    report = json.loads((place.folder / "out" / "report.json").read_text())
    assert report["data"]["n"] == {"train": 214, "validation": 24, "test": 60}
    assert report["data"]["broken_images"] == {"train": 2}
    again = place.call("data", "check", "p.yaml")
    assert again.code == 0
    refused = place.run(RUN.replace("  skip_broken: 0.01\n", ""))
    refused.is_one_mistake(4, r"2 of 300 images are broken|of \d+ images are broken|cannot be decoded", "skip_broken")


def write(path: Path, colour: int, size: tuple[int, int] = (8, 8)) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, (colour, 0, 0)).save(path)


def test_copies_across_splits_and_imbalance_are_shown(place: Place) -> None:
    root = place.folder / "set"
    for i in range(30):
        write(root / "train" / "a" / f"{i}.png", i)
    write(root / "train" / "b" / "0.png", 100)
    write(root / "train" / "b" / "1.png", 101)
    write(root / "train" / "b" / "copy.png", 3)
    write(root / "test" / "a" / "x.png", 100)
    write(root / "test" / "b" / "y.png", 200)
    done, found = said(place, "set")
    assert done.code == 0
    assert found["imbalance"]["train"] == {"label": 10.0}
    across = [(Path(row["name"]).name, row["split"], row["of_split"]) for row in found["duplicates_between_splits"]]
    assert across == [("x.png", "test", "train")]
    assert found["duplicates_within_splits"] == 1
    assert len(found["duplicates_of_another_label"]) == 2
    notes = " | ".join(found["notes"])
    assert "train is imbalanced: 30 samples of a, 3 of b (10 : 1)" in notes
    assert "1 sample in two splits: " in notes


def test_every_kind_is_recognised_by_itself(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(Path(__file__).parents[1] / "unit"))
    from data_sets import encoded, npz_set, parquet_set, picture, saved_to_disk, tar_set
    from test_data_sources import FEATURES, hf_table, rows, write_csv

    root = place.folder
    npz_set(root / "arrays", image=np.zeros((30, 3, 4, 4), np.uint8), y=np.arange(30) % 2)
    parquet_set(root / "tables")
    write_csv(root / "csv", rows(["a", "b"] * 3), "labels.csv")
    tar_set(root / "a.tar", [{"png": encoded(picture(i)), "cls": b"1"} for i in range(9)])
    saved_to_disk(root / "hf", hf_table(9), FEATURES)
    for path, kind, count in (
        ("arrays", "npz", 30), ("arrays/train.npz", "npz", 30), ("tables", "parquet", 50),
        ("tables/test.parquet", "parquet", 10), ("csv/labels.csv", "csv", 6), ("a.tar", "webdataset", 9),
        ("hf", "huggingface", 9),
    ):  # fmt: skip
        done, found = said(place, path)
        assert (done.code, found["kind"], sum(found["samples"].values())) == (0, kind, count), done
        assert found["classes"]["train"]


@pytest.mark.parametrize(
    ("words", "code", "error", "hint"),
    [
        (["nowhere"], 2, "^nowhere: does not exist", "path of a data set"),
        (["p.yaml.txt"], 2, "is no kind of data that is read here", ".parquet"),
        (["empty"], 2, "empty holds no images", "lay it out"),
        (["empty", "--kind", "foldr"], 2, "^--kind foldr: is not known", "mean 'folder'"),
        (["empty", "--size", "8"], 2, "^--size 8: is not of the form", "224x224"),
        (["empty", "--kind", "parquet"], 2, "holds no train", "a folder with one"),
        (["bad.npz"], 4, "is not a readable NumPy archive", "savez"),
        (["bad.tar"], 4, "is not a readable tar file", "gunzip"),
        (["bad.parquet"], 4, "is not a readable Parquet file", "write it again"),
        (["nopath.csv", "--image", "x"], 2, "has no column 'x'", "known are"),
    ],
)
def test_what_cannot_be_checked_is_explained(
    place: Place,
    words: list[str],
    code: int,
    error: str,
    hint: str,
) -> None:
    (place.folder / "empty").mkdir()
    for name in ("bad.npz", "bad.tar", "bad.parquet", "p.yaml.txt"):
        (place.folder / name).write_bytes(b"x" * 99)
    (place.folder / "nopath.csv").write_text("a,b\n1,2\n")
    place.call("data", "check", *words).is_one_mistake(code, error, hint)


def test_frames_of_a_folder_without_labels_calibrate_a_network(place: Place) -> None:
    for i in range(30):
        write(place.folder / "frames" / f"{i}.png", 8 * i, (9 + i % 5, 12))
    done = place.run(
        "name: frames\ndata: {folder: {path: frames}, size: [8, 8], fit: pad}\nmodel: convnet\n"
        "args: {num_classes: 3, width: 4, depth: 3}\nstages: [{quantize: {}}]\n"
    )
    assert done.code == 0, done.err
    assert place.states() == {"model": "ran", "quantize": "ran"}
    assert "calibrated on 22 samples" in done.err
