"""How often a teacher runs: a sweep of four students by the command line, and the hits of each epoch of a long run.

    python benchmarks/teacher_passes.py [--parquet FOLDER] [--images 5000] [--epochs 4] [--json FILE]

The sweep is `edgekd run` in processes of their own that share a store: once to train the teacher, then once for each
student. The teacher is a network of the user's that counts the samples it is given; it writes their number when the
process ends. Two of them are there to learn the shape of its outputs, and some fill up its last batches. The last
student runs twice as many epochs as the others, so its later half needs views that nobody asked for before.

The long run is one student on digits: 60 epochs in which each sample is seen in one of 16 views of its own. The share
of lookups that find what is there is compared with 1 - (15/16)^k for the epoch after k others.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch
from our_loop import HEADS, OPTIM, new_cache
from plain_loop import CPU

from edgekd.bench.machine import environment
from edgekd.data.settings import AugmentSettings, DataSettings, DigitsSettings
from edgekd.data.source import open_data
from edgekd.data.views import Views
from edgekd.distill.schemes.offline import offline
from edgekd.distill.settings import DistillationSettings
from edgekd.models.resolve import build
from edgekd.train.trainer import Epoch, Run, train
from edgekd.train.world import Model, World

STUDENTS = ("resnet8", "convnet", "wrn_16_2", "resnet14")
VIEWS, BATCH, LONG = 16, 64, 60
PIPELINE = """\
name: sweep
data: {{{source}, augment: {{{augment}, views: {views}}}}}
train: {{batch: {batch}}}
stages:
  - teacher: {{model: "counted:build", epochs: {teacher_epochs}}}
  - distill: {{student: convnet, epochs: {epochs}}}
"""
COUNTED = """\
import atexit
import os
from pathlib import Path

from edgekd.models.zoo.resnet import resnet20

seen = [0]


def build(num_classes, in_channels, image_size):
    network = resnet20(num_classes, in_channels, image_size)
    network.register_forward_hook(lambda module, inputs, output: seen.append(len(inputs[0])))
    return network


atexit.register(lambda: Path(os.environ["TEACHER_SAMPLES"]).write_text(str(sum(seen))))
"""


def run(folder: Path, *arguments: str) -> dict[str, Any]:
    """One `edgekd run`: samples that the teacher was given, CPU seconds, and the state of each stage."""
    counter, out = folder / "teacher_samples", folder / "out"
    command = [sys.executable, "-m", "edgekd", "run", str(folder / "sweep.yaml"), "--quiet", "--out", str(out)]
    before = os.times()
    subprocess.run(
        [*command, "--store", str(folder / "store"), *arguments],
        check=True,
        env={**os.environ, "TEACHER_SAMPLES": str(counter)},
        stdout=subprocess.DEVNULL,
    )
    after = os.times()
    cpu_s = after.children_user + after.children_system - before.children_user - before.children_system
    report = json.loads((out / "report.json").read_text())
    states = {stage["name"]: stage["state"] for stage in report["stages"]}
    samples = report["data"]["n"]["train"]
    return {
        "teacher_samples": int(counter.read_text()),
        "train_samples": samples,
        "cpu_s": round(cpu_s, 1),
        "stages": states,
    }


def sweep(parquet: Path | None, images: int, epochs: int) -> dict[str, Any]:
    """Four students, one after the other, of one teacher."""
    source, augment, views = "digits: {}", "crop: 1", 9
    if parquet is not None:
        source = f"parquet: {{path: {parquet.resolve()}, image: img, label: label}}, limit: {{train: {images}}}"
        augment, views = "crop: 4, flip: true", VIEWS
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        (folder / "counted.py").write_text(COUNTED)
        text = PIPELINE.format(
            source=source, augment=augment, views=views, batch=BATCH, teacher_epochs=epochs, epochs=epochs
        )
        (folder / "sweep.yaml").write_text(text)
        run(folder, "--to", "teacher")
        seen = 0
        for student, long in (*((name, epochs) for name in STUDENTS[:-1]), (STUDENTS[-1], 2 * epochs)):
            found = run(folder, "--set", f"distill.student={student}", "--set", f"distill.epochs={long}")
            # Pairs of sample and view that this run asks for and no earlier one did.
            new = found["train_samples"] * sum(1 - share for share in expected_hits(long, views)[seen:])
            rows.append({"student": student, "epochs": long, "expected_new": round(new), **found})
            seen = max(seen, long)
    for row in rows:
        row["without_cache"] = row["train_samples"] * row["epochs"]
        print(
            f"{row['student']:<10} {row['epochs']:3} epochs   teacher saw {row['teacher_samples']:7} samples, "
            f"expected new {row['expected_new']:7}, without a cache {row['without_cache']}"
        )
    return {"data": "digits" if parquet is None else "parquet", "views": views, "batch": BATCH, "runs": rows}


def expected_hits(epochs: int, views: int) -> list[float]:
    """The share of lookups that hit in each epoch: an epoch after k others finds 1 - (1 - 1/V)^k."""
    return [1 - (1 - 1 / views) ** k for k in range(epochs)]


def long_run(epochs: int) -> dict[str, Any]:
    """One student on digits: hits of every epoch, by what is new in the cache, and what the teacher was given."""
    data = open_data(DataSettings(digits=DigitsSettings()), base=Path(), seed=0)
    table = data.load("train")
    shape: dict[str, Any] = {"num_classes": 10, "in_channels": 1, "image_size": 8}
    torch.manual_seed(0)
    networks = {"teacher": build("resnet20", {}, Path(), shape), "student": build("convnet", {}, Path(), shape)}
    models = {name: Model(network, ("image",), ("logits",)) for name, network in networks.items()}
    world = World(models, {"train": table}, HEADS, data.normalization())
    given, filled = [0], [0]
    networks["teacher"].eval().register_forward_hook(lambda _, args, __: given.append(len(args[0])))
    with tempfile.TemporaryDirectory() as scratch:
        cache = new_cache(int(table.ids.max()) + 1, Path(scratch))

        def tell(epoch: Epoch) -> None:
            filled.append(cache.filled())

        views = Views(AugmentSettings(crop=4, flip=True, views=VIEWS), 0)
        run_ = Run(0, BATCH, CPU, "f32", views, tell=tell, caches={"teacher": cache})
        train(world, offline(HEADS, DistillationSettings(), OPTIM, epochs, None), run_)
    hits = [1 - (now - before) / len(table) for before, now in itertools.pairwise(filled)]
    return {
        "train_samples": len(table),
        "views": VIEWS,
        "batch": BATCH,
        "epochs": epochs,
        "hits_by_epoch": [round(share, 4) for share in hits],
        "expected_by_epoch": [round(share, 4) for share in expected_hits(epochs, VIEWS)],
        "filled": filled[-1],
        "most_there_can_be": len(table) * VIEWS,
        "teacher_samples": sum(given),
        "without_cache": len(table) * epochs,
    }


def show(found: dict[str, Any]) -> None:
    hits, expected = found["hits_by_epoch"], found["expected_by_epoch"]
    print("\nepoch   hits  expected   mean so far  expected")
    for k in range(len(hits)):
        means = sum(hits[: k + 1]) / (k + 1), sum(expected[: k + 1]) / (k + 1)
        print(f"{k + 1:5}  {hits[k]:5.3f}     {expected[k]:5.3f}         {means[0]:5.3f}     {means[1]:5.3f}")
    print(f"the teacher saw {found['teacher_samples']} samples, without a cache {found['without_cache']}; ", end="")
    print(f"{found['filled']} of {found['most_there_can_be']} pairs of sample and view are there")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parquet", type=Path, help="folder with train.parquet: img, label; without it digits")
    parser.add_argument("--images", type=int, default=5000, help="of the Parquet file, validation included")
    parser.add_argument("--epochs", type=int, default=4, help="of every run of the sweep")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(1)
    started = time.time()
    document: dict[str, Any] = {
        "sweep": sweep(options.parquet, options.images, options.epochs),
        "long_run": long_run(LONG),
        "seconds": round(time.time() - started),
        "environment": environment(("torch",)),
    }
    show(document["long_run"])
    if options.json is not None:
        options.json.write_text(json.dumps(document, indent=1) + "\n")


if __name__ == "__main__":
    main()
