"""CPU time of a distillation step: the loops of others, edgekd with a cold and a warm cache, the student alone.

    python benchmarks/train_speed.py [--parquet FOLDER] [--rounds 5] [--images 640] [--workers 1] [--json FILE]

Every arm has a process of its own, as it has in life, with one torch thread. Only one works at a time: every round
takes each arm once, in another order, on the same images. What counts is CPU time (user + system) per image, that of
the arm's DataLoader workers included, by their CPU clocks; medians and ratios of medians. The first round warms up.

The plain loop and torchdistill are float32, NCHW, and decode and augment JPEG or PNG with Pillow for every step, the
teacher live; plain_loop.py says how they differ. torchdistill is left out where it does not import; the JSON then says
why. Page faults are those of the arm's process without its workers. Without --parquet the images are noise, encoded as
JPEG.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import multiprocessing
import os
import random
import resource
import statistics
import tempfile
import time
from collections.abc import Callable
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import our_loop
import torch
from plain_loop import CPU, PAIRS, Epoch, Samples, network, plain, samples, torchdistill

from edgekd.bench.machine import environment

BATCH = 64
Pair = tuple[str, str]


def plain_arm(pair: Pair, rows: Samples, workers: int, folder: Path) -> Epoch:
    return plain(network(pair[0], 0), network(pair[1], 1), rows, batch=BATCH, workers=workers)


def teacher_first_arm(pair: Pair, rows: Samples, workers: int, folder: Path) -> Epoch:
    return plain(network(pair[0], 0), network(pair[1], 1), rows, batch=BATCH, workers=workers, teacher_first=True)


def torchdistill_arm(pair: Pair, rows: Samples, workers: int, folder: Path) -> Epoch:
    return torchdistill(network(pair[0], 0), network(pair[1], 1), rows, batch=BATCH, workers=workers)


def distillation(pair: Pair, rows: Samples) -> Callable[..., None]:
    return partial(our_loop.epochs, network(pair[1], 1), network(pair[0], 0), our_loop.table_of(rows), batch=BATCH)


def live_arm(pair: Pair, rows: Samples, workers: int, folder: Path) -> Epoch:
    return distillation(pair, rows)


def cold_arm(pair: Pair, rows: Samples, workers: int, folder: Path) -> Epoch:
    """Each epoch begins with an empty cache."""
    epoch = distillation(pair, rows)
    return lambda: epoch(cache=our_loop.new_cache(len(rows), Path(tempfile.mkdtemp(dir=folder))))


def warm_arm(pair: Pair, rows: Samples, workers: int, folder: Path) -> Epoch:
    """The first epoch fills the cache; it is the one that warms up."""
    return partial(distillation(pair, rows), cache=our_loop.new_cache(len(rows), folder))


def alone_arm(pair: Pair, rows: Samples, workers: int, folder: Path) -> Epoch:
    return partial(our_loop.epochs, network(pair[1], 1), None, our_loop.table_of(rows), batch=BATCH)


ARMS: dict[str, Callable[[Pair, Samples, int, Path], Epoch]] = {
    "plain loop": plain_arm,
    "plain, teacher first": teacher_first_arm,
    "torchdistill": torchdistill_arm,
    "edgekd, live teacher": live_arm,
    "edgekd, first epoch": cold_arm,
    "edgekd, warm cache": warm_arm,
    "student alone": alone_arm,
}


def cpu_seconds() -> float:
    """CPU time of this process and of all that it started: those that ended, and by their clocks those that live."""
    ended = resource.getrusage(resource.RUSAGE_CHILDREN)
    # The CPU clock of another process, as clock_getcpuclockid(3) makes it from its number.
    alive = [time.clock_gettime((~child.pid << 3) | 2) for child in multiprocessing.active_children() if child.pid]
    return time.process_time() + ended.ru_utime + ended.ru_stime + sum(alive)


def serve(pipe: Connection, name: str, pair: Pair, rows: Samples, workers: int, folder: Path) -> None:
    """Be one arm: for every message run an epoch, and answer with its CPU seconds and the page faults."""
    multiprocessing.set_start_method(None, force=True)  # the platform's own for DataLoaders, not that of this process
    torch.set_num_threads(1)
    random.seed(0)
    try:
        epoch = ARMS[name](pair, rows, workers, folder)
    except ImportError as error:
        pipe.send(f"not run: {str(error).splitlines()[0]}")
        return
    pipe.send("ready")
    while pipe.recv():
        started, faults = cpu_seconds(), resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        epoch()
        pipe.send((cpu_seconds() - started, resource.getrusage(resource.RUSAGE_SELF).ru_minflt - faults))


class Arm:
    """An arm in its process."""

    def __init__(self, name: str, pair: Pair, rows: Samples, workers: int, folder: Path) -> None:
        self.name = name
        context = multiprocessing.get_context("spawn")
        self._pipe, other = context.Pipe()
        self._process = context.Process(target=serve, args=(other, name, pair, rows, workers, folder))
        self._process.start()
        other.close()
        self.state: str = self._pipe.recv()

    def epoch(self) -> tuple[float, int]:
        """CPU seconds and page faults of an epoch."""
        self._pipe.send(True)
        found: tuple[float, int] = self._pipe.recv()
        return found

    def close(self) -> None:
        with contextlib.suppress(BrokenPipeError):  # an arm that has ended
            self._pipe.send(False)
        self._process.join()


def measure(pair: Pair, rows: Samples, rounds: int, workers: int) -> dict[str, Any]:
    """CPU microseconds per image and page faults per step of every arm, one value a round."""
    steps = len(rows) // BATCH
    times: dict[str, list[float]] = {}
    faults: dict[str, list[int]] = {}
    with tempfile.TemporaryDirectory() as scratch:
        arms: list[Arm] = []
        try:
            for name in ARMS:
                arms.append(Arm(name, pair, rows, workers, Path(tempfile.mkdtemp(dir=scratch))))
            ready = [arm for arm in arms if arm.state == "ready"]
            for number in range(rounds + 1):
                for arm in random.sample(ready, len(ready)):
                    seconds, faulted = arm.epoch()
                    if number:
                        times.setdefault(arm.name, []).append(1e6 * seconds / (steps * BATCH))
                        faults.setdefault(arm.name, []).append(faulted // steps)
        finally:
            for arm in arms:
                arm.close()
    absent = {arm.name: arm.state for arm in arms if arm.state != "ready"}
    return {"cpu_us_per_image": dict(sorted(times.items())), "page_faults_per_step": faults, **absent}


def show(pair: Pair, found: dict[str, Any]) -> None:
    medians = {name: statistics.median(values) for name, values in found["cpu_us_per_image"].items()}
    print(f"\n{pair[0]} -> {pair[1]}, batch {BATCH}, one thread")
    print("  images per CPU second, times the plain loop, cost of a step over the student alone, page faults in a step")
    for name, value in sorted(medians.items(), key=lambda item: -item[1]):
        loop, alone = medians["plain loop"] / value, value / medians["student alone"]
        faults = statistics.median(found["page_faults_per_step"][name])
        print(f"  {name:<22} {1e6 / value:8.0f}   {loop:5.2f}x   {alone:5.2f}   {faults:8.0f}")
    if "torchdistill" in found:
        print(f"  torchdistill: {found['torchdistill']}")


def main() -> None:
    """Measure both pairs, print a table, and write JSON with the environment."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parquet", type=Path, help="folder with train.parquet: img, label")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--images", type=int, default=640)
    parser.add_argument("--workers", type=int, default=1, help="DataLoader workers of the loops of others")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    random.seed(0)
    rows = samples(options.parquet, options.images // BATCH * BATCH)
    document: dict[str, Any] = {
        "batch": BATCH,
        "rounds": options.rounds,
        "images": len(rows),
        "threads": 1,
        "workers": options.workers,
        "cpu_time": "process and its DataLoader workers, user + system",
        "precision": our_loop.precision_on(CPU),
        "environment": environment(("torch", "torchvision", "torchdistill")),
        "pairs": [],
    }
    for pair in PAIRS:
        found = measure(pair, rows, options.rounds, options.workers)
        show(pair, found)
        document["pairs"].append({"teacher": pair[0], "student": pair[1], **found})
    if options.json is not None:
        options.json.write_text(json.dumps(document, indent=1) + "\n")


if __name__ == "__main__":
    main()
