"""CSV files, WebDataset tars and saved Hugging Face data sets: what they give, and what they cannot do to a machine."""

from __future__ import annotations

import contextlib
import io
import json
import tarfile
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from data_sets import encoded, npz_set, opened, picture, same, saved_to_disk, streamed, tar_set
from hypothesis import given, settings
from hypothesis import strategies as st

from edgekd.config import parse_tree
from edgekd.data.labels import TextLabels
from edgekd.errors import ConfigError, DataError, EdgekdError

ALL = {"validation": 0, "test": 0}


def write_csv(folder: Path, text: str, name: str = "set.csv", images: int = 6) -> Path:
    (folder / "img").mkdir(parents=True, exist_ok=True)
    for i in range(images):
        (folder / "img" / f"{i}.png").write_bytes(encoded(picture(i)))
    (folder / name).write_text(text)
    return folder


def rows(labels: list[Any], header: str = "path,label") -> str:
    return "\n".join([header, *(f"img/{i}.png,{label}" for i, label in enumerate(labels))])


def shows(table: Any, numbers: list[int]) -> None:
    for image, number in zip(table.inputs["image"], numbers, strict=True):
        assert np.array_equal(image.permute(1, 2, 0).numpy(), picture(number))


# CSV


def test_csv_gives_images_and_labels_in_its_order(tmp_path: Path) -> None:
    write_csv(tmp_path, "id,label,path\n7,b,img/3.png\n8,a,img/0.png\n\n9,b,img/3.png\n")
    options = {"csv": {"path": "set.csv"}, **ALL}
    data = opened(tmp_path, **options)
    shows(data.load("train"), [3, 0, 3])
    assert data.load("train").targets["label"].tolist() == [1, 0, 1]
    assert data.classes()["label"].names == ("a", "b")
    same(streamed(tmp_path, **options).load("train").take(torch.arange(3)), data.load("train"))


def test_a_column_of_the_csv_says_the_split(tmp_path: Path) -> None:
    text = "path,label,set\n" + "".join(
        f"img/{i}.png,{i % 2},{s}\n" for i, s in enumerate(["train", "val", "test"] * 2)
    )
    write_csv(tmp_path, text)
    data = opened(tmp_path, csv={"path": "set.csv", "split": "set"})
    assert data.counts() == {"train": 2, "validation": 2, "test": 2}
    shows(data.load("validation"), [1, 4])


def test_rows_of_train_in_the_same_csv_leave_the_other_splits_as_they_are(tmp_path: Path) -> None:
    text = "path,label,set\n" + "".join(f"img/{i}.png,{i % 2},{s}\n" for i, s in enumerate(["train", "test"] * 2))
    settings: dict[str, Any] = {"csv": {"path": "set.csv", "split": "set"}, "validation": 0.5}

    write_csv(tmp_path, text)

    def prints(text: str) -> dict[str, str]:
        (tmp_path / "set.csv").write_text(text)
        data = opened(tmp_path, **settings)
        splits = {split: data.split_fingerprint(split) for split in ("train", "validation", "test")}
        return {**splits, "learning": data.learning_fingerprint, "all": data.fingerprint}

    def changed(text: str) -> list[str]:
        return [split for split, found in prints(text).items() if found != before[split]]

    before = prints(text)
    assert changed(f"{text}img/4.png,0,train\nimg/5.png,1,train\n") == ["train", "validation", "learning", "all"]
    assert changed(f"{text}img/4.png,0,test\n") == ["test", "all"]
    assert changed(text.replace("img/3.png,1", "img/3.png,0")) == ["test", "all"]  # a label
    (tmp_path / "img/1.png").write_bytes(encoded(picture(8)))
    assert changed(text) == ["test", "all"]


def test_one_csv_for_each_split(tmp_path: Path) -> None:
    write_csv(tmp_path, rows([0, 1, 0, 1]), "train.csv")
    write_csv(tmp_path, rows([1, 0]), "test.csv")
    assert opened(tmp_path, csv={"path": "."}, validation=0).counts() == {"train": 4, "validation": 0, "test": 2}


@pytest.mark.parametrize(
    ("labels", "dtype", "names"),
    [
        ([2, 0, 1], torch.int64, None),
        ([0.5, -1, 2], torch.float32, None),
        (["7a", "b", "7a"], torch.int64, ("7a", "b")),
    ],
)
def test_labels_as_texts_are_numbers_if_all_are(tmp_path: Path, labels: list[Any], dtype: Any, names: Any) -> None:
    write_csv(tmp_path, rows(labels))
    data = opened(tmp_path, csv={"path": "set.csv"}, **ALL)
    assert data.load("train").targets["label"].dtype == dtype
    if dtype == torch.int64:
        assert data.classes()["label"].names == names


def test_a_label_of_another_kind_is_named() -> None:
    texts = {"train": ["1", "2"], "test": ["1", "two"]}
    with pytest.raises(DataError, match="test row 1: the label 'two' is not an integer"):
        TextLabels(lambda split: texts[split]).target("test")


@pytest.mark.parametrize(
    "path", ["../secret.png", "/etc/passwd", "img/../../secret.png", "out/secret.png", "link.png", "img/.."]
)
def test_paths_of_a_csv_stay_in_its_folder_unless_they_are_allowed_out(tmp_path: Path, path: str) -> None:
    (tmp_path / "secret.png").write_bytes(encoded(picture(9)))
    folder = write_csv(tmp_path / "set", f"path\nimg/0.png\n{path}\n")
    (folder / "out").symlink_to(tmp_path)
    (folder / "link.png").symlink_to(tmp_path / "secret.png")
    options = {"path": "set/set.csv", "label": None}
    if path == "img/..":
        with pytest.raises(DataError, match=r"\.\.: this is no regular file|cannot be decoded"):
            opened(tmp_path, csv=options, **ALL).load("train")
        return
    with pytest.raises(DataError, match=r"set\.csv row 2: the path .* leads out of") as caught:
        opened(tmp_path, csv=options, **ALL).load("train")
    assert "outside: true" in str(caught.value.hint)
    if path.endswith(".png"):
        shows(opened(tmp_path, csv=options | {"outside": True}, **ALL).load("train"), [0, 9])


def test_a_missing_file_of_a_csv_is_a_broken_image(tmp_path: Path) -> None:
    write_csv(tmp_path, rows([0, 1, 0, 1, 0, 1, 0, 1]))
    options = {"csv": {"path": "set.csv"}, **ALL}
    with pytest.raises(DataError, match=r"2 of 8 images are broken: .*6\.png: there is no such file"):
        opened(tmp_path, **options).load("train")
    shows(opened(tmp_path, skip_broken=0.25, **options).load("train"), [0, 1, 2, 3, 4, 5])


@pytest.mark.parametrize("change", ["img/2.png", "set.csv"])
def test_one_byte_of_an_image_or_of_the_csv_is_another_fingerprint(tmp_path: Path, change: str) -> None:
    write_csv(tmp_path, rows([0, 1, 0]))
    before = opened(tmp_path, csv={"path": "set.csv"}).fingerprint
    path = tmp_path / change
    path.write_bytes(path.read_bytes()[:-1] + bytes([path.read_bytes()[-1] ^ 1]))
    assert opened(tmp_path, csv={"path": "set.csv"}).fingerprint != before


@pytest.mark.parametrize(
    ("text", "options", "error", "message"),
    [
        ("file,label\nimg/0.png,1\n", {}, ConfigError, "data.csv.image: .* has no column 'path'"),
        ("path\nimg/0.png\n", {}, ConfigError, "data.csv.label: .* has no column 'label'"),
        ("path,label\nimg/0.png\n", {}, DataError, "row 1: 1 fields, the header has 2"),
        ("path,label\nimg/0.png,\n", {}, DataError, "train row 0: the label is missing"),
        ("path,label\n,1\n", {}, DataError, "row 1: names no file"),
        ('path,label\n"img/0.png,1\n', {}, DataError, "is not readable CSV"),
        ("path,label\nimg/0.png,é\n", {"encode": "latin-1"}, DataError, "is not UTF-8"),
        ("path,label,s\nimg/0.png,1,trian\n", {"split": "s"}, DataError, "'trian' is no split"),
        ("path,label,s\nimg/0.png,1,test\n", {"split": "s"}, ConfigError, "has no row of train"),
    ],
)
def test_what_is_wrong_with_a_csv_is_said(tmp_path: Path, text: str, options: Any, error: Any, message: str) -> None:
    write_csv(tmp_path, "")
    coding = options.pop("encode", "utf-8")
    (tmp_path / "set.csv").write_text(text, encoding=coding)
    with pytest.raises(error, match=message) as caught:
        opened(tmp_path, csv={"path": "set.csv", **options}, **ALL).load("train")
    assert caught.value.hint


# WebDataset


def samples(count: int, **more: Any) -> list[dict[str, bytes]]:
    return [{"png": encoded(picture(i)), "cls": str(i % 3).encode(), **more} for i in range(count)]


def test_samples_of_tar_files_are_read_where_they_lie(tmp_path: Path) -> None:
    (tmp_path / "set").mkdir()
    tar_set(tmp_path / "set" / "train-000.tar", samples(5))
    tar_set(tmp_path / "set" / "train-001.tar", samples(4))
    tar_set(tmp_path / "set" / "val-000.tar", samples(3))
    data, stream = (f(tmp_path, webdataset={"path": "set"}, test=0) for f in (opened, streamed))
    assert data.counts() == {"train": 9, "validation": 3, "test": 0}
    shows(data.load("train"), [0, 1, 2, 3, 4, 0, 1, 2, 3])
    assert data.load("train").targets["label"].tolist() == [0, 1, 2, 0, 1, 0, 1, 2, 0]
    order = torch.tensor([8, 2, 5])
    same(stream.load("train").take(order), data.load("train").take(order))


def test_tar_files_of_other_names_are_all_train(tmp_path: Path) -> None:
    (tmp_path / "set").mkdir()
    for part in "ab":
        tar_set(tmp_path / "set" / f"shard-{part}.tar", samples(10))
    assert opened(tmp_path, webdataset={"path": "set"}).counts() == {"train": 14, "validation": 2, "test": 4}


def test_labels_may_be_a_field_of_json_and_images_may_be_chosen(tmp_path: Path) -> None:
    parts = [
        {"seg.png": encoded(picture(50)), "rgb.png": encoded(picture(i)), "json": json.dumps({"name": n}).encode()}
        for i, n in enumerate(["dog", "cat"])
    ]
    tar_set(tmp_path / "set.tar", parts)
    data = opened(tmp_path, webdataset={"path": "set.tar", "image": "rgb.png", "label": "json.name"}, **ALL)
    shows(data.load("train"), [0, 1])
    assert data.classes()["label"].names == ("cat", "dog")
    with pytest.raises(DataError, match=r"its \.json has no field 'nom'"):
        opened(tmp_path, webdataset={"path": "set.tar", "label": "json.nom"}, **ALL).load("train")


def test_a_sample_without_a_label_or_an_image_is_named(tmp_path: Path) -> None:
    tar_set(tmp_path / "a.tar", [*samples(2), {"png": encoded(picture(2))}])
    with pytest.raises(DataError, match=r"a\.tar: part/00002: has no \.cls"):
        opened(tmp_path, webdataset={"path": "a.tar"}, **ALL).load("train")
    tar_set(tmp_path / "b.tar", [*samples(2), {"cls": b"1"}])
    with pytest.raises(DataError, match="a sample without an image: there is no image"):
        opened(tmp_path, webdataset={"path": "b.tar"}, **ALL).load("train")


def test_a_broken_member_is_called_by_its_name(tmp_path: Path) -> None:
    tar_set(tmp_path / "a.tar", [*samples(2), {"png": b"x" * 99, "cls": b"0"}])
    with pytest.raises(DataError, match=r"a\.tar: part/00002\.png: the image cannot be decoded"):
        opened(tmp_path, webdataset={"path": "a.tar"}, **ALL).load("train")


def test_an_archive_cannot_reach_out_of_itself(tmp_path: Path) -> None:
    secret = tmp_path / "secret.png"
    secret.write_bytes(encoded(picture(9)))
    with tarfile.open(tmp_path / "a.tar", "w") as archive:
        for name, kind in (("l.png", tarfile.SYMTYPE), ("h.png", tarfile.LNKTYPE), ("d.png", tarfile.CHRTYPE)):
            link = tarfile.TarInfo(name)
            link.type, link.linkname = kind, str(secret)
            archive.addfile(link)
        for name in ("../../up.png", "/abs.png"):
            info = tarfile.TarInfo(name)
            info.size = len(encoded(picture(1)))
            archive.addfile(info, io.BytesIO(encoded(picture(1))))
    before = {path for path in tmp_path.parent.rglob("*") if "memo" not in path.name}
    data = opened(tmp_path, webdataset={"path": "a.tar", "label": None}, **ALL)
    shows(data.load("train"), [1, 1])
    assert {path for path in tmp_path.parent.rglob("*") if "memo" not in path.name} == before


def _tar_with_size(size: bytes, kind: bytes = b"0") -> bytes:
    """One header that says a member has this size."""
    info = tarfile.TarInfo("a.png")
    header = bytearray(info.tobuf(tarfile.USTAR_FORMAT))
    header[124:136], header[156:157] = size.ljust(12, b"\0"), kind
    header[148:156] = b" " * 8
    header[148:156] = f"{sum(header):06o}\0 ".encode()
    return bytes(header) + bytes(1024)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\x1f\x8b" + bytes(600),
        _tar_with_size(b"77777777777"),
        _tar_with_size(b"77777777777", b"x"),
        _tar_with_size(b"77777777777", b"L"),
        _tar_with_size(b"\xff" * 12),
        _tar_with_size(b"\x80" + b"\xff" * 11, b"x"),
    ],
)
def test_a_tar_file_that_lies_about_sizes_takes_no_memory(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "a.tar").write_bytes(content)
    with pytest.raises(DataError, match=r"a\.tar: is not a readable tar file") as caught:
        opened(tmp_path, webdataset={"path": "a.tar"}, **ALL).load("train")
    assert "gunzip" in str(caught.value.hint)


# Hugging Face


FEATURES = {"image": {"_type": "Image"}, "label": {"_type": "ClassLabel", "names": ["cat", "dog", "owl"]}}


def hf_table(count: int, **columns: Any) -> pa.Table:
    images = [{"bytes": encoded(picture(i)), "path": None} for i in range(count)]
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    labels = pa.array([i % 3 for i in range(count)], pa.int64())
    return pa.table({"image": pa.array(images, kind), "label": labels, **columns})


def test_a_saved_data_set_is_read_without_the_library(tmp_path: Path) -> None:
    for split, count in (("train", 20), ("validation", 4), ("test", 6)):
        saved_to_disk(tmp_path / "set" / split, hf_table(count), FEATURES)
    (tmp_path / "set" / "dataset_dict.json").write_text('{"splits": ["train", "test", "validation"]}')
    data, stream = (f(tmp_path, huggingface={"path": "set"}) for f in (opened, streamed))
    assert data.counts() == {"train": 20, "validation": 4, "test": 6}
    shows(data.load("train"), list(range(20)))
    assert data.classes()["label"].names == ("cat", "dog", "owl")
    order = torch.tensor([19, 0, 8])
    same(stream.load("train").take(order), data.load("train").take(order))
    assert data.load("test").targets["label"].tolist() == [0, 1, 2, 0, 1, 2]


def test_one_saved_split_is_split_by_seed_and_names_enter_the_fingerprint(tmp_path: Path) -> None:
    saved_to_disk(tmp_path / "set", hf_table(20), FEATURES)
    data = opened(tmp_path, huggingface={"path": "set"})
    assert data.counts() == {"train": 14, "validation": 2, "test": 4}
    info = tmp_path / "set" / "dataset_info.json"
    info.write_text(info.read_text().replace("owl", "emu"))
    assert opened(tmp_path, huggingface={"path": "set"}).fingerprint != data.fingerprint


@pytest.mark.parametrize(
    ("file", "change", "error", "message"),
    [
        (
            "state.json",
            {"_data_files": [{"filename": "../x.arrow"}]},
            DataError,
            "names no Arrow files in its own folder",
        ),
        ("state.json", {"_data_files": [{"filename": "no.arrow"}]}, ConfigError, "no.arrow does not exist"),
        ("state.json", {"_indices_data_files": [{"filename": "i"}]}, ConfigError, "keeps an order of its rows"),
        ("dataset_info.json", {"features": {"img": {}}}, ConfigError, "has no column 'image'"),
        ("dataset_info.json", {"features": 3}, DataError, "names no features"),
    ],
)
def test_what_is_wrong_with_a_saved_data_set_is_said(
    tmp_path: Path, file: str, change: Any, error: Any, message: str
) -> None:
    path = saved_to_disk(tmp_path / "set", hf_table(8), FEATURES) / file
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(error, match=message) as caught:
        opened(tmp_path, huggingface={"path": "set"})
    assert caught.value.hint


def test_a_damaged_arrow_file_is_named(tmp_path: Path) -> None:
    path = saved_to_disk(tmp_path / "set", hf_table(8), FEATURES) / "data-00000-of-00001.arrow"
    path.write_bytes(path.read_bytes()[:900])
    with pytest.raises(DataError, match="cannot be read as Arrow"):
        opened(tmp_path, huggingface={"path": "set"}, **ALL).load("train")


# Sizes that files only claim


def claim(path: Path, shape: tuple[int, ...], content: bytes = b"") -> None:
    """An archive whose array says that it has a shape."""
    stream = io.BytesIO()
    np.lib.format.write_array_header_1_0(stream, {"descr": "<f4", "fortran_order": False, "shape": shape})
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("x.npy", stream.getvalue() + content)


def test_an_array_that_claims_terabytes_takes_no_memory(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", y=np.zeros(3, int))
    claim(tmp_path / "a.npz", (1 << 40,))
    with pytest.raises(DataError, match="is not a readable NumPy archive"):
        opened(tmp_path, npz={"path": "a.npz"}).load("train")


def test_arrays_beyond_the_memory_are_refused_by_their_size(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    npz_set(tmp_path / "set")
    monkeypatch.setattr("edgekd.data.readers.npz.free_bytes", lambda: 100)
    with pytest.raises(DataError, match=r"its arrays take 0\.0 GiB, and 0\.0 GiB of memory are free"):
        opened(tmp_path, npz={"path": "set"}).load("train")


# Whatever bytes there are: hypothesis turns over bytes of good files; benchmarks/fuzz.py does it at length


def damaged(data: st.DataObject, content: bytes) -> bytes:
    changed = bytearray(content)
    for _ in range(data.draw(st.integers(1, 8))):
        changed[data.draw(st.integers(0, len(changed) - 1))] = data.draw(st.integers(0, 255))
    return bytes(changed[: data.draw(st.integers(0, len(changed)))]) if data.draw(st.booleans()) else bytes(changed)


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("good")
    tar_set(root / "set.tar", samples(3))
    npz_set(root)
    write_csv(root, rows([0, 1, 0]))
    return root


@settings(max_examples=120, deadline=None)
@given(data=st.data(), kind=st.sampled_from(["webdataset:set.tar", "npz:train.npz", "csv:set.csv"]))
def test_a_damaged_file_is_read_or_refused(good: Path, data: st.DataObject, kind: str) -> None:
    source, _, name = kind.partition(":")
    path = good / f"damaged-{name}"
    path.write_bytes(damaged(data, (good / name).read_bytes()))
    with contextlib.suppress(EdgekdError):
        opened(good, **{source: {"path": path.name}}, **ALL).load("train")


@settings(max_examples=100, deadline=None)
@given(data=st.data())
def test_damaged_yaml_is_read_or_refused(data: st.DataObject) -> None:
    text = (
        "name: a\ndata: {digits: {}, augment: &x {crop: 1}}\nstages:\n  - teacher: {model: convnet}\nx: [1, 2.5, *x]\n"
    )
    with contextlib.suppress(ConfigError):
        parse_tree(damaged(data, text.encode()).decode(errors="replace"), "a.yaml")
