"""Training steps with memory that malloc keeps, as edgekd sets it, against glibc's own ways.

    python benchmarks/kept_memory.py [--models resnet20 mobilenetv2] [--rounds 7] [--batch 64] [--json FILE]

One interleaved run of fresh processes: every round takes each arm once, in another order, for each network as it is and
for the same quantized to 8 bits. CPU time of a step, one thread, float32, channels last; the ratio of the arms' medians
in a round, and over the rounds its median with an interval by bootstrap. Page faults are those of each process's last
step: without the call they are thousands in some processes and none in others, as malloc happens to lay its blocks.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import resource
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import torch
from scipy.stats import bootstrap  # type: ignore[import-untyped]
from torch.nn.functional import cross_entropy

from edgekd.bench.machine import environment
from edgekd.files import write_atomic
from edgekd.models.resolve import build
from edgekd.quantize.quantizer import prepare
from edgekd.quantize.settings import QuantizationSettings
from edgekd.train.processor import keep_memory

OUT = Path(__file__).parent / "results" / "kept_memory.json"
ARMS = ("glibc", "kept")


def child(options: argparse.Namespace) -> None:
    """Steps of one network in this process; prints what was measured."""
    torch.manual_seed(0)
    torch.set_num_threads(1)
    if options.child == "kept":
        keep_memory()
    x = torch.randn(options.batch, 3, 32, 32).contiguous(memory_format=torch.channels_last)
    y = torch.randint(0, 10, (options.batch,))
    network: Any = build(options.models[0], {"num_classes": 10}, Path())
    if options.quantized:
        network = prepare(network.eval(), (x,), QuantizationSettings())
        network(x)
        for fake_quant in network.fake_quants():
            fake_quant.set_range("minmax")
    network.to(memory_format=torch.channels_last)
    optimizer = torch.optim.SGD(network.parameters(), lr=1e-5, momentum=0.9)
    times: list[float] = []
    until, faults = time.monotonic() + options.seconds, 0
    while time.monotonic() < until or len(times) < 5:
        before, start = resource.getrusage(resource.RUSAGE_SELF).ru_minflt, time.process_time()
        optimizer.zero_grad()
        cross_entropy(network(x), y).backward()
        optimizer.step()
        times.append(time.process_time() - start)
        faults = resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    print(json.dumps({"step_s": statistics.median(times[2:]), "faults": faults, "peak_kb": peak}))


def measure(options: argparse.Namespace, model: str, *, quantized: bool) -> dict[str, Any]:
    """Rounds of both arms; images per second of CPU time, page faults of a step, peak memory, and the ratio."""
    found: dict[str, list[dict[str, float]]] = {arm: [] for arm in ARMS}
    order, random_ = list(ARMS), random.Random(0)
    for _ in range(options.rounds):
        random_.shuffle(order)
        for arm in order:
            command = [sys.executable, __file__, "--child", arm, "--models", model, "--batch", str(options.batch)]
            command += ["--seconds", str(options.seconds), *(["--quantized"] if quantized else [])]
            ended = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
            found[arm].append(json.loads(ended.stdout.splitlines()[-1]))
    row: dict[str, Any] = {}
    for arm, runs in found.items():
        row[arm] = {
            "images_per_s": round(options.batch / statistics.median(run["step_s"] for run in runs), 1),
            "faults_per_step": int(statistics.median(run["faults"] for run in runs)),
            "peak_mb": round(statistics.median(run["peak_kb"] for run in runs) / 1024),
        }
    ratios = np.array([a["step_s"] / b["step_s"] for a, b in zip(found["glibc"], found["kept"], strict=True)])
    ends = bootstrap((ratios,), np.median, method="percentile", random_state=np.random.default_rng(0))
    row["faster"] = round(float(np.median(ratios)), 3)
    row["ci95"] = [round(float(end), 3) for end in ends.confidence_interval]
    return row


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=["resnet20", "mobilenetv2"])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--seconds", type=float, default=4.0)
    parser.add_argument("--quantized", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--child", choices=ARMS, help=argparse.SUPPRESS)
    parser.add_argument("--json", type=Path, default=OUT)
    options = parser.parse_args()
    if options.child:
        child(options)
        return
    document: dict[str, Any] = {"batch": options.batch, "rounds": options.rounds, "networks": {}}
    for model in options.models:
        for quantized in (False, True):
            name = f"{model} in 8 bits" if quantized else model
            document["networks"][name] = measure(options, model, quantized=quantized)
            print(name, json.dumps(document["networks"][name]), flush=True)
            document["environment"] = environment(("torch",))
            write_atomic(options.json, json.dumps(document, indent=1) + "\n")


if __name__ == "__main__":
    main()
