"""Streams: the same samples as in memory, and where they live."""

from __future__ import annotations

import gc
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import torch
from data_sets import (
    PARQUET,
    encoded,
    image_folder,
    npz_set,
    opened,
    parquet_set,
    picture,
    same,
    streamed,
    write_parquet,
)
from torch import nn
from worker_processes import worker_pids

from edgekd.config import validate
from edgekd.data import DataSettings
from edgekd.data.counters import permutation
from edgekd.data.memory import free_bytes
from edgekd.data.settings import AugmentSettings
from edgekd.data.source import Data
from edgekd.data.stream import StreamedTable
from edgekd.data.table import Table, place, row_groups
from edgekd.data.views import Views
from edgekd.distill.schemes.offline import supervised
from edgekd.errors import DataError
from edgekd.tasks import heads_of
from edgekd.train.evaluate import outputs, score
from edgekd.train.trainer import Run, train
from edgekd.train.world import Model, Optim, World

SOURCES: dict[str, dict[str, Any]] = {"parquet": {"parquet": PARQUET}, "folder": {"folder": {"path": "set"}}}


@pytest.fixture(params=["parquet", "folder"])
def source(request: pytest.FixtureRequest, tmp_path: Path) -> dict[str, Any]:
    (parquet_set if request.param == "parquet" else image_folder)(tmp_path / "set")
    return SOURCES[request.param]


@pytest.fixture(autouse=True)
def no_worker_stays() -> Iterator[None]:
    yield
    gc.collect()
    assert worker_pids() == []


def group_rows(n: int) -> list[torch.Tensor]:
    return list(torch.split(permutation(1, "test", 0, n), 3))


# The same samples


@pytest.mark.parametrize("workers", [0, 1])
def test_streamed_samples_are_those_in_memory(tmp_path: Path, source: dict[str, Any], workers: int) -> None:
    data, stream = opened(tmp_path, stream="never", **source), streamed(tmp_path, workers, **source)
    for split in ("train", "validation", "test"):
        table, rows = data.load(split), stream.load(split)
        assert isinstance(table, Table)
        assert isinstance(rows, StreamedTable)
        assert len(rows) == len(table)
        assert torch.equal(rows.ids, table.ids)
        assert {name: list(x.shape) for name, x in rows.inputs.items()} == {"image": list(table.inputs["image"].shape)}
        assert torch.equal(rows.targets["label"], table.targets["label"])
        groups = group_rows(len(table))
        for found, expected in zip(rows.batches(groups), table.batches(groups), strict=True):
            same(found, expected)
        same(rows.take(groups[-1]), table.take(groups[-1]))
    assert stream.normalization() == data.normalization()
    assert stream.fingerprint == data.fingerprint
    assert stream.counts() == data.counts()
    assert stream.load("train") is stream.load("train")


@pytest.mark.parametrize("options", [{"limit": {"train": 9, "test": 4}}, {"validation": 0, "seed": 3}, {"channels": 1}])
def test_limits_and_splits_are_those_in_memory(tmp_path: Path, source: dict[str, Any], options: dict[str, Any]) -> None:
    data, stream = opened(tmp_path, **source, **options), streamed(tmp_path, **source, **options)
    for split in ("train", "validation", "test"):
        rows = torch.arange(len(data.load(split)))
        same(stream.load(split).take(rows), data.load(split).take(rows))


def test_without_labels_there_are_no_targets(tmp_path: Path) -> None:
    parquet_set(tmp_path / "set")
    rows = streamed(tmp_path, parquet={"path": "set", "image": "img"}).load("train")
    assert dict(rows.targets) == {}
    assert rows.take(torch.tensor([2, 1])).targets == {}


def test_images_are_resized_on_the_way(tmp_path: Path, source: dict[str, Any]) -> None:
    data, stream = opened(tmp_path, size=[5, 7], **source), streamed(tmp_path, size=[5, 7], **source)
    rows = torch.tensor([4, 0])
    same(stream.load("train").take(rows), data.load("train").take(rows))


def test_measured_normalization_is_exact_however_the_images_are_cut(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    parquet_set(tmp_path / "set")
    expected = opened(tmp_path, parquet=PARQUET).normalization()
    for size in (1, 3 * 8 * 8 * 5):
        monkeypatch.setattr("edgekd.data.table._CHUNK_BYTES", size)
        assert streamed(tmp_path, parquet=PARQUET).normalization() == expected


def test_normalization_is_measured_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    parquet_set(tmp_path / "set")
    memo = tmp_path / "memo.json"
    found = streamed(tmp_path, memo=memo, parquet=PARQUET).normalization()
    monkeypatch.setattr(Data, "load", lambda *_: pytest.fail("the images were read"))
    assert opened(tmp_path, memo=memo, parquet=PARQUET).normalization() == found
    with pytest.raises(pytest.fail.Exception):
        opened(tmp_path, memo=memo, validation=0.3, parquet=PARQUET).normalization()


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Dropout(0.1))
        self.head = nn.Linear(4, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.body(x).mean((2, 3)))


def trained(data: Data) -> tuple[dict[str, Any], Any, Any]:
    torch.manual_seed(0)
    heads = heads_of("classification", ("label",))
    tables = {split: data.load(split) for split in ("train", "validation")}
    world = World({"student": Model(Net(), ("image",), ("logits",))}, tables, heads, data.normalization())
    views = Views(AugmentSettings(crop=1, flip=True), 0)
    run = Run(0, 8, torch.device("cpu"), "f32", views)
    curves = train(world, supervised("student", heads, Optim(lr=0.05), 2, None), run)
    scores = score(world, "student", data.load("test"), run.device)
    found = outputs(world, "student", data.load("test"), run.device)["logits"]
    return world.models["student"].network.state_dict(), curves, (scores, found.tolist())


def test_training_on_a_stream_gives_the_same_bytes(tmp_path: Path) -> None:
    parquet_set(tmp_path / "set")
    weights, curves, scores = trained(opened(tmp_path, parquet=PARQUET))
    for workers in (0, 2):
        mine, my_curves, my_scores = trained(streamed(tmp_path, workers, parquet=PARQUET))
        assert all(torch.equal(mine[name], weights[name]) for name in weights)
        assert (my_curves, my_scores) == (curves, scores)


# What makes no sense


@pytest.mark.parametrize("workers", [0, 1])
def test_an_image_that_does_not_decode_is_named(tmp_path: Path, workers: int) -> None:
    folder = parquet_set(tmp_path / "set")
    contents = [encoded(picture(i)) for i in range(20)]
    contents[17] = contents[17][:60]
    write_parquet(folder / "train-1.parquet", contents, pa.array([0, 1, 2, 3] * 5))
    rows = streamed(tmp_path, workers, parquet=PARQUET, validation=0).load("train")
    with pytest.raises(DataError, match=r"set/train-1\.parquet row 17: the image cannot be decoded") as caught:
        list(rows.batches(row_groups(60, 4)))
    assert caught.value.hint


@pytest.mark.parametrize("workers", [0, 1])
def test_a_broken_file_is_named(tmp_path: Path, workers: int) -> None:
    (image_folder(tmp_path / "set") / "train" / "dog" / "3.png").write_bytes(b"no image")
    rows = streamed(tmp_path, workers, folder={"path": "set"}, validation=0).load("train")
    with pytest.raises(DataError, match=r"train/dog/3\.png: the image cannot be decoded"):
        list(rows.batches(row_groups(10, 4)))


def test_a_missing_image_and_one_of_another_size_are_named(tmp_path: Path) -> None:
    (tmp_path / "set").mkdir()
    contents = [encoded(picture(0)), encoded(picture(1, 8, 9)), None]
    write_parquet(tmp_path / "set" / "train.parquet", contents, pa.array([0, 0, 0]))
    rows = streamed(tmp_path, 1, parquet=PARQUET, validation=0, test=0).load("train")
    with pytest.raises(DataError, match=r"train\.parquet row 2: there is no image"):
        rows.take(torch.tensor([2]))
    with pytest.raises(DataError, match=r"train\.parquet row 0 is 8x8, .*train\.parquet row 1 is 8x9"):
        list(rows.batches([torch.tensor([1])]))


# Where samples live


@pytest.mark.parametrize(("free", "kind"), [(2 * 36 * 8 * 8 * 3, Table), (2 * 36 * 8 * 8 * 3 - 1, StreamedTable)])
def test_more_than_a_share_of_the_free_memory_is_streamed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, free: int, kind: type
) -> None:
    parquet_set(tmp_path / "set")
    monkeypatch.setattr("edgekd.data.loading.free_bytes", lambda: free)
    assert isinstance(opened(tmp_path, parquet=PARQUET).load("train"), kind)
    assert isinstance(opened(tmp_path, parquet=PARQUET, memory=0.1).load("train"), StreamedTable)
    assert isinstance(opened(tmp_path, parquet=PARQUET, stream="never").load("train"), Table)
    assert isinstance(opened(tmp_path, parquet=PARQUET).load("validation"), Table)


def test_archives_are_not_streamed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    npz_set(tmp_path / "set")
    monkeypatch.setattr("edgekd.data.loading.free_bytes", lambda: 0)
    assert isinstance(opened(tmp_path, npz={"path": "set"}).load("train"), Table)
    _, problems = validate(DataSettings, {"npz": {"path": "set"}, "stream": "always"})
    assert "stream: always is for images in parquet, folder" in problems[0].message


def test_never_streaming_more_than_the_machine_holds_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    parquet_set(tmp_path / "set")
    monkeypatch.setattr("edgekd.data.readers.images.physical_bytes", lambda: 1000)
    with pytest.raises(DataError, match="36 decoded images take") as caught:
        opened(tmp_path, parquet=PARQUET, stream="never").load("train")
    assert "data.stream" in str(caught.value.hint)


@pytest.mark.parametrize(
    ("cgroup", "files", "expected"),
    [
        ("0::/", {}, 1000 * 1024),
        ("0::/", {"memory.max": "500000", "memory.current": "200000"}, 300_000),
        (
            "0::/a/b",
            {
                "a/memory.max": "90000",
                "a/memory.current": "50000",
                "a/memory.stat": "anon 1\ninactive_file 20000\n",
                "a/b/memory.max": "max",
                "a/b/memory.current": "1",
            },
            60_000,
        ),
        ("0::/host/path", {"memory.max": "1000", "memory.current": "5000"}, 0),
        (
            "4:memory:/docker/x\n0::/",
            {"memory/memory.limit_in_bytes": "70000", "memory/memory.usage_in_bytes": "10000"},
            60_000,
        ),
    ],
)
def test_free_memory_is_within_the_limits_of_control_groups(
    tmp_path: Path, cgroup: str, files: dict[str, str], expected: int
) -> None:
    proc, groups = tmp_path / "proc", tmp_path / "groups"
    (proc / "self").mkdir(parents=True)
    (proc / "meminfo").write_text("MemTotal: 5000 kB\nMemAvailable:    1000 kB\n")
    (proc / "self" / "cgroup").write_text(cgroup + "\n")
    for name, text in files.items():
        (groups / name).parent.mkdir(parents=True, exist_ok=True)
        (groups / name).write_text(text)
    assert free_bytes(proc, groups) == expected


def test_without_proc_the_physical_memory_counts(tmp_path: Path) -> None:
    assert free_bytes(tmp_path, tmp_path) == os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def test_a_table_stays_on_the_cpu_where_there_is_no_gpu() -> None:
    table = Table({"x": torch.ones(3, 2)}, {"y": torch.arange(3)}, torch.arange(3))
    assert place(table, torch.device("cpu"), 0.5) is table


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_a_table_moves_to_a_gpu_that_has_room_for_it() -> None:
    table = Table({"x": torch.arange(6.0).view(3, 2)}, {"y": torch.arange(3)}, torch.arange(3) + 5)
    device = torch.device("cuda")
    assert place(table, device, 0.0) is table
    there = place(table, device, 0.5)
    assert (there.inputs["x"].device.type, there.targets["y"].device.type, there.ids.device.type) == (
        "cuda",
        "cuda",
        "cpu",
    )
    rows = torch.tensor([2, 0])
    for asked in (rows, rows.cuda()):
        taken = there.take(asked)
        assert taken.inputs["x"].device.type == "cuda"
        assert taken.ids.tolist() == [7, 5]
        assert taken.inputs["x"].tolist() == [[4, 5], [0, 1]]


def test_folders_are_read_where_they_are(tmp_path: Path) -> None:
    image_folder(tmp_path / "set")
    streamed(tmp_path, spool=tmp_path / "store", folder={"path": "set"}).load("train")
    assert not (tmp_path / "store").exists()


def test_a_folder_is_one_entry_of_the_memo(tmp_path: Path) -> None:
    image_folder(tmp_path / "set")
    memo = tmp_path / "memo.json"
    before = opened(tmp_path, memo=memo, folder={"path": "set"}).fingerprint
    assert len(json.loads(memo.read_text())["files"]) == 4  # two splits of two classes
    path = tmp_path / "set" / "train" / "cat" / "2.png"
    path.write_bytes(encoded(picture(9)))
    assert opened(tmp_path, memo=memo, folder={"path": "set"}).fingerprint != before
