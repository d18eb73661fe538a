"""Images per second of one process and of several on one machine, and what averaging the gradients costs.

    python benchmarks/processes.py [--processes 2] [--student resnet8x4] [--rounds 7] [--images 512] [--json FILE]

One interleaved run: every round takes each arm once, in another order: one process alone (the others wait), all
processes, and all processes without the averaging, which differs from the one before by nothing but the collective.
Wall time, because waiting for the others is what is measured; medians. Batch 64 over all processes, one thread each.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import statistics
import subprocess
import sys
import time
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch
from torch import nn

from edgekd.bench.machine import environment
from edgekd.data.settings import AugmentSettings
from edgekd.data.table import Normalization, Table
from edgekd.data.views import Views
from edgekd.distill.schemes.offline import supervised
from edgekd.models.resolve import build
from edgekd.tasks import heads_of
from edgekd.train.distributed import Ranks, join
from edgekd.train.precision import choose_precision
from edgekd.train.settings import TrainSettings
from edgekd.train.trainer import Run, train
from edgekd.train.world import Model, Optim, World

CPU = torch.device("cpu")
BATCH = 64
HEADS = heads_of("classification", ("label",))


class Apart(Ranks):
    """Several processes that share the rows, and do not average."""

    def wrap(self, objective: nn.Module, *, unused: bool) -> nn.Module:
        return objective


def epoch(world: World, ranks: Ranks) -> None:
    """One epoch of supervised training of the world's student."""
    views = Views(AugmentSettings(crop=4, flip=True), 0)
    run = Run(0, BATCH, CPU, choose_precision(TrainSettings(), CPU), views, ranks=ranks)
    train(world, supervised("student", HEADS, Optim(lr=0.01), 1, None), run)


def worker(options: argparse.Namespace) -> None:
    """One of the processes; rank 0 prints what was measured."""
    torch.set_num_threads(1)
    ranks = join()
    torch.manual_seed(0)
    network = build(options.student, {}, Path(), {"num_classes": 10, "in_channels": 3, "image_size": 32})
    image = torch.randint(256, (options.images, 3, 32, 32), dtype=torch.uint8)
    table = Table({"image": image}, {"label": torch.arange(options.images) % 10}, torch.arange(options.images))
    world = World({"student": Model(network, ("image",), ("logits",))}, {"train": table}, HEADS)
    world.normalization = {"image": Normalization((0.5,), (0.25,), 1 / 255)}
    arms: dict[str, Ranks] = {
        "one process": Ranks(),
        "all processes": ranks,
        "all, gradients not averaged": Apart(ranks.rank, ranks.count),
    }
    shuffled, times = random.Random(0), {name: [] for name in arms}  # the same order in every process
    for number in range(options.rounds + 1):
        for name in shuffled.sample(list(arms), len(arms)):
            ranks.barrier()
            started = time.perf_counter()
            if arms[name].count > 1 or ranks.first:
                epoch(world, arms[name])
            ranks.barrier()
            if number:  # the first round warms up
                times[name].append(1e6 * (time.perf_counter() - started) / options.images)
    if ranks.first:
        print(json.dumps(times))
    sys.stdout.flush()
    os._exit(0)


def main() -> None:
    """Start the processes, print a table, and write JSON with the environment."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--student", default="resnet8x4")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--images", type=int, default=512)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    if "RANK" in os.environ:
        worker(options)
    command = [sys.executable, "-m", "edgekd.pipeline.torchrun", "--standalone"]
    command += [f"--nproc-per-node={options.processes}", __file__, *sys.argv[1:]]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    times: dict[str, list[float]] = json.loads(done.stdout)
    medians = {name: statistics.median(values) for name, values in times.items()}
    one, cores = medians["one process"], len(os.sched_getaffinity(0))
    print(f"{options.student}, batch {BATCH}, {options.processes} processes on {cores} cores, one thread each")
    for name, value in medians.items():
        print(f"  {name:<30} {1e6 / value:8.0f} images/s  {one / value:5.2f}x")
    averaging = 1 - medians["all, gradients not averaged"] / medians["all processes"]
    print(f"  averaging the gradients takes {averaging:.1%} of a step")
    document = {
        "student": options.student,
        "batch": BATCH,
        "processes": options.processes,
        "cores": cores,
        "images": options.images,
        "environment": environment(("torch",)),
        "wall_us_per_image": times,
    }
    if options.json is not None:
        options.json.write_text(json.dumps(document, indent=1) + "\n")


if __name__ == "__main__":
    main()
