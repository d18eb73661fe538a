"""Data sets: settings, splits, fingerprints and normalisation."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from data_sets import PARQUET, encoded, image_folder, npz_set, opened, parquet_set, picture, write_parquet
from hypothesis import given, settings
from hypothesis import strategies as st

from edgekd.config import validate
from edgekd.data import DataSettings
from edgekd.data.splits import choose_rows, split_rows
from edgekd.data.table import Normalization, measure
from edgekd.errors import ConfigError, DataError

CIFAR10 = Path(__file__).parents[2].parent / "shared" / "data" / "cifar10"


def problem(**options: Any) -> tuple[str, str]:
    value, problems = validate(DataSettings, options)
    assert value is None
    assert len(problems) == 1
    return problems[0].message, problems[0].hint


# Settings


@pytest.mark.parametrize(
    ("options", "message", "hint"),
    [
        ({}, "names no data source", "give one of: digits, parquet, folder, npz, csv, webdataset, huggingface"),
        ({"digits": None}, "names no data source", "`digits: {}`"),
        ({"digits": {}, "npz": {"path": "x"}}, "names 2 data sources: digits, npz", "keep one"),
        (
            {"digits": {}, "size": [8, 8]},
            "size is for images in parquet, folder, csv, webdataset and huggingface only",
            "remove",
        ),
        ({"digits": {}, "normalize": "atuo"}, "is not allowed here", "did you mean 'auto'?"),
        ({"digits": {}, "normalize": {"mean": [0, 1], "std": [1]}}, "2 means and 1 stds", "one of each"),
        ({"folder": {"path": "x"}, "normalize": {"mean": [0, 1], "std": [1, 1]}}, "2 means for 3 channels", "give 3"),
        ({"digits": {}, "validation": 1}, "validation: 1 is not allowed here", "less than 1"),
        ({"npz": {"path": "x", "inputs": ["a", "a"]}}, "inputs names an array twice", "once"),
        (
            {"npz": {"path": "x", "inputs": ["a", "b"]}, "normalize": {"mean": [0], "std": [1]}},
            "several inputs",
            "auto",
        ),
    ],
)
def test_wrong_settings_are_explained(options: dict[str, Any], message: str, hint: str) -> None:
    said, mend = problem(**options)
    assert message in said
    assert hint in mend


def test_every_option_has_a_help_text() -> None:
    from edgekd.config import describe

    def missing(rows: list[dict[str, Any]]) -> list[str]:
        inner = [name for row in rows for fields in row.get("fields", {}).values() for name in missing(fields)]
        return inner + [row["name"] for row in rows if not row["help"]]

    assert missing(describe(DataSettings)) == []


# Splits


@settings(max_examples=60, deadline=None)
@given(
    n=st.integers(5, 200),
    test=st.floats(0, 0.4),
    validation=st.floats(0, 0.4),
    seed=st.integers(0, 10**9),
    classes=st.one_of(st.none(), st.integers(1, 12)),
)
def test_splits_are_disjoint_complete_and_repeatable(n, test, validation, seed, classes) -> None:  # type: ignore[no-untyped-def]
    labels = None if classes is None else torch.arange(n) * 7 % classes
    shares = {"test": test, "validation": validation}
    rows = split_rows(n, shares, labels, seed)
    assert torch.cat([rows["train"], rows["validation"], rows["test"]]).sort().values.tolist() == list(range(n))
    again = split_rows(n, shares, labels, seed)
    assert all(torch.equal(rows[split], again[split]) for split in rows)


@settings(max_examples=60, deadline=None)
@given(
    labels=st.lists(st.integers(0, 5), min_size=1, max_size=120), share=st.floats(0.05, 1), seed=st.integers(0, 2**31)
)
def test_each_class_gives_its_proportion(labels: list[int], share: float, seed: int) -> None:
    of = torch.tensor(labels)
    size = max(1, round(len(labels) * share))
    chosen = of[choose_rows(len(labels), size, of, seed, "test")]
    assert len(chosen) == size
    difference = chosen.bincount(minlength=6) - of.bincount(minlength=6) * (size / len(labels))
    assert float(difference.abs().max()) < 1


def test_another_seed_draws_another_validation_split(tmp_path: Path) -> None:
    parquet_set(tmp_path / "set")
    one, same, other = (opened(tmp_path, seed=s, parquet=PARQUET).load("validation").ids.tolist() for s in (0, 0, 1))
    assert one == same
    assert one != other


def test_splits_of_one_archive_hold_every_sample_once(tmp_path: Path) -> None:
    npz_set(tmp_path / "set", n=50)
    data = opened(tmp_path, npz={"path": "set/train.npz"})
    ids = [data.load(split).ids for split in ("train", "validation", "test")]
    assert torch.cat(ids).sort().values.tolist() == list(range(50))
    assert data.counts() == {"train": 36, "validation": 4, "test": 10}


def test_ids_stay_with_their_samples_and_differ_between_splits(tmp_path: Path) -> None:
    parquet_set(tmp_path / "set")
    data = opened(tmp_path, parquet=PARQUET)
    images = {split: data.load(split) for split in ("train", "validation", "test")}
    assert images["test"].ids.tolist() == list(range(40, 50))
    for split in ("train", "validation"):
        for image, label, number in zip(
            images[split].inputs["image"], images[split].targets["label"], images[split].ids.tolist(), strict=True
        ):
            assert np.array_equal(image.permute(1, 2, 0).numpy(), picture(number))
            assert int(label) == number % 4


def test_limit_is_seeded_and_keeps_the_proportion_of_classes(tmp_path: Path) -> None:
    parquet_set(tmp_path / "set", train=80)
    data = opened(tmp_path, parquet=PARQUET, limit={"train": 8, "test": 500})
    assert data.load("train").targets["label"].bincount().tolist() == [2, 2, 2, 2]
    assert data.counts() == {"train": 8, "validation": 8, "test": 10}
    assert torch.equal(data.load("train").ids, opened(tmp_path, parquet=PARQUET, limit={"train": 8}).load("train").ids)


def test_validation_of_zero_is_an_empty_table_and_test_of_zero_is_refused(tmp_path: Path) -> None:
    npz_set(tmp_path / "set")
    data = opened(tmp_path, npz={"path": "set"}, validation=0, test=0)
    assert data.load("validation").inputs["x"].shape == (0, 5)
    assert data.counts() == {"train": 30, "validation": 0, "test": 0}
    with pytest.raises(DataError, match="no test split"):
        data.load("test")


def test_a_given_validation_split_is_used_as_it_is(tmp_path: Path) -> None:
    folder = parquet_set(tmp_path / "set")
    write_parquet(folder / "validation.parquet", [encoded(picture(7))] * 3, pa.array([0, 1, 2]))
    data = opened(tmp_path, parquet=PARQUET)
    assert data.counts() == {"train": 40, "validation": 3, "test": 10}
    assert data.load("validation").ids.tolist() == [40, 41, 42]
    assert data.load("test").ids.tolist() == list(range(43, 53))


def test_too_few_samples_to_split_is_refused(tmp_path: Path) -> None:
    npz_set(tmp_path / "set", n=2)
    with pytest.raises(DataError, match="train is empty: of its 2 samples 1 for test and 1 for validation") as caught:
        opened(tmp_path, npz={"path": "set"}).counts()
    assert caught.value.exit_code == 4
    assert caught.value.hint


# Fingerprints


def test_fingerprint_changes_with_one_changed_byte(tmp_path: Path) -> None:
    path = npz_set(tmp_path / "set") / "train.npz"
    before = opened(tmp_path, npz={"path": "set"}).fingerprint
    content = bytearray(path.read_bytes())
    content[200] ^= 1
    path.write_bytes(content)
    assert opened(tmp_path, npz={"path": "set"}).fingerprint != before


def test_fingerprint_is_the_same_wherever_the_data_lies(tmp_path: Path) -> None:
    parquet_set(tmp_path / "set")
    (tmp_path / "set").rename(tmp_path / "elsewhere")
    moved = opened(tmp_path, parquet=PARQUET | {"path": "elsewhere"}).fingerprint
    (tmp_path / "elsewhere").rename(tmp_path / "set")
    assert opened(tmp_path, parquet=PARQUET).fingerprint == moved


@pytest.mark.parametrize(
    "change",
    [
        {"validation": 0.2},
        {"normalize": "none"},
        {"channels": 1},
        {"size": [4, 4]},
        {"classes": 9},
        {"limit": {"train": 5}},
        {"parquet": PARQUET | {"label": None}},
        {"seed": 1},
    ],
)
def test_fingerprint_changes_with_what_changes_samples(tmp_path: Path, change: dict[str, Any]) -> None:
    parquet_set(tmp_path / "set")
    assert (
        opened(tmp_path, **({"parquet": PARQUET} | change)).fingerprint != opened(tmp_path, parquet=PARQUET).fingerprint
    )


@pytest.mark.parametrize(
    "change",
    [
        {"augment": {"crop": 2}},
        {"licence": "CC0"},
        {"test": 0.5},
        {"parquet": PARQUET},
        {"stream": "always", "memory": 0.1, "workers": 3},
    ],
)
def test_fingerprint_stays_with_what_changes_no_sample(tmp_path: Path, change: dict[str, Any]) -> None:
    parquet_set(tmp_path / "set")
    assert (
        opened(tmp_path, **({"parquet": PARQUET} | change)).fingerprint == opened(tmp_path, parquet=PARQUET).fingerprint
    )


def test_a_split_keeps_its_fingerprint_while_others_and_what_images_become_change(tmp_path: Path) -> None:
    parquet_set(tmp_path / "set")
    before = opened(tmp_path, parquet=PARQUET)
    resized = opened(tmp_path, parquet=PARQUET, size=[4, 4], normalize="none")
    limited = opened(tmp_path, parquet=PARQUET, limit={"train": 5}, seed=3)
    for split in ("train", "validation", "test"):
        assert resized.split_fingerprint(split) == before.split_fingerprint(split)
    assert limited.split_fingerprint("test") == before.split_fingerprint("test")
    assert limited.split_fingerprint("train") != before.split_fingerprint("train")
    fewer = opened(tmp_path, parquet=PARQUET, limit={"test": 3})
    assert fewer.split_fingerprint("test") != before.split_fingerprint("test")
    assert list(before.files_of("test")) == ["test.parquet"]
    assert before.files_of("validation") == before.files_of("train")
    assert fewer.learning_fingerprint == before.learning_fingerprint
    assert fewer.fingerprint != before.fingerprint
    assert limited.learning_fingerprint != before.learning_fingerprint
    assert resized.learning_fingerprint != before.learning_fingerprint
    assert list(before.learning_digests) == ["train.parquet"]
    assert list(before.digests) == ["train.parquet", "test.parquet"]
    (tmp_path / "set/train.parquet").write_bytes((tmp_path / "set/test.parquet").read_bytes())
    after = opened(tmp_path, parquet=PARQUET)
    assert after.split_fingerprint("test") == before.split_fingerprint("test")
    assert after.split_fingerprint("validation") != before.split_fingerprint("validation")


def test_fingerprint_holds_the_seed_only_if_it_draws_something(tmp_path: Path) -> None:
    parquet_set(tmp_path / "set")
    one, other = (opened(tmp_path, seed=s, parquet=PARQUET, validation=0).fingerprint for s in (0, 1))
    assert one == other


def test_known_files_are_not_read_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    parquet_set(tmp_path / "set")
    memo = tmp_path / "memo.json"
    first = opened(tmp_path, memo=memo, parquet=PARQUET)
    fingerprint, counts = first.fingerprint, first.counts()

    def refuse(path: Path) -> str:
        raise AssertionError(f"{path} was read")

    monkeypatch.setattr("edgekd.data.fingerprint.sha256_file", refuse)
    again = opened(tmp_path, memo=memo, parquet=PARQUET)
    assert again.fingerprint == fingerprint
    monkeypatch.setattr("edgekd.data.readers.parquet.ParquetReader.rows", refuse)
    assert again.counts() == counts
    os.utime(tmp_path / "set" / "train.parquet", ns=(0, 0))
    with pytest.raises(AssertionError, match="was read"):
        _ = opened(tmp_path, memo=memo, parquet=PARQUET).fingerprint


@pytest.mark.parametrize("content", ["", "[]", "{", '{"files": [1], "counts": 3}', '{"files": {"a": 1}}'])
def test_a_damaged_memo_is_written_anew(tmp_path: Path, content: str) -> None:
    parquet_set(tmp_path / "set")
    memo = tmp_path / "memo.json"
    memo.write_text(content)
    assert opened(tmp_path, memo=memo, parquet=PARQUET).fingerprint == opened(tmp_path, parquet=PARQUET).fingerprint
    assert len(json.loads(memo.read_text())["files"]) >= 2


@pytest.mark.parametrize(
    "options", [{"digits": {}}, {"parquet": PARQUET}, {"npz": {"path": "arrays"}}, {"folder": {"path": "images"}}]
)
def test_opening_and_fingerprint_load_no_heavy_library(tmp_path: Path, options: dict[str, Any]) -> None:
    parquet_set(tmp_path / "set")
    npz_set(tmp_path / "arrays")
    image_folder(tmp_path / "images")
    code = (
        "import json, sys; from pathlib import Path; from edgekd.config import validate; import edgekd.data\n"
        "from edgekd.data.source import open_data\n"
        "settings, _ = validate(edgekd.data.DataSettings, json.loads(sys.argv[1]))\n"
        "open_data(settings, base=Path(sys.argv[2]), seed=0).fingerprint\n"
        "heavy = {'torch', 'numpy', 'pyarrow', 'sklearn', 'PIL'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])}
    subprocess.run([sys.executable, "-c", code, json.dumps(options), str(tmp_path)], check=True, env=environment)


# Normalisation


@settings(max_examples=30, deadline=None)
@given(
    shape=st.sampled_from([(20, 3, 5, 4), (20, 6), (20,), (5000, 2)]),
    dtype=st.sampled_from([torch.uint8, torch.float32]),
    seed=st.integers(0, 1000),
)
def test_measured_normalization_makes_mean_0_and_std_1(shape, dtype, seed) -> None:  # type: ignore[no-untyped-def]
    x = torch.randint(0, 256, shape, generator=torch.Generator().manual_seed(seed)).to(dtype)
    normalization = measure(x)
    assert normalization.scale == (1 / 255 if dtype == torch.uint8 else 1)
    result = (
        normalization.apply(x).transpose(0, -1 if x.dim() == 1 else 1).reshape(x.shape[1] if x.dim() > 1 else 1, -1)
    )
    assert result.dtype == torch.float32
    assert torch.allclose(result.mean(1), torch.zeros(len(result)), atol=1e-4)
    assert torch.allclose(result.std(1, correction=0), torch.ones(len(result)), atol=1e-4)


def test_a_channel_that_never_varies_keeps_its_scale() -> None:
    assert measure(torch.full((9, 2), 3.0)) == Normalization((3.0, 3.0), (1.0, 1.0), 1.0)


@pytest.mark.parametrize(
    ("given_", "expected"),
    [
        ("none", Normalization((0.0,), (1.0,), 1 / 255)),
        ({"mean": [0.5], "std": [0.25]}, Normalization((0.5,), (0.25,), 1 / 255)),
    ],
)
def test_given_normalization_is_used(tmp_path: Path, given_: Any, expected: Normalization) -> None:
    parquet_set(tmp_path / "set")
    assert opened(tmp_path, parquet=PARQUET, normalize=given_).normalization() == {"image": expected}


def test_given_normalization_that_does_not_fit_is_refused(tmp_path: Path) -> None:
    npz_set(tmp_path / "set")
    with pytest.raises(ConfigError, match="2 means for the 5 channels of 'x'"):
        opened(tmp_path, npz={"path": "set"}, normalize={"mean": [0, 0], "std": [1, 1]}).normalization()


# The real thing


@pytest.mark.skipif(not CIFAR10.is_dir(), reason=f"no CIFAR-10 in {CIFAR10}")
def test_cifar10_is_read_and_split(tmp_path: Path) -> None:
    data = opened(CIFAR10.parent, parquet=PARQUET | {"path": "cifar10"}, limit={"train": 500, "test": 100})
    assert data.counts() == {"train": 500, "validation": 5000, "test": 100}
    train = data.load("train")
    assert train.inputs["image"].shape == (500, 3, 32, 32)
    assert train.targets["label"].bincount().tolist() == [50] * 10
    assert data.classes()["label"].count == 10
    mean = data.normalization()["image"].mean
    assert all(0.4 < m < 0.55 for m in mean)
