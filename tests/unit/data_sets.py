"""Small data sets that tests write for themselves."""

from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from PIL import Image

from edgekd.config import validate
from edgekd.data import DataSettings
from edgekd.data.source import Data, open_data
from edgekd.data.table import Table


def opened(base: Path, seed: int = 0, memo: Path | None = None, spool: Path | None = None, **options: Any) -> Data:
    value, problems = validate(DataSettings, options)
    assert value is not None, problems
    return open_data(value, base=base, seed=seed, memo=memo, spool=spool)


def streamed(base: Path, workers: int = 0, **options: Any) -> Data:
    return opened(base, stream="always", workers=workers, **options)


def same(one: Table, other: Table) -> None:
    assert torch.equal(one.ids, other.ids)
    for mine, theirs in ((one.inputs, other.inputs), (one.targets, other.targets)):
        assert mine.keys() == theirs.keys()
        assert all(torch.equal(mine[name], theirs[name]) and mine[name].dtype == theirs[name].dtype for name in mine)


def encoded(array: Any, form: str = "PNG", **options: Any) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(array).save(stream, form, **options)
    return stream.getvalue()


def picture(number: int, height: int = 8, width: int = 8) -> Any:
    return np.random.default_rng(number).integers(0, 256, (height, width, 3), dtype=np.uint8)


def write_parquet(path: Path, contents: list[bytes | None], labels: Any = None, *, raw: bool = False) -> None:
    images: Any = pa.array(contents, pa.binary())
    if not raw:
        rows = [{"bytes": c, "path": f"{i}.png"} for i, c in enumerate(contents)]
        images = pa.array(rows, pa.struct([("bytes", pa.binary()), ("path", pa.string())]))
    columns = {"img": images} | ({} if labels is None else {"label": labels})
    pq.write_table(pa.table(columns), path, row_group_size=7)


def parquet_set(folder: Path, train: int = 40, test: int = 10, **options: Any) -> Path:
    folder.mkdir(exist_ok=True)
    for split, start, n in (("train", 0, train), ("test", 1000, test)):
        contents = [encoded(picture(start + i)) for i in range(n)]
        write_parquet(folder / f"{split}.parquet", contents, pa.array([i % 4 for i in range(n)]), **options)
    return folder


PARQUET = {"path": "set", "image": "img", "label": "label"}


def npz_set(folder: Path, n: int = 30, **arrays: Any) -> Path:
    folder.mkdir(exist_ok=True)
    x = np.random.default_rng(0).normal(size=(n, 5))
    np.savez(folder / "train.npz", **({"x": x, "y": np.arange(n) % 3} | arrays))
    return folder


def image_folder(
    root: Path, splits: tuple[str, ...] = ("train", "test"), classes: tuple[str, ...] = ("cat", "dog")
) -> Path:
    for split in splits:
        for label in classes:
            folder = root / split / label
            folder.mkdir(parents=True)
            for i in range(5):
                Image.fromarray(picture(i)).save(folder / f"{i}.png")
    return root


def tar_set(path: Path, samples: list[dict[str, bytes]]) -> Path:
    """A WebDataset tar: sample i is `i` with each of its extensions."""
    with tarfile.open(path, "w") as archive:
        for i, sample in enumerate(samples):
            for extension, content in sample.items():
                info = tarfile.TarInfo(f"part/{i:05}.{extension}")
                info.size = len(content)
                archive.addfile(info, io.BytesIO(content))
    return path


def saved_to_disk(folder: Path, table: pa.Table, features: dict[str, Any]) -> Path:
    """What `Dataset.save_to_disk` of Hugging Face writes, by hand."""
    folder.mkdir(parents=True)
    name = "data-00000-of-00001.arrow"
    with pa.OSFile(str(folder / name), "wb") as sink, pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table, max_chunksize=7)
    state = {"_data_files": [{"filename": name}], "_fingerprint": "0", "_format_columns": None, "_split": None}
    (folder / "state.json").write_text(json.dumps(state))
    (folder / "dataset_info.json").write_text(json.dumps({"features": features, "splits": {}}))
    return folder
