"""Readers: images and arrays come back as they were, and data that makes no sense is named."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from data_sets import PARQUET, encoded, image_folder, npz_set, opened, parquet_set, picture, write_parquet
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from sklearn.datasets import load_digits

from edgekd.data.readers.parquet_footer import read_footer
from edgekd.errors import ConfigError, DataError

# Sources


def test_digits_are_1000_and_797_in_proportion_and_the_same_for_every_seed() -> None:
    data, other = opened(Path(), digits={}, validation=0), opened(Path(), seed=5, digits={}, validation=0)
    train, test = data.load("train"), data.load("test")
    assert (len(train), len(test)) == (1000, 797)
    assert train.inputs["image"].shape == (1000, 1, 8, 8)
    assert train.inputs["image"].dtype == torch.float32
    assert float(train.inputs["image"].max()) == 1
    assert torch.equal(test.targets["label"], other.load("test").targets["label"])
    everything = torch.cat([train.inputs["image"], test.inputs["image"]]).flatten(1).sum()
    assert float(everything) == pytest.approx(load_digits().images.sum() / 16)
    shares = torch.stack([t.targets["label"].bincount() / len(t) for t in (train, test)])
    assert float((shares[0] - shares[1]).abs().max()) < 0.002
    assert data.classes()["label"].names == tuple("0123456789")
    assert data.fingerprint == other.fingerprint


@pytest.mark.parametrize("raw", [False, True])
def test_parquet_images_come_back_as_they_were(tmp_path: Path, raw: bool) -> None:
    parquet_set(tmp_path / "set", raw=raw)
    data = opened(tmp_path, parquet=PARQUET)
    test = data.load("test")
    assert test.inputs["image"].dtype == torch.uint8
    assert np.array_equal(test.inputs["image"][3].permute(1, 2, 0).numpy(), picture(1003))
    assert test.targets["label"].tolist() == [i % 4 for i in range(10)]
    assert data.load("test") is test


@pytest.mark.parametrize("batch_rows", [1, 4, 512])
def test_parquet_in_several_files_is_read_in_their_order(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, batch_rows: int
) -> None:
    monkeypatch.setattr("edgekd.data.readers.parquet._BATCH_ROWS", batch_rows)
    folder = tmp_path / "set"
    folder.mkdir()
    for part in range(3):
        contents = [encoded(picture(part * 10 + i)) for i in range(10)]
        write_parquet(folder / f"train-{part:05}-of-00003.parquet", contents, pa.array([0, 1] * 5))
    data = opened(tmp_path, parquet=PARQUET, validation=0, test=0.2)
    train = data.load("train")
    assert len(train) == 24
    for image, number in zip(train.inputs["image"], train.ids.tolist(), strict=True):
        assert np.array_equal(image.permute(1, 2, 0).numpy(), picture(number))


@pytest.mark.parametrize("dictionary", [False, True])
def test_labels_in_words_become_their_place_in_the_sorted_names(tmp_path: Path, dictionary: bool) -> None:
    folder = tmp_path / "set"
    folder.mkdir()
    labels = pa.array(["dog", "cat", "owl"] * 4)
    write_parquet(
        folder / "train.parquet", [encoded(picture(0))] * 12, labels.dictionary_encode() if dictionary else labels
    )
    data = opened(tmp_path, parquet=PARQUET, validation=0, test=0)
    assert data.load("train").targets["label"].tolist() == [1, 0, 2] * 4
    assert data.classes()["label"].names == ("cat", "dog", "owl")


def test_real_labels_stay_real(tmp_path: Path) -> None:
    folder = tmp_path / "set"
    folder.mkdir()
    write_parquet(folder / "train.parquet", [encoded(picture(0))] * 4, pa.array([0.5, -1.0, 2.0, 3.0]))
    data = opened(tmp_path, parquet=PARQUET, validation=0, test=0)
    assert data.load("train").targets["label"].dtype == torch.float32
    assert data.classes() == {}


def test_without_a_label_column_data_is_unlabelled(tmp_path: Path) -> None:
    parquet_set(tmp_path / "set")
    data = opened(tmp_path, parquet={"path": "set", "image": "img"})
    assert data.target_names == ()
    assert data.load("train").targets == {}
    assert data.counts()["train"] == 36


def test_folders_of_splits_and_classes(tmp_path: Path) -> None:
    image_folder(tmp_path / "set")
    (tmp_path / "set" / "train" / "README.txt").write_text("not an image")
    data = opened(tmp_path, folder={"path": "set"}, validation=0.2)
    assert data.counts() == {"train": 8, "validation": 2, "test": 10}
    assert data.classes()["label"].names == ("cat", "dog")
    assert data.load("test").targets["label"].tolist() == [0] * 5 + [1] * 5
    assert np.array_equal(data.load("test").inputs["image"][7].permute(1, 2, 0).numpy(), picture(2))


def test_folders_of_classes_are_split_by_seed(tmp_path: Path) -> None:
    image_folder(tmp_path, splits=("set",))
    data = opened(tmp_path, folder={"path": "set"}, validation=0, test=0.4)
    assert data.load("test").targets["label"].tolist() == [0, 0, 1, 1]


def test_a_flat_folder_is_unlabelled(tmp_path: Path) -> None:
    image_folder(tmp_path, splits=("a",), classes=("b",))
    data = opened(tmp_path / "a", folder={"path": "b"})
    assert data.target_names == ()
    assert data.load("train").inputs["image"].shape == (3, 3, 8, 8)


def test_npz_arrays_of_every_type(tmp_path: Path) -> None:
    npz_set(
        tmp_path / "set",
        n=12,
        image=np.zeros((12, 3, 4, 5), np.uint8),
        x=np.ones((12, 2)),
        pixels=np.full((12, 4, 5), -100),
        score=np.linspace(-1, 1, 12),
        name=np.array(["b", "a"] * 6),
        column=np.arange(12)[:, None],
    )
    inputs, targets = ["image", "x"], ["pixels", "score", "name", "column"]
    data = opened(tmp_path, npz={"path": "set", "inputs": inputs, "targets": targets}, validation=0, test=0)
    train = data.load("train")
    assert (data.input_names, data.target_names) == (tuple(inputs), tuple(targets))
    assert [t.dtype for t in train.inputs.values()] == [torch.uint8, torch.float32]
    assert [t.dtype for t in train.targets.values()] == [torch.int64, torch.float32, torch.int64, torch.int64]
    assert train.targets["name"].tolist() == [1, 0] * 6
    assert train.targets["column"].shape == (12,)
    assert train.take(torch.tensor([3, 1])).ids.tolist() == [3, 1]
    assert data.classes()["name"].names == ("a", "b")
    assert "score" not in data.classes()


# Decoding


def test_exif_orientation_is_applied(tmp_path: Path) -> None:
    (tmp_path / "set").mkdir()
    exif = Image.Exif()
    exif[274] = 6  # to be shown turned by 90 degrees clockwise
    Image.fromarray(picture(0, 4, 6)).save(tmp_path / "set" / "a.png", exif=exif)
    image = opened(tmp_path, folder={"path": "set"}, validation=0, test=0).load("train").inputs["image"][0]
    assert np.array_equal(image.permute(1, 2, 0).numpy(), np.rot90(picture(0, 4, 6), -1))


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "I;16"])
@pytest.mark.parametrize("channels", [1, 3])
def test_any_mode_becomes_grey_or_rgb(tmp_path: Path, mode: str, channels: int) -> None:
    (tmp_path / "set").mkdir()
    white = (
        Image.fromarray(np.full((4, 4), 65535, np.uint16))
        if mode == "I;16"
        else Image.new("RGB", (4, 4), "white").convert(mode)
    )
    white.save(tmp_path / "set" / "a.tif")
    data = opened(tmp_path, folder={"path": "set"}, channels=channels, validation=0, test=0)
    image = data.load("train").inputs["image"]
    assert image.shape == (1, channels, 4, 4)
    assert int(image.min()) >= 254


def test_size_resizes_images_that_differ(tmp_path: Path) -> None:
    (tmp_path / "set").mkdir()
    for i, (height, width) in enumerate([(8, 8), (6, 10)]):
        Image.fromarray(picture(i, height, width)).save(tmp_path / "set" / f"{i}.png")
    data = opened(tmp_path, folder={"path": "set"}, size=[5, 7], validation=0, test=0)
    assert data.load("train").inputs["image"].shape == (2, 3, 5, 7)
    with pytest.raises(DataError, match=r"0\.png is 8x8, .*1\.png is 6x10") as caught:
        opened(tmp_path, folder={"path": "set"}, validation=0, test=0).load("train")
    assert "data.size" in str(caught.value.hint)


@pytest.mark.parametrize("batch_rows", [4, 512])
def test_an_image_that_does_not_decode_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, batch_rows: int
) -> None:
    monkeypatch.setattr("edgekd.data.readers.parquet._BATCH_ROWS", batch_rows)
    folder = parquet_set(tmp_path / "set")
    contents = [encoded(picture(i)) for i in range(20)]
    contents[17] = contents[17][:60]
    write_parquet(folder / "train.parquet", contents, pa.array([0, 1, 2, 3] * 5))
    with pytest.raises(DataError, match=r"train\.parquet row 17: the image cannot be decoded") as caught:
        opened(tmp_path, parquet=PARQUET, validation=0).load("train")
    assert caught.value.exit_code == 4
    assert caught.value.hint


def test_a_missing_image_is_named(tmp_path: Path) -> None:
    folder = parquet_set(tmp_path / "set")
    write_parquet(folder / "test.parquet", [encoded(picture(0))] * 9 + [None], pa.array([0] * 10))
    with pytest.raises(DataError, match=r"test\.parquet row 9: there is no image"):
        opened(tmp_path, parquet=PARQUET).load("test")


def test_an_image_of_too_many_pixels_is_refused(tmp_path: Path) -> None:
    parquet_set(tmp_path / "set")
    assert len(opened(tmp_path, parquet=PARQUET, max_pixels=64).load("test")) == 10
    with pytest.raises(DataError, match=r"test\.parquet row 0: the image has more than 63 pixels"):
        opened(tmp_path, parquet=PARQUET, max_pixels=63).load("test")
    assert Image.MAX_IMAGE_PIXELS == 89478485


# Data that makes no sense


@pytest.mark.parametrize(
    ("labels", "options", "message"),
    [
        ([0, 1, -1], {}, "train row 2: the label -1 of 'label' is negative"),
        ([0, 1, 7], {"classes": 4}, "train row 2: the label 7 of 'label' is not below the number of classes, 4"),
        ([0.0, float("nan"), 1.0], {}, "train column 'label' row 1: the value nan is not finite"),
        ([0, None, 1], {}, r"train\.parquet row 1: the label is missing"),
    ],
)
def test_labels_that_are_no_classes_are_named(tmp_path: Path, labels: list[Any], options: Any, message: str) -> None:
    folder = parquet_set(tmp_path / "set")
    write_parquet(folder / "train.parquet", [encoded(picture(0))] * 3, pa.array(labels))
    with pytest.raises(DataError, match=message) as caught:
        opened(tmp_path, parquet=PARQUET, **options).load("train")
    assert caught.value.hint


@pytest.mark.parametrize(
    ("train", "test", "value"), [([0, 1, 3], [0, 2], "2"), (["cat", "dog", "dog"], ["dog", "owl"], "'owl'")]
)
def test_a_label_that_train_never_had_is_named(tmp_path: Path, train: list[Any], test: list[Any], value: str) -> None:
    folder = tmp_path / "set"
    folder.mkdir()
    write_parquet(folder / "train.parquet", [encoded(picture(0))] * 3, pa.array(train))
    write_parquet(folder / "test.parquet", [encoded(picture(0))] * 2, pa.array(test))
    data = opened(tmp_path, parquet=PARQUET, validation=0)
    data.load("train")
    with pytest.raises(DataError, match=f"test row 1: the label {value} never occurs in train"):
        data.load("test")


def test_an_empty_split_is_refused(tmp_path: Path) -> None:
    folder = parquet_set(tmp_path / "set")
    write_parquet(folder / "test.parquet", [], pa.array([], pa.int64()))
    with pytest.raises(DataError, match="the test split is empty"):
        opened(tmp_path, parquet=PARQUET).load("test")


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"y": np.arange(29)}, "the arrays differ in rows: x 30, y 29"),
        ({"x": np.array([{}] * 30)}, "array 'x': holds Python objects"),
        ({"x": np.array([[1.0], [np.nan]] * 15)}, "array 'x' row 1: the value nan is not finite"),
        ({"x": np.array([[1.0], [1e300]] * 15)}, "array 'x' row 1: the value 1e\\+300 is not finite"),
        ({"x": np.zeros((30, 2), complex)}, "inputs of type complex128"),
        ({"y": np.zeros(30, complex)}, "targets of type complex128"),
        ({"x": np.float32(3)}, "array 'x': is one number"),
    ],
)
def test_arrays_that_make_no_sense_are_named(tmp_path: Path, arrays: Any, message: str) -> None:
    npz_set(tmp_path / "set", **arrays)
    with pytest.raises(DataError, match=message) as caught:
        opened(tmp_path, npz={"path": "set"}).load("train")
    assert caught.value.hint


@pytest.mark.parametrize(("dtype", "shape"), [("u1", (8, 6, 3)), ("f4", (8, 8, 3)), ("f8", (6, 6, 1))])
@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_images_with_their_channels_last_are_asked_about_and_can_be_declared(
    tmp_path: Path, dtype: str, shape: tuple[int, ...], save: Any
) -> None:
    images = np.random.default_rng(0).integers(0, 255, (30, *shape)).astype(dtype)
    npz_set(tmp_path / "set", x=images)
    save(tmp_path / "set" / "train.npz", x=images, y=np.arange(30) % 3)
    with pytest.raises(ConfigError, match=r"^data\.npz\.layout: .* array 'x' .* channels last") as caught:
        opened(tmp_path, npz={"path": "set"})
    assert "layout: nhwc" in str(caught.value.hint)
    both = {
        layout: opened(tmp_path, npz={"path": "set", "layout": layout}, validation=0, test=0)
        for layout in ("nchw", "nhwc")
    }
    assert torch.equal(both["nhwc"].load("train").inputs["x"].movedim(1, 3), both["nchw"].load("train").inputs["x"])
    assert both["nhwc"].fingerprint != both["nchw"].fingerprint
    assert both["nhwc"].normalization()["x"].mean != both["nchw"].normalization()["x"].mean


def test_arrays_of_four_axes_that_are_no_images_need_no_layout(tmp_path: Path) -> None:
    npz_set(tmp_path / "set", x=np.zeros((30, 16, 100, 1), np.float32))
    found = opened(tmp_path, npz={"path": "set"}, validation=0, test=0).load("train")
    assert found.inputs["x"].shape[1:] == (16, 100, 1)


def test_splits_of_other_shapes_are_refused(tmp_path: Path) -> None:
    np.savez(npz_set(tmp_path / "set") / "test.npz", x=np.zeros((4, 6)), y=np.zeros(4, int))
    with pytest.raises(DataError, match=r"has the shape \(6,\), in train \(5,\)"):
        opened(tmp_path, npz={"path": "set"}).load("test")


@pytest.mark.parametrize(
    ("options", "message", "hint"),
    [
        ({"parquet": PARQUET | {"path": "nowhere"}}, "nowhere is not a folder", "train\\*.parquet"),
        ({"parquet": PARQUET | {"path": "arrays"}}, "arrays holds no train\\*.parquet", "train\\*.parquet"),
        (
            {"parquet": PARQUET | {"image": "imgs"}},
            "data.parquet.image: .* has no column 'imgs'",
            "did you mean 'img'?",
        ),
        (
            {"parquet": PARQUET | {"label": "fine"}},
            "data.parquet.label: .* has no column 'fine'",
            "known are: img, label",
        ),
        ({"npz": {"path": "nowhere"}}, "nowhere is no folder and no .npz file", "train.npz"),
        ({"npz": {"path": "nowhere.npz"}}, "nowhere.npz does not exist", "check the path"),
        ({"npz": {"path": "set"}}, "train.npz does not exist", "check the path"),
        ({"npz": {"path": "arrays", "targets": ["z"]}}, "data.npz.targets: .* holds no array 'z'", "known are: x, y"),
        ({"folder": {"path": "nowhere"}}, "nowhere is not a folder", "train/<class>"),
        ({"folder": {"path": "arrays"}}, "arrays holds no images", "train/<class>"),
        ({"folder": {"path": "only"}}, "only holds test but no train folder", "train/<class>"),
        ({"folder": {"path": "mixed"}}, "images both in and beside class folders", "train/<class>"),
    ],
)
def test_what_is_missing_is_known_when_data_is_opened(tmp_path: Path, options: Any, message: str, hint: str) -> None:
    parquet_set(tmp_path / "set")
    npz_set(tmp_path / "arrays")
    image_folder(tmp_path / "only", splits=("test",))
    image_folder(tmp_path / "mixed", splits=("train",))
    Image.fromarray(picture(0)).save(tmp_path / "mixed" / "train" / "stray.png")
    with pytest.raises(ConfigError, match=message) as caught:
        opened(tmp_path, **options)
    assert caught.value.exit_code == 2
    assert hint.replace("\\", "") in str(caught.value.hint)


@pytest.mark.parametrize("content", [b"", b"PAR1", b"x" * 100, b"PAR1" + b"\xff" * 40 + b"\x28\x00\x00\x00PAR1"])
def test_a_damaged_file_is_named(tmp_path: Path, content: bytes) -> None:
    (parquet_set(tmp_path / "set") / "train.parquet").write_bytes(content)
    (npz_set(tmp_path / "arrays") / "train.npz").write_bytes(content)
    with pytest.raises(DataError, match=r"train\.parquet: is not a readable Parquet file"):
        opened(tmp_path, parquet=PARQUET)
    with pytest.raises(DataError, match=r"train\.npz: is not a readable NumPy archive"):
        opened(tmp_path, npz={"path": "arrays"})


def test_parquet_damaged_in_the_middle_is_named(tmp_path: Path) -> None:
    path = parquet_set(tmp_path / "set") / "train.parquet"
    content = bytearray(path.read_bytes())
    content[4:2000] = bytes(1996)
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"train\.parquet"):
        opened(tmp_path, parquet=PARQUET).load("train")


def test_data_that_vanished_is_noticed(tmp_path: Path) -> None:
    folder = parquet_set(tmp_path / "set")
    data = opened(tmp_path, parquet=PARQUET)
    data.check()
    (folder / "train.parquet").unlink()
    with pytest.raises(ConfigError, match="does not exist"):
        data.check()


@settings(max_examples=25, deadline=None)
@given(
    columns=st.lists(st.text("abc. ", min_size=1, max_size=5), min_size=1, max_size=40, unique=True),
    rows=st.integers(0, 5),
)
def test_footer_agrees_with_pyarrow(tmp_path_factory: pytest.TempPathFactory, columns: list[str], rows: int) -> None:
    path = tmp_path_factory.mktemp("footer") / "a.parquet"
    kinds = [[1.5] * rows, [{"p": {"q": [1]}, "r": "s"}] * rows, ["x"] * rows]
    pq.write_table(pa.table([kinds[i % 3] for i in range(len(columns))], names=columns), path)
    footer = read_footer(path)
    assert footer.columns == tuple(pq.read_schema(path).names)
    assert footer.rows == rows
