"""Resident memory of training on streamed images, from 10,000 to 1,000,000 samples.

    python benchmarks/stream_memory.py [--sizes 10000 100000 1000000] [--workers 1] [--folder DIR] [--json FILE]

For each size a synthetic Parquet data set (32x32 JPEG images of noise, 10,000 in a shard) is trained on for one epoch
by edgekd's trainer, in a process of its own and from nothing: images are copied to the spool, normalisation is
measured, the epoch runs, the validation split (a tenth) is scored. Meanwhile /proc is read five times a second:
resident memory of the training process and of its workers, and how much of both is anonymous, which leaves out the
pages of libraries. The steady value is the median over the training phase, the peak that of the whole process.
"""

# Heavy imports are inside of the functions: worker processes import this file.
from __future__ import annotations

import argparse
import itertools
import json
import os
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

SHARD = 10_000
DISTINCT = 2_000
BATCH = 128
EVERY_S = 0.2
MEASURES = ("process_rss", "workers_rss", "all_rss", "all_anonymous")


def write_data(folder: Path, count: int) -> None:
    """Shards of encoded images with labels; few are encoded, and their bytes repeated."""
    import io

    import numpy as np
    import pyarrow as pa
    import pyarrow.parquet as pq
    from PIL import Image

    rng = np.random.default_rng(0)
    encoded = []
    for _ in range(DISTINCT):
        buffer = io.BytesIO()
        Image.fromarray(rng.integers(0, 255, (32, 32, 3), dtype=np.uint8)).save(buffer, "JPEG", quality=90)
        encoded.append({"bytes": buffer.getvalue(), "path": None})
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    folder.mkdir(parents=True)
    shards = -(-count // SHARD)
    for shard in range(shards):
        rows = range(shard * SHARD, min((shard + 1) * SHARD, count))
        images = pa.array([encoded[row % DISTINCT] for row in rows], kind)
        labels = pa.array([row % 10 for row in rows])
        name = f"train-{shard:05}-of-{shards:05}.parquet"
        pq.write_table(pa.table({"img": images, "label": labels}), folder / name, row_group_size=1000)


def train_once(folder: Path, workers: int) -> dict[str, Any]:
    """One epoch over the data in a folder, and when its parts began, in seconds of the monotonic clock."""
    import torch

    from edgekd.bench.machine import peak_rss_bytes
    from edgekd.data.settings import AugmentSettings, DataSettings, ParquetSettings
    from edgekd.data.source import open_data
    from edgekd.data.views import Views
    from edgekd.distill.schemes.offline import supervised
    from edgekd.models.resolve import build
    from edgekd.tasks import heads_of
    from edgekd.train.trainer import Run, train
    from edgekd.train.world import Model, Optim, World

    torch.set_num_threads(1)
    times = {"data": time.monotonic()}
    augment = AugmentSettings(crop=4, flip=True)
    source = ParquetSettings(path=Path("data"), image="img", label="label")
    settings = DataSettings(parquet=source, augment=augment, stream="always", workers=workers, test=0.01)
    data = open_data(settings, base=folder, seed=0, memo=folder / "memo.json", spool=folder / "store")
    tables = {"train": data.load("train"), "validation": data.load("validation")}
    times["normalization"] = time.monotonic()
    normalization = data.normalization()
    times["train"] = time.monotonic()
    torch.manual_seed(0)
    network = build("resnet8", {}, Path(), {"num_classes": 10, "in_channels": 3, "image_size": 32})
    heads = heads_of("classification", ("label",))
    world = World({"student": Model(network, ("image",), ("logits",))}, tables, heads, normalization)
    run = Run(
        0, BATCH, torch.device("cpu"), "f32", Views(augment, 0), tell=lambda epoch: told.append(epoch.samples_per_s)
    )
    told: list[float] = []
    train(world, supervised("student", heads, Optim(lr=0.05), 1, None), run)
    times["end"] = time.monotonic()
    peak = peak_rss_bytes()
    return {"times": times, "images_per_s": told[-1], "train_samples": len(tables["train"]), "peak_rss_bytes": peak}


def measure(folder: Path, workers: int) -> dict[str, Any]:
    """Run `train_once` in a process of its own and watch its memory."""
    result = folder / "result.json"
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    command = [sys.executable, __file__, "--child", str(folder), "--workers", str(workers)]
    process = subprocess.Popen(command, env=environment)
    samples: list[dict[str, float]] = []
    while process.poll() is None:
        samples.append(memory_of(process.pid))
        time.sleep(EVERY_S)
    if process.returncode:
        raise SystemExit("training failed")
    return summary(json.loads(result.read_text()), samples)


def summary(result: dict[str, Any], samples: list[dict[str, float]]) -> dict[str, Any]:
    """Peak and steady memory, in bytes, and speed."""
    times = result["times"]
    steps = [s for s in samples if times["train"] + 2 <= s["t"] <= times["end"]]
    memory = {
        name: {
            "steady_bytes": int(statistics.median(s[name] for s in steps)),
            "peak_bytes": int(max(s[name] for s in samples)),
        }
        for name in MEASURES
    }
    memory["process_rss"]["peak_bytes"] = result["peak_rss_bytes"]  # as the kernel saw it, between the readings, too
    return {
        "train_samples": result["train_samples"],
        "images_per_s": round(result["images_per_s"]),
        "copy_s": round(times["normalization"] - times["data"], 1),
        "normalization_s": round(times["train"] - times["normalization"], 1),
        "train_s": round(times["end"] - times["train"], 1),
        "memory_readings": len(samples),
        **memory,
    }


def memory_of(pid: int) -> dict[str, float]:
    """Memory of a process and of its workers, in bytes."""
    own, others = rollup(pid), [rollup(worker) for worker in workers_of(pid)]
    return {
        "t": time.monotonic(),
        "process_rss": own["Rss"],
        "workers_rss": sum(other["Rss"] for other in others),
        "all_rss": sum(each["Rss"] for each in (own, *others)),
        "all_anonymous": sum(each["Anonymous"] for each in (own, *others)),
    }


def workers_of(pid: int) -> list[int]:
    found = []
    for path in Path(f"/proc/{pid}/task").glob("*/children"):
        try:
            children = [int(word) for word in path.read_text().split()]
            # A child that has not begun its own program yet has borrowed all of the parent's memory.
            found += [n for n in children if "edgekd.data.workers" in Path(f"/proc/{n}/cmdline").read_text()]
        except OSError:  # it has just ended
            continue
    return found


def rollup(pid: int) -> dict[str, int]:
    try:
        text = Path(f"/proc/{pid}/smaps_rollup").read_text()
    except OSError:  # it has just ended
        text = ""
    found = {name: int(size) * 1024 for name, size in re.findall(r"^(\w+):\s+(\d+) kB", text, re.MULTILINE)}
    return {"Rss": 0, "Anonymous": 0} | found


def main() -> None:
    """Measure every size, print a table, and write JSON with the environment."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", type=int, nargs="+", default=[10_000, 100_000, 1_000_000])
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--folder", type=Path, help="where the data sets are written, and deleted again")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--child", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child is not None:
        found = train_once(options.child, options.workers)
        (options.child / "result.json").write_text(json.dumps(found))
        return
    from edgekd.bench.machine import environment

    rows: list[dict[str, Any]] = []
    print("   samples   steady and peak MB: process, workers, all, anonymous   images/s   of the first: all, anonymous")
    for count in options.sizes:
        folder = Path(tempfile.mkdtemp(prefix="stream-", dir=options.folder))
        try:
            write_data(folder / "data", count)
            row = {"samples": count, **measure(folder, options.workers)}
        finally:
            shutil.rmtree(folder)
        rows.append(row)
        for name, kind in itertools.product(("all_rss", "all_anonymous"), ("steady", "peak")):
            row[name][f"{kind}_ratio"] = round(row[name][f"{kind}_bytes"] / rows[0][name][f"{kind}_bytes"], 4)
        cells = " ".join(f"{row[n]['steady_bytes'] / 1e6:4.0f} {row[n]['peak_bytes'] / 1e6:4.0f} " for n in MEASURES)
        ratios = " ".join(f"{row[n]['steady_ratio']:.3f} {row[n]['peak_ratio']:.3f} " for n in MEASURES[2:])
        print(f"{count:10}   {cells}  {row['images_per_s']:6}   {ratios}", flush=True)
    document = {"batch": BATCH, "workers": options.workers, "network": "resnet8", "image": "32x32 JPEG", "threads": 1}
    document |= {"environment": environment(("torch", "numpy", "pyarrow", "pillow")), "sizes": rows}
    if options.json is not None:
        options.json.write_text(json.dumps(document, indent=1) + "\n")


if __name__ == "__main__":
    main()
