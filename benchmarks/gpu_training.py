"""Distillation on a GPU: images per second, share of time the GPU is busy, peak memory; edgekd against the plain loop.

    python benchmarks/gpu_training.py [--parquet FOLDER] [--batches 64 512 4096] [--epochs 3] [--json FILE]
    python benchmarks/gpu_training.py --parquet FOLDER --recipe [--teacher FILE] [--json FILE]
    python benchmarks/gpu_training.py --cpu-dry-run      two steps of every arm on the CPU: does the script work?

Every arm has a process of its own, and they run one after the other. The first epoch warms up (workers, compiling, and
where the cache is warm, filling it); speed is the median of the others. A cold cache is kept cold by drawing among all
162 views in every epoch: 99 of 100 lookups miss. A warm one has one view of each sample. The plain loop is float32 as
torch has it (TF32 in convolutions), with cudnn.benchmark and 8 DataLoader workers.

Busy is what nvidia-smi says of the timed epochs (a kernel ran at the time of a sample), and from one more epoch under
the profiler the time in which some kernel or copy ran; the profiler slows the host, so that one is a lower bound.

--recipe trains resnet32x4 -> resnet8x4 for 240 epochs of batch 64: SGD .05, times .1 at 150, 180 and 210, weight decay
5e-4. edgekd's SGD is Nesterov's and does not decay biases and BatchNorm. Without --teacher, a file of weights, the
teacher is trained first by the same recipe. Accuracy is that of the last epoch on the test split.

Without --parquet the images are noise. Without CUDA it says so and ends with 3.
"""

from __future__ import annotations

import argparse
import itertools
import json
import multiprocessing
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import our_loop
import torch
from plain_loop import MEAN, PAIRS, STD, Samples, network, plain, samples

from edgekd.bench.machine import environment
from edgekd.data.table import Normalization
from edgekd.models.weights import apply_state, load_state
from edgekd.train.evaluate import score
from edgekd.train.world import Model, Optim, World

RECIPE = Optim("sgd", lr=0.05, schedule="step", milestones=(0.625, 0.75, 0.875), gamma=0.1, weight_decay=5e-4)
RECIPE_PAIR, RECIPE_EPOCHS, RECIPE_BATCH = PAIRS[0], 240, 64
ARMS = ("plain loop", "edgekd, live teacher", "edgekd, cold cache", "edgekd, warm cache", "student alone")
ALL_VIEWS = 162
DRY_BATCH = 8
PROFILED_STEPS = 50


@dataclass(frozen=True)
class Job:
    """One arm to be measured."""

    arm: str
    pair: tuple[str, str]
    batch: int
    rows: Samples
    epochs: int
    workers: int
    compile: str
    device: torch.device

    def run(self, rows: Samples, epochs: int, folder: Path, at_end: Callable[[int], None] | None = None) -> list[float]:
        """Train for some epochs; seconds of each. `at_end` is called with the number of each that ended."""
        student, teacher = network(self.pair[1], 1), network(self.pair[0], 0)
        ends = [time.perf_counter()]

        def end(number: int) -> None:
            ends.append(self._now())
            if at_end is not None:
                at_end(number)

        if self.arm == "plain loop":
            epoch = plain(teacher, student, rows, batch=self.batch, workers=self.workers, device=self.device)
            for number in range(epochs):
                epoch()
                end(number + 1)
            return [after - before for before, after in itertools.pairwise(ends)]
        options: dict[str, Any] = {"batch": self.batch, "device": self.device, "count": epochs, "compile": self.compile}
        options["tell"] = lambda told: end(told.epoch)
        if self.arm == "edgekd, cold cache":
            options |= {"views": "all", "cache": our_loop.new_cache(len(rows), folder, ALL_VIEWS)}
        elif self.arm == "edgekd, warm cache":
            options |= {"views": 1, "cache": our_loop.new_cache(len(rows), folder, 1)}
        our_loop.epochs(student, None if self.arm == "student alone" else teacher, our_loop.table_of(rows), **options)
        return [after - before for before, after in itertools.pairwise(ends)]

    def _now(self) -> float:
        if self.device.type == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter()


def measure(job: Job, pipe: Connection) -> None:
    """Measure one arm in this process, and answer with what was found."""
    multiprocessing.set_start_method(None, force=True)  # the platform's own for DataLoaders, not that of this process
    torch.backends.cudnn.benchmark = job.arm == "plain loop"
    cuda = job.device.type == "cuda"
    with tempfile.TemporaryDirectory() as folder:
        with utilisation(cuda) as busy:
            seconds = job.run(job.rows, job.epochs + 1, Path(folder, "timed"))
        timed = seconds[1:]
        share = seconds[0] / sum(seconds)
        found: dict[str, Any] = {
            "arm": job.arm,
            "teacher": job.pair[0],
            "student": job.pair[1],
            "batch": job.batch,
            "images_per_s": [round(len(job.rows) / value, 1) for value in timed],
            "first_epoch_s": round(seconds[0], 2),
            "peak_memory_bytes": torch.cuda.max_memory_allocated() if cuda else None,
            "busy_nvidia_smi": mean_of(busy[int(len(busy) * share) :]),
            "busy_profiler": kernel_share(job, Path(folder, "profiled")),
        }
    pipe.send(found)


@contextmanager
def utilisation(cuda: bool) -> Iterator[list[float]]:
    """Samples of the GPU's utilisation (0 .. 1), five in a second, while the block runs; filled at its end."""
    taken: list[float] = []
    if not cuda:
        yield taken
        return
    device = f"GPU-{torch.cuda.get_device_properties(0).uuid}"
    query = ["nvidia-smi", "-i", device, "--query-gpu=utilization.gpu", "--format=csv,noheader,nounits", "-lms", "200"]
    try:
        process = subprocess.Popen(query, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    except FileNotFoundError:
        yield taken
        return
    try:
        yield taken
    finally:
        process.terminate()
        text, _ = process.communicate()
        taken.extend(int(line) / 100 for line in text.split() if line.isdigit())


def kernel_share(job: Job, folder: Path) -> float | None:
    """Share of a second epoch's time in which the device ran a kernel or a copy (a CPU: an operator); profiled."""
    from torch.profiler import ProfilerActivity, profile

    kind = "CUDA" if job.device.type == "cuda" else "CPU"
    profiler = profile(activities=[getattr(ProfilerActivity, kind)])
    actions = {1: profiler.start, 2: profiler.stop}
    job.run(job.rows[: PROFILED_STEPS * job.batch], 2, folder, lambda number: actions[number]())
    spans = [
        (event.time_range.start, event.time_range.end)
        for event in profiler.events() or []  # type: ignore[no-untyped-call]
        if event.device_type.name == kind and not getattr(event, "is_user_annotation", False)
    ]
    return round(covered(spans), 3) if spans else None


def covered(spans: Iterable[tuple[float, float]]) -> float:
    """Share of the time from the first start to the last end that the spans cover."""
    ordered = sorted(spans)
    total, reached = 0.0, ordered[0][0]
    for start, end in ordered:
        total += max(end - max(start, reached), 0.0)
        reached = max(reached, end)
    return total / (reached - ordered[0][0])


def mean_of(values: list[float]) -> float | None:
    return round(statistics.fmean(values), 3) if values else None


def in_process(job: Job) -> dict[str, Any]:
    """What `measure` finds, in a process of its own."""
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=measure, args=(job, theirs))
    process.start()
    theirs.close()
    try:
        found: dict[str, Any] = ours.recv()
    except EOFError:
        found = {"arm": job.arm, "teacher": job.pair[0], "student": job.pair[1], "batch": job.batch, "failed": True}
    process.join()
    return found


def show(found: dict[str, Any], plain_rate: float | None) -> float | None:
    name = f"{found['teacher']} -> {found['student']}, batch {found['batch']:<5} {found['arm']:<22}"
    if "images_per_s" not in found:
        print(f"{name} failed", flush=True)
        return plain_rate
    rate = statistics.median(found["images_per_s"])
    plain_rate = rate if found["arm"] == "plain loop" else plain_rate
    times = f"{rate / plain_rate:5.2f}x" if plain_rate else "     -"
    share, memory = found["busy_profiler"], found["peak_memory_bytes"]
    busy = f"busy {'-' if share is None else f'{100 * share:.0f}%'} (nvidia-smi {found['busy_nvidia_smi'] or '-'})"
    print(f"{name} {rate:10.0f} images/s {times}  {busy}  {(memory or 0) / 1e9:.2f} GB", flush=True)
    return plain_rate


def recipe(options: argparse.Namespace, device: torch.device, rows: Samples, test: Samples) -> dict[str, Any]:
    """The published recipe from start to end: minutes and accuracy."""
    count, batch = (1, DRY_BATCH) if options.cpu_dry_run else (RECIPE_EPOCHS, RECIPE_BATCH)
    table, student = our_loop.table_of(rows), network(RECIPE_PAIR[1], 1)
    minutes: dict[str, float] = {}
    train: Callable[..., None] = partial(
        our_loop.epochs, table=table, batch=batch, device=device, count=count, optim=RECIPE, compile=options.compile
    )
    teacher = network(RECIPE_PAIR[0], 0)
    if options.teacher is not None:
        apply_state(teacher, load_state(options.teacher), options.teacher)
    else:
        minutes["teacher"] = timed_minutes(partial(train, teacher, None, views="all", tell=progress("teacher")))
    with tempfile.TemporaryDirectory() as folder:
        cache = our_loop.new_cache(len(rows), Path(folder))
        minutes["student"] = timed_minutes(partial(train, student, teacher, cache=cache, tell=progress("student")))
    world = World({}, {}, our_loop.HEADS, {"image": Normalization(MEAN, STD, 1 / 255)})
    world.models = {
        name: Model(trained, ("image",), ("logits",)) for name, trained in (("teacher", teacher), ("student", student))
    }
    held_out = our_loop.table_of(test)
    accuracy = {name: score(world, name, held_out, device)["accuracy"].value for name in world.models}
    print("minutes:", {name: round(value, 1) for name, value in minutes.items()}, " test accuracy:", accuracy)
    return {"epochs": count, "batch": batch, "views": 16, "minutes": minutes, "accuracy": accuracy, "test": len(test)}


def timed_minutes(work: Callable[[], None]) -> float:
    started = time.perf_counter()
    work()
    return (time.perf_counter() - started) / 60


def progress(name: str) -> Callable[[Any], None]:
    return lambda epoch: print(
        f"{name} {epoch.epoch}/{epoch.epochs}  loss {epoch.loss:.3f}  {epoch.samples_per_s:.0f} images/s", flush=True
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parquet", type=Path, help="folder with train.parquet and test.parquet: img, label")
    parser.add_argument("--images", type=int, default=50_000)
    parser.add_argument("--batches", type=int, nargs="+", default=[64, 512, 4096])
    parser.add_argument("--epochs", type=int, default=3, help="timed epochs of an arm")
    parser.add_argument("--workers", type=int, default=8, help="DataLoader workers of the plain loop")
    parser.add_argument("--compile", choices=["off", "default", "graphs"], default="graphs", help="edgekd's arms")
    parser.add_argument("--recipe", action="store_true")
    parser.add_argument("--teacher", type=Path, help="weights of resnet32x4 for --recipe")
    parser.add_argument("--cpu-dry-run", action="store_true")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    if max(options.batches) > options.images:
        parser.error("a batch is larger than --images")
    dry = options.cpu_dry_run
    if not dry and not torch.cuda.is_available():
        print("gpu_training: torch finds no CUDA device here", file=sys.stderr)
        sys.exit(3)
    device = torch.device("cpu") if dry else torch.device("cuda", 0)
    if dry:
        options.batches, options.epochs, options.images, options.compile = [DRY_BATCH], 1, 2 * DRY_BATCH, "off"
    rows = samples(options.parquet, options.images)
    document: dict[str, Any] = {
        "gpu": None if dry else torch.cuda.get_device_name(device),
        "images": len(rows),
        "workers": options.workers,
        "cores": os.cpu_count(),
        "compile": options.compile,
        "precision": our_loop.precision_on(device),
        "environment": environment(("torch",)),
    }
    if options.recipe:
        test = samples(options.parquet, 2 * DRY_BATCH if dry else 10_000, "test")
        document["recipe"] = recipe(options, device, rows, test)
    else:
        document["arms"] = speed(options, device, rows)
    if options.json is not None:
        options.json.write_text(json.dumps(document, indent=1) + "\n")


def speed(options: argparse.Namespace, device: torch.device, rows: Samples) -> list[dict[str, Any]]:
    """Every arm of both pairs at every batch."""
    found = []
    for pair in PAIRS:
        for batch in options.batches:
            plain_rate: float | None = None
            for arm in ARMS:
                whole = rows[: len(rows) // batch * batch]  # the plain loop leaves out what fills no batch
                job = Job(arm, pair, batch, whole, options.epochs, options.workers, options.compile, device)
                found.append(in_process(job))
                plain_rate = show(found[-1], plain_rate)
    return found


if __name__ == "__main__":
    main()
