"""Images per second of a distillation step on one core: a plain loop, edgekd cold and warm, the student alone.

    python benchmarks/train_speed.py [--parquet FOLDER] [--rounds 5] [--images 640] [--json FILE]

One interleaved run: every round takes each arm once, in another order, on the same images; CPU time per image, medians
and ratios of medians. The plain loop is what known libraries do: float32, NCHW, JPEG decoded and augmented by Pillow
for every step, the teacher live. Without --parquet the images are noise, encoded as JPEG.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import random
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import nn

from edgekd.bench.machine import environment
from edgekd.data.settings import AugmentSettings
from edgekd.data.table import Normalization, Table
from edgekd.data.views import Views
from edgekd.distill.knowledge import kd
from edgekd.distill.schemes.offline import offline, supervised
from edgekd.distill.settings import DistillationSettings
from edgekd.distill.teacher_cache import Head, TeacherCache, open_cache
from edgekd.models.resolve import build
from edgekd.store import Store
from edgekd.tasks import heads_of
from edgekd.train.precision import choose_precision
from edgekd.train.settings import TrainSettings
from edgekd.train.trainer import Run, train
from edgekd.train.world import Model, Optim, World

PAIRS = [("resnet32x4", "resnet8x4"), ("resnet56", "resnet20")]
BATCH = 64
HEADS = heads_of("classification", ("label",))
MEAN, STD = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)
CPU = torch.device("cpu")
AUGMENT = AugmentSettings(crop=4, flip=True, views=16)
Samples = list[tuple[bytes, int]]


def samples(folder: Path | None, count: int) -> Samples:
    """Encoded images with labels."""
    if folder is not None:
        from pyarrow import parquet

        table = parquet.read_table(folder / "train.parquet").slice(0, count)
        return [(row["img"]["bytes"], row["label"]) for row in table.to_pylist()]
    rng = np.random.default_rng(0)
    found = []
    for i in range(count):
        buffer = io.BytesIO()
        Image.fromarray(rng.integers(0, 255, (32, 32, 3), dtype=np.uint8)).save(buffer, "JPEG", quality=90)
        found.append((buffer.getvalue(), i % 10))
    return found


class Encoded(torch.utils.data.Dataset[tuple[torch.Tensor, int]]):
    """Images decoded and augmented by Pillow when they are asked for."""

    def __init__(self, rows: Samples) -> None:
        self.rows = rows

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        data, label = self.rows[index]
        image = ImageOps.expand(Image.open(io.BytesIO(data)).convert("RGB"), 4)
        x, y = random.randrange(9), random.randrange(9)
        image = image.crop((x, y, x + 32, y + 32))
        if random.random() < 0.5:
            image = ImageOps.mirror(image)
        pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1).float().div(255)
        return (pixels - torch.tensor(MEAN).view(3, 1, 1)) / torch.tensor(STD).view(3, 1, 1), label


def network(name: str, seed: int) -> nn.Module:
    torch.manual_seed(seed)
    return build(name, {}, Path(), {"num_classes": 10, "in_channels": 3, "image_size": 32})


def plain(teacher: nn.Module, student: nn.Module, rows: Samples) -> Callable[[], None]:
    """One epoch of the loop that everyone writes."""
    loader = torch.utils.data.DataLoader(Encoded(rows), batch_size=BATCH, shuffle=True, drop_last=True)
    optimizer = torch.optim.SGD(student.parameters(), lr=0.05, momentum=0.9, weight_decay=5e-4)
    teacher.eval()

    def epoch() -> None:
        student.train()
        for x, y in loader:
            with torch.no_grad():
                target = teacher(x)
            logits = student(x)
            loss = 0.1 * nn.functional.cross_entropy(logits, y) + 0.9 * kd(logits, target, temperature=4.0)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            loss.item()

    return epoch


def table_of(rows: Samples) -> Table:
    pixels = np.stack([np.array(Image.open(io.BytesIO(data)).convert("RGB")) for data, _ in rows])
    image = torch.from_numpy(pixels).permute(0, 3, 1, 2).contiguous()
    return Table({"image": image}, {"label": torch.tensor([label for _, label in rows])}, torch.arange(len(rows)))


def ours(teacher: nn.Module, student: nn.Module, table: Table, *, distil: bool, cache: TeacherCache | None) -> None:
    """One epoch of edgekd's trainer."""
    world = World({"student": Model(student, ("image",), ("logits",))}, {"train": table}, HEADS)
    world.normalization = {"image": Normalization(MEAN, STD, 1 / 255)}
    optim = Optim("sgd", lr=0.05, weight_decay=5e-4)
    phases = supervised("student", HEADS, optim, 1, None)
    if distil:
        world.models["teacher"] = Model(teacher.eval(), ("image",), ("logits",))
        phases = offline(HEADS, DistillationSettings(), optim, 1, None)
    caches = {"teacher": cache} if cache is not None else {}
    precision = choose_precision(TrainSettings(), CPU)
    train(world, phases, Run(0, BATCH, CPU, precision, Views(AUGMENT, 0), caches=caches))


def new_cache(count: int, folder: str) -> TeacherCache:
    limits: dict[str, Any] = {"samples": count, "views": 16, "max_bytes": 10**10}
    cache, words = open_cache(Store(Path(folder)), {}, [Head("logits", (10,))], dtype="f32", **limits)
    if cache is None:
        raise SystemExit(words)
    return cache


def measure(pair: tuple[str, str], rows: Samples, rounds: int) -> dict[str, Any]:
    """CPU microseconds per image of every arm, one value a round."""
    table, count = table_of(rows), len(rows) // BATCH * BATCH
    teacher = network(pair[0], 0)
    live, cold, warm, alone, loop = (network(pair[1], 1) for _ in range(5))
    times: dict[str, list[float]] = {}
    with tempfile.TemporaryDirectory() as scratch:
        kept = new_cache(len(rows), f"{scratch}/kept")
        ours(teacher, warm, table, distil=True, cache=kept)
        arms: dict[str, Callable[[], None]] = {
            "plain loop": plain(network(pair[0], 0), loop, rows),
            "edgekd, live teacher": lambda: ours(teacher, live, table, distil=True, cache=None),
            "edgekd, warm cache": lambda: ours(teacher, warm, table, distil=True, cache=kept),
            "student alone": lambda: ours(teacher, alone, table, distil=False, cache=None),
        }
        for number in range(rounds + 1):
            fresh = new_cache(len(rows), f"{scratch}/{number}")
            arms["edgekd, first epoch"] = lambda fresh=fresh: ours(teacher, cold, table, distil=True, cache=fresh)  # type: ignore[misc]
            for name in random.sample(list(arms), len(arms)):
                started = time.process_time()
                arms[name]()
                if number:  # the first round warms up
                    times.setdefault(name, []).append(1e6 * (time.process_time() - started) / count)
    return dict(sorted(times.items()))


def main() -> None:
    """Measure both pairs, print a table, and write JSON with the environment."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parquet", type=Path)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--images", type=int, default=640)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(1)
    random.seed(0)
    rows = samples(options.parquet, options.images)
    document: dict[str, Any] = {"batch": BATCH, "rounds": options.rounds, "images": options.images, "threads": 1}
    document |= {
        "precision": choose_precision(TrainSettings(), CPU),
        "environment": environment(("torch",)),
        "pairs": [],
    }
    for pair in PAIRS:
        times = measure(pair, rows, options.rounds)
        medians = {name: statistics.median(values) for name, values in times.items()}
        print(f"\n{pair[0]} -> {pair[1]}, batch {BATCH}, one thread")
        print("  images per CPU second, times the plain loop, cost of a step over the student alone")
        for name, value in sorted(medians.items(), key=lambda item: -item[1]):
            loop, alone = medians["plain loop"] / value, value / medians["student alone"]
            print(f"  {name:<22} {1e6 / value:8.0f}   {loop:5.2f}x   {alone:5.2f}")
        document["pairs"].append({"teacher": pair[0], "student": pair[1], "cpu_us_per_image": times})
    if options.json is not None:
        options.json.write_text(json.dumps(document, indent=1) + "\n")


if __name__ == "__main__":
    main()
