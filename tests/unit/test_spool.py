"""The spool: made once, whole or not at all, and damage is noticed."""

from __future__ import annotations

import errno
import gc
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch
from data_sets import PARQUET, encoded, parquet_set, picture, same, streamed, write_parquet

from edgekd.data.table import row_groups
from edgekd.errors import DataError

ROOT = Path(__file__).parents[2]


def refuse(*_: object) -> Iterator[None]:
    raise AssertionError("the files were read again")
    yield


def test_images_are_copied_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    parquet_set(tmp_path / "set")
    spool = tmp_path / "store"
    rows = torch.tensor([3, 30])
    expected = streamed(tmp_path, spool=spool, parquet=PARQUET).load("train").take(rows)
    monkeypatch.setattr("edgekd.data.readers.parquet.ParquetReader._contents", refuse)
    same(streamed(tmp_path, spool=spool, parquet=PARQUET).load("train").take(rows), expected)
    code = (
        "import sys, torch; from pathlib import Path; from data_sets import PARQUET, opened\n"
        "from edgekd.data.readers.columns import ColumnReader\n"
        "ColumnReader._contents = lambda *_: iter(())\n"
        "data = opened(Path(sys.argv[1]), spool=Path(sys.argv[2]), stream='always', workers=0, parquet=PARQUET)\n"
        "print(data.load('train').take(torch.tensor([3, 30])).inputs['image'].sum().item())"
    )
    environment = os.environ | {"PYTHONPATH": f"{ROOT}{os.pathsep}{Path(__file__).parent}"}
    said = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path), str(spool)], check=True, env=environment, capture_output=True
    )
    assert int(said.stdout) == int(expected.inputs["image"].sum())


def test_other_files_are_copied_anew(tmp_path: Path) -> None:
    folder = parquet_set(tmp_path / "set")
    spool = tmp_path / "store"
    streamed(tmp_path, spool=spool, parquet=PARQUET).load("train")
    contents = [encoded(picture(50 + i)) for i in range(20)]
    write_parquet(folder / "train.parquet", contents, pa.array([0, 1, 2, 3] * 5))
    image = streamed(tmp_path, spool=spool, validation=0, parquet=PARQUET).load("train").take(torch.tensor([4]))
    assert np.array_equal(image.inputs["image"][0].permute(1, 2, 0).numpy(), picture(54))
    assert len(list((spool / "caches" / "data").iterdir())) == 2


def files_of(spool: Path) -> Path:
    (folder,) = (spool / "caches" / "data").iterdir()
    return folder


@pytest.mark.parametrize("name", ["images.bin", "index.bin", "meta.json"])
def test_half_a_copy_is_made_anew(tmp_path: Path, name: str) -> None:
    parquet_set(tmp_path / "set")
    spool = tmp_path / "store"
    expected = streamed(tmp_path, spool=spool, parquet=PARQUET).load("train").take(torch.tensor([35]))
    path = files_of(spool) / name
    path.write_bytes(path.read_bytes()[:-20])
    same(streamed(tmp_path, spool=spool, parquet=PARQUET).load("train").take(torch.tensor([35])), expected)


def test_a_changed_copy_is_noticed(tmp_path: Path) -> None:
    parquet_set(tmp_path / "set")
    spool = tmp_path / "store"
    rows = streamed(tmp_path, spool=spool, parquet=PARQUET, validation=0).load("train")
    path = files_of(spool) / "images.bin"
    path.write_bytes(bytes(path.stat().st_size))
    with pytest.raises(DataError, match="the copy of image 2 is damaged") as caught:
        rows.take(torch.tensor([2]))
    assert "delete" in str(caught.value.hint)


def test_a_copy_that_is_gone_is_an_error(tmp_path: Path) -> None:
    parquet_set(tmp_path / "set")
    spool = tmp_path / "store"
    rows = streamed(tmp_path, 1, spool=spool, parquet=PARQUET).load("train")
    (files_of(spool) / "images.bin").unlink()
    with pytest.raises(DataError, match="cannot be read") as caught:
        list(rows.batches(row_groups(4, 2)))
    assert "made anew" in str(caught.value.hint)


def test_a_disk_without_room_is_refused_before_anything_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    parquet_set(tmp_path / "set")
    monkeypatch.setattr("shutil.disk_usage", lambda _: type("Usage", (), {"free": 10}))
    with pytest.raises(DataError, match="cannot be copied here") as caught:
        streamed(tmp_path, spool=tmp_path / "store", parquet=PARQUET).load("train")
    assert "free some space" in str(caught.value.hint)
    assert list(files_of(tmp_path / "store").iterdir()) == []


def test_a_disk_that_fills_up_is_an_error_and_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    parquet_set(tmp_path / "set")

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("edgekd.data.readers.spool._write", full)
    with pytest.raises(DataError, match="no space is left"):
        streamed(tmp_path, spool=tmp_path / "store", parquet=PARQUET).load("train")
    assert list(files_of(tmp_path / "store").iterdir()) == []


def test_without_a_store_the_copy_goes_with_what_streams_from_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    parquet_set(tmp_path / "set")
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "temporary"))
    (tmp_path / "temporary").mkdir()
    data = streamed(tmp_path, parquet=PARQUET)
    assert list((tmp_path / "temporary").iterdir()) == []
    rows = data.load("train")
    del data
    gc.collect()
    assert len(rows.take(torch.arange(2))) == 2
    del rows
    gc.collect()
    assert list((tmp_path / "temporary").iterdir()) == []
