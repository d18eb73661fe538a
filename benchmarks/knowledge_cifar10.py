"""What each knowledge and scheme gives over cross-entropy alone on CIFAR-10, and what a step of it costs.

    python benchmarks/knowledge_cifar10.py --parquet FOLDER [--size small|large|trial] [--rows NAME..] [--seeds 3]
        [--workers 2] [--device cpu] [--json FILE]

One teacher is trained once. All rows of a seed share the student's first weights and the order and views of the
samples, so a gain is the paired mean over the seeds with its 95% t-interval, in points of accuracy on the test split.
The intervals are over seeds (first weights, order, views), not over other images or another teacher. A row helps or
hurts where its interval leaves out 0; else it is undecided.

Knowledge has the weights of METHODS.md beside cross-entropy (1, or .1 with kd, logit_std and their like); nothing was
tuned for this table. Ramps take the share of the run that they take in the papers' 240 epochs. `last` is the last
epoch, `chosen` the epoch that was best on the validation split. Schemes that train the student twice (self,
collaborative) are also compared with cross-entropy over twice the epochs, and assistant with kd straight from the
teacher; `peers` is the mean of all networks that learned together, against the same networks alone.

A step's cost is CPU time (on a GPU wall time) of the phase in which the student learns from others, over that of
cross-entropy alone: medians of three epochs by turns, with what it takes to begin one. `whole` is all training of a row
over that of cross-entropy.

small takes about 75 minutes on two cores: 10,000 images, 6 epochs, ResNet-20 to ResNet-8. large is for a GPU: all
images, 100 epochs, ResNet-56 to ResNet-20, every knowledge. Each (row, seed) is written when it is done and not run
again.
"""

from __future__ import annotations

import argparse
import copy
import dataclasses
import json
import multiprocessing
import os
import statistics
import time
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch
from cifar_rows import ROWS, SIZES, Bench, Row, with_chosen
from safetensors.torch import load_file, save_file
from scipy import stats  # type: ignore[import-untyped]

from edgekd.bench.machine import environment
from edgekd.files import write_atomic
from edgekd.models.settings import ModelSettings
from edgekd.train.evaluate import score
from edgekd.train.precision import choose_precision
from edgekd.train.settings import TrainSettings
from edgekd.train.trainer import train
from edgekd.train.world import Phase, World

PACKAGES = ("torch", "numpy")
OUT = Path(__file__).parent / "results" / "knowledge_cifar10.json"
BASE, LONG = "cross_entropy", "cross_entropy, epochs x2"
COST_ROUNDS = 3


def clock(device: torch.device) -> float:
    """CPU time of the process; on a GPU wall time when it is idle."""
    if device.type != "cuda":
        return time.process_time()
    torch.cuda.synchronize(device)
    return time.perf_counter()


def test_points(bench: Bench, world: World, name: str) -> float:
    return 100 * score(world, name, bench.data.load("test"), bench.device)["accuracy"].value


def teacher_of(bench: Bench, path: Path) -> dict[str, Any]:
    """Train the teacher, or take the one that is there; how good it is."""
    world = bench.world()
    size = bench.size
    world.models["teacher"] = bench.model(ModelSettings(model=size.teacher), 0)
    started = clock(bench.device)
    if path.exists():
        world.models["teacher"].network.load_state_dict(load_file(path))
    else:
        recipe = bench.recipe(world, None)
        train(world, [recipe.alone("teacher", "teacher", epochs=size.teacher_epochs)], bench.run(0))
        path.parent.mkdir(parents=True, exist_ok=True)
        save_file({k: v.cpu().contiguous() for k, v in world.models["teacher"].network.state_dict().items()}, path)
    return {"accuracy": test_points(bench, world, "teacher"), "seconds": clock(bench.device) - started}


def outcome(bench: Bench, world: World, phases: Sequence[Phase], seed: int) -> dict[str, Any]:
    """Run phases; accuracies of the student and of those that learned beside it, and the time that training took."""
    started = clock(bench.device)
    train(world, with_chosen(phases), bench.run(seed))
    seconds = clock(bench.device) - started
    peers = [name for name in ("student", "peer_1") if name in world.models]
    found = {name: test_points(bench, world, name) for name in (*peers, "chosen")}
    return {"last": found["student"], "chosen": found["chosen"], "networks": found, "seconds": seconds}


def empty(phase: Phase) -> Phase:
    """A phase of that place that does nothing: its number seeds those after it."""
    return Phase(phase.name)


def alone_and_together(bench: Bench, names: Sequence[str], seed: int) -> dict[str, dict[str, Any]]:
    """Rows that differ in their last phase: the phases before it are run once, for all of them."""
    world, phases = bench.cast(ROWS[names[0]], seed)
    started = clock(bench.device)
    train(world, phases[:-1], bench.run(seed))
    before = clock(bench.device) - started
    alone = {name: test_points(bench, world, name) for name in ("student", "peer_1")}
    found = {}
    for name in names:
        _, own = bench.cast(ROWS[name], seed)
        changed = [*map(empty, own[:-1]), own[-1]]
        found[name] = outcome(bench, copy.deepcopy(world), changed, seed)
        found[name] |= {"alone": alone, "seconds": found[name]["seconds"] + before}
    return found


def friendly_teacher(bench: Bench, world: World) -> dict[str, float]:
    """What becomes of the teacher in student_friendly."""
    return {name: test_points(bench, world, name) for name in ("friendly",) if name in world.models}


def costs(bench: Bench, row: Row) -> dict[str, float]:
    """Seconds of a step of the row's last phase and of cross-entropy alone: epochs of both by turns."""
    steps = -(-len(bench.data.load("train")) // bench.size.batch)
    seconds: dict[str, list[float]] = {"row": [], "base": []}
    for _ in range(COST_ROUNDS):
        for name, measured in (("row", row), ("base", ROWS[BASE])):
            world, phases = bench.cast(measured, 0)
            timed = [dataclasses.replace(phase, epochs=0, watch=None) for phase in phases]
            last = max(n for n, phase in enumerate(phases) if phase.epochs)
            timed[last] = dataclasses.replace(timed[last], epochs=1)
            started = clock(bench.device)
            train(world, timed, bench.run(0))
            seconds[name].append((clock(bench.device) - started) / steps)
    ratios = [a / b for a, b in zip(seconds["row"], seconds["base"], strict=True)]
    return {
        "step_ms": round(1e3 * statistics.median(seconds["row"]), 3),
        "base_step_ms": round(1e3 * statistics.median(seconds["base"]), 3),
        "ratio": round(statistics.median(ratios), 3),
        "lowest": round(min(ratios), 3),
        "highest": round(max(ratios), 3),
    }


_worker: list[Bench] = []


def _start(parquet: Path, size: str, device: str, precision: str, teacher: Path) -> None:
    """Make a worker ready: its data is decoded once."""
    torch.set_num_threads(1)
    _worker.append(Bench(parquet, SIZES[size], torch.device(device), precision, load_file(teacher)))


def _work(kind: str, names: tuple[str, ...], seed: int) -> tuple[str, int, dict[str, dict[str, Any]]]:
    bench = _worker[0]
    if kind == "cost":
        return kind, seed, {names[0]: costs(bench, ROWS[names[0]])}
    if ROWS[names[0]].settings is not None and len(names) > 1:
        return kind, seed, alone_and_together(bench, names, seed)
    world, phases = bench.cast(ROWS[names[0]], seed)
    found = outcome(bench, world, phases, seed)
    return kind, seed, {names[0]: found | friendly_teacher(bench, world)}


def gain(values: Sequence[float]) -> dict[str, Any]:
    """Mean of paired differences with its t-interval, and the verdict."""
    mean, n = statistics.fmean(values), len(values)
    half = float(stats.t.ppf(0.975, n - 1)) * statistics.stdev(values) / n**0.5 if n > 1 else float("inf")
    verdict = "helps" if mean - half > 0 else "hurts" if mean + half < 0 else "undecided"
    return {"mean": round(mean, 2), "ci95": [round(mean - half, 2), round(mean + half, 2)], "verdict": verdict}


def against(runs: Mapping[str, Any], name: str, over: str, key: str = "last") -> dict[str, Any] | None:
    """The gain of one row over another, by the seeds that both have."""
    seeds = sorted(runs.get(name, {}).keys() & runs.get(over, {}).keys())
    return gain([runs[name][seed][key] - runs[over][seed][key] for seed in seeds]) if len(seeds) > 1 else None


def with_peers(runs: Mapping[str, Mapping[str, Any]], name: str) -> dict[str, Any] | None:
    """Peers together against the same peers alone (those of collaborative), by their means."""
    alone = runs.get("collaborative", {})
    own = runs.get(name, {})
    seeds = sorted(s for s in own.keys() & alone.keys() if "peer_1" in own[s]["networks"])
    both = ("student", "peer_1")
    means = [statistics.fmean(own[s]["networks"][m] - alone[s]["alone"][m] for m in both) for s in seeds]
    return gain(means) if len(means) > 1 else None


def table(document: Mapping[str, Any]) -> dict[str, Any]:
    """The lines of the table, from all runs."""
    runs, lines = document["runs"], {}
    for name, row in ROWS.items():
        if name not in runs or name == BASE:
            continue
        gains = {"last": against(runs, name, BASE), "chosen": against(runs, name, BASE, "chosen")}
        scheme = (row.settings or {}).get("scheme")
        if scheme in ("self", "collaborative"):
            gains["over twice the epochs"] = against(runs, name, LONG)
        if scheme == "assistant":
            gains["over kd"] = against(runs, name, "kd")
        if name.startswith("collaborative without"):
            gains["over all terms"] = against(runs, name, "collaborative")
        if scheme in ("online", "collaborative"):
            gains["peers over peers alone"] = with_peers(runs, name)
        seeds = sorted(runs[name].keys() & runs.get(BASE, {}).keys())
        whole = [runs[name][s]["seconds"] / runs[BASE][s]["seconds"] for s in seeds]
        lines[name] = {
            "family": row.family,
            "accuracy": round(statistics.fmean(run["last"] for run in runs[name].values()), 2),
            "gains": {key: found for key, found in gains.items() if found is not None},
            "step": document["costs"].get(name),
            "whole": round(statistics.median(whole), 2) if whole else None,
        }
    return lines


def words(lines: Mapping[str, Any]) -> Iterable[str]:
    for name, line in lines.items():
        step = f"step x{line['step']['ratio']:.2f}" if line["step"] else ""
        yield f"{name:<30} {line['family']:<13} {line['accuracy']:6.2f}  {step}  whole x{line['whole']}"
        for key, found in line["gains"].items():
            low, high = found["ci95"]
            yield f"    {key}: {found['mean']:+.2f} [{low:+.2f}, {high:+.2f}]  {found['verdict']}"


def jobs_of(document: Mapping[str, Any], names: Sequence[str], seeds: int) -> list[tuple[str, tuple[str, ...], int]]:
    """What is still to be run, the longest first; rows that share phases in one job."""
    jobs: list[tuple[str, tuple[str, ...], int]] = []
    for seed in range(seeds):
        left = [name for name in names if str(seed) not in document["runs"].get(name, {})]
        shared = tuple(n for n in left if ROWS[n].shares == "collaborative" or n == "collaborative")
        jobs += [("run", shared, seed)] if len(shared) > 1 else []
        jobs += [("run", (name,), seed) for name in left if len(shared) < 2 or name not in shared]
    told = [name for name in names if name != BASE and ROWS[name].longer == 1 and ROWS[name].shares is None]
    costly = [name for name in told if name not in document["costs"]]
    return sorted(jobs, key=lambda job: (-len(job[1]), job[2])) + [("cost", (name,), 0) for name in costly]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parquet", type=Path, required=True)
    parser.add_argument("--size", choices=list(SIZES), default="small")
    parser.add_argument("--rows", nargs="+", choices=list(ROWS))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--work", type=Path, default=Path("runs/knowledge_cifar10"), help="keeps the trained teacher")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(1)
    device = torch.device(options.device)
    precision = choose_precision(TrainSettings(), device)
    path = options.json or OUT.with_name(f"{OUT.stem}{'' if options.size == 'small' else f'_{options.size}'}.json")
    names = [n for n in options.rows or ROWS if options.size in ROWS[n].sizes]

    document: dict[str, Any] = {"runs": {}, "costs": {}, "wall_s": 0.0}
    document |= json.loads(path.read_text()) if path.exists() else {}
    started = time.monotonic()
    teacher = options.work / f"teacher_{options.size}.safetensors"
    bench = Bench(options.parquet, SIZES[options.size], device, precision)
    found = teacher_of(bench, teacher)
    print(f"teacher {SIZES[options.size].teacher}: {found['accuracy']:.2f}", flush=True)
    document["teacher"] = {"seconds": found["seconds"], **document.get("teacher", {}), "accuracy": found["accuracy"]}
    about = {"size": dataclasses.asdict(SIZES[options.size]), "precision": precision, "device": options.device}
    if document.get("about", about) != about:
        parser.error(f"{path} was made with other settings: {document['about']}")

    context = multiprocessing.get_context("spawn" if device.type == "cuda" else "forkserver")
    facts = (options.parquet, options.size, options.device, precision, teacher)
    with ProcessPoolExecutor(options.workers, context, _start, facts) as pool:
        waiting = [pool.submit(_work, *job) for job in jobs_of(document, names, options.seeds)]
        before = float(document["wall_s"])
        for done in as_completed(waiting):
            kind, seed, rows = done.result()
            for name, row in rows.items():
                if kind == "cost":
                    document["costs"][name] = row
                else:
                    document["runs"].setdefault(name, {})[str(seed)] = row
            document |= {"about": about, "wall_s": round(before + time.monotonic() - started, 1)}
            document |= {"environment": environment(PACKAGES), "table": table(document)}
            path.parent.mkdir(parents=True, exist_ok=True)
            write_atomic(path, json.dumps(document, indent=1) + "\n")
            print(f"{time.monotonic() - started:6.0f} s  {kind} {', '.join(rows)} {seed}", flush=True)
    print("\n".join(words(table(document))))


if __name__ == "__main__":
    main()
