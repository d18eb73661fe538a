"""What the teacher cache costs in accuracy: fewer views of each sample, rounded storage, against a live teacher.

    python benchmarks/views_accuracy.py [--parquet FOLDER] [--images 5000] [--epochs 18] [--seeds 5] [--json FILE]

A ResNet-20, trained once on all views, teaches ResNet-8s that differ in one thing at a time. The arms of a seed share
the student's first weights and the order of the samples, so differences are paired by seed; the intervals are Student's
t. Accuracy is that of the last epoch on the test split.

Storage is compared in float32, in the first three seeds: what a network gives in bf16 fits into f16 without rounding.
Loss curves are compared step by step. Two things say how to read them: a rounded loss is also taken at the weights of
the exact run, which leaves out what training makes of a rounding; and `nudged` is the exact run with one weight moved
to the next float, which shows what training makes of any rounding.

Without --parquet the images are scikit-learn's digits.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch
from scipy import stats  # type: ignore[import-untyped]
from torch import Tensor, nn

from edgekd.bench.machine import environment
from edgekd.data.settings import AugmentSettings, DataSettings, DigitsSettings, LimitSettings, ParquetSettings
from edgekd.data.source import Data, open_data
from edgekd.data.views import Views
from edgekd.distill.knowledge import kd
from edgekd.distill.schemes.offline import supervised
from edgekd.distill.teacher_cache import Head, TeacherCache, open_cache
from edgekd.models.resolve import build
from edgekd.store import Store
from edgekd.tasks import heads_of
from edgekd.train.evaluate import score
from edgekd.train.knowledge import register
from edgekd.train.precision import choose_precision
from edgekd.train.settings import TrainSettings
from edgekd.train.trainer import Run, train
from edgekd.train.world import Model, Move, Optim, Phase, Term, World

TEACHER, STUDENT, TEACHER_EPOCHS = "resnet20", "resnet8", 30
BATCH = 64
CPU = torch.device("cpu")
HEADS = heads_of("classification", ("label",))
OPTIM = Optim("sgd", lr=0.05, warmup=1.0, weight_decay=5e-4)
LIMIT = 1e-2


@dataclass(frozen=True)
class Arm:
    """What one arm does differently."""

    name: str
    views: int | str = 16
    storage: str | None = "f32"
    precision: str = "f32"
    nudged: bool = False


AUTO = choose_precision(TrainSettings(), CPU)
VIEWS_ARMS = (
    Arm("views 1", 1, precision=AUTO),
    Arm("views 4", 4, precision=AUTO),
    Arm("views 16", precision=AUTO),
    Arm("views all", "all", storage=None, precision=AUTO),
)
STORAGE_ARMS = (
    Arm("stored f32"),
    Arm("stored f16", storage="f16"),
    Arm("live", storage=None),
    Arm("nudged", nudged=True),
)
STORAGE_SEEDS = 3


@dataclass(frozen=True)
class Result:
    """What a run gave: losses of all steps, the same with the teacher rounded to f16, the student's last weights."""

    accuracy: float
    losses: Tensor
    rounded: Tensor
    weights: Tensor
    teacher_samples: int
    cpu_s: float


_seen: list[tuple[Tensor, Tensor]] = []


def distillation(student: Tensor, teacher: Tensor, *, target: Tensor) -> Tensor:
    """.1 of the cross-entropy and .9 of Hinton's loss with T = 4, as the default recipe has it; remembers each step."""
    hard = nn.functional.cross_entropy(student, target)
    loss = 0.1 * hard + 0.9 * kd(student, teacher)
    with torch.no_grad():
        _seen.append((loss.detach(), 0.1 * hard + 0.9 * kd(student, teacher.half().float())))
    return loss


def network(data: Data, name: str, seed: int) -> Model:
    torch.manual_seed(seed)
    image = data.load("train").inputs["image"]
    facts = {"num_classes": data.classes()["label"].count, "in_channels": image.shape[1], "image_size": image.shape[-1]}
    return Model(build(name, {}, Path(), facts), ("image",), ("logits",))


def run_of(seed: int, views: Views, precision: str, cache: TeacherCache | None = None) -> Run:
    return Run(seed, BATCH, CPU, precision, views, caches={"teacher": cache} if cache is not None else {})


def views_of(data: Data, count: int | str, seed: int) -> Views:
    """Crops and flips as they are usual for the data: digits are smaller, and a mirrored one is another."""
    digits = data.settings.source == "digits"
    return Views(AugmentSettings(crop=1 if digits else 4, flip=not digits, views=count), seed)  # type: ignore[arg-type]


def world_of(data: Data) -> World:
    return World({}, {"train": data.load("train")}, HEADS, data.normalization())


def test_accuracy(world: World, data: Data, name: str) -> float:
    return score(world, name, data.load("test"), CPU)["accuracy"].value


def trained_teacher(data: Data, epochs: int) -> tuple[Model, float]:
    world = world_of(data)
    world.models["teacher"] = network(data, TEACHER, 0)
    train(world, supervised("teacher", HEADS, OPTIM, epochs, None), run_of(0, views_of(data, "all", 0), AUTO))
    return world.models["teacher"], test_accuracy(world, data, "teacher")


def cache_of(arm: Arm, data: Data, views: Views, store: Store) -> TeacherCache | None:
    if arm.storage is None:
        return None
    heads = [Head("logits", (data.classes()["label"].count,))]
    sizes: dict[str, Any] = {"ids": data.load("train").ids, "views": views.per_sample, "max_bytes": 4 * 10**9}
    cache, words = open_cache(store, {"precision": arm.precision}, heads, dtype=arm.storage, **sizes)
    if cache is None:
        raise SystemExit(words)
    return cache


def distil(arm: Arm, seed: int, data: Data, teacher: Model, epochs: int, store: Store) -> Result:
    """Train one student. Caches are shared by the seeds, since a sample's own views are the same for every seed."""
    _seen.clear()
    asked, started = [0], time.process_time()
    world, views = world_of(data), views_of(data, arm.views, seed)
    world.models |= {"teacher": teacher, "student": network(data, STUDENT, 1000 + seed)}
    if arm.nudged:
        with torch.no_grad():
            first = next(world.models["student"].network.parameters()).view(-1)
            first[0] = torch.nextafter(first[0], torch.tensor(torch.inf))
    term = Term("recorded distillation", "student[logits]", "teacher[logits]", also={"target": "label"})
    count = teacher.network.register_forward_hook(lambda _, args, __: asked.append(len(args[0])))
    try:
        phase = Phase("distil", (Move({"student": OPTIM}, (term,)),), epochs)
        train(world, [phase], run_of(seed, views, arm.precision, cache_of(arm, data, views, store)))
    finally:
        count.remove()
    weights = torch.cat([value.flatten().float() for value in world.models["student"].network.state_dict().values()])
    losses, rounded = (torch.stack(column) for column in zip(*_seen, strict=True))
    taken_s = time.process_time() - started
    return Result(test_accuracy(world, data, "student"), losses, rounded, weights, sum(asked), taken_s)


def interval(values: Sequence[float]) -> dict[str, Any]:
    """Mean with Student's 95% interval."""
    mean, n = statistics.fmean(values), len(values)
    half = float(stats.t.ppf(0.975, n - 1)) * statistics.stdev(values) / n**0.5 if n > 1 else None
    return {"mean": mean, "ci95": None if half is None else [mean - half, mean + half], "n": n}


def apart(losses: Tensor, reference: Tensor) -> dict[str, Any]:
    """How far two loss curves are from each other, step by step, relative to the second."""
    relative = (losses - reference).abs() / reference.abs()
    over = torch.nonzero(relative > LIMIT).flatten()
    return {
        "max": float(relative.max()),
        "median": float(relative.median()),
        "steps": len(relative),
        "steps_over_limit": len(over),
        "first_step_over_limit": int(over[0]) if len(over) else None,
        "mean_loss": [float(losses.mean()), float(reference.mean())],
    }


def accuracies(results: dict[str, list[Result]], reference: str) -> dict[str, Any]:
    """Accuracy of each arm, and its difference to one of them, paired by seed."""
    return {
        name: {
            "accuracy": interval([r.accuracy for r in found]),
            "by_seed": [r.accuracy for r in found],
            "difference": interval([r.accuracy - e.accuracy for r, e in zip(found, results[reference], strict=True)]),
            "teacher_samples": [r.teacher_samples for r in found],
            "cpu_s": [round(r.cpu_s, 1) for r in found],
        }
        for name, found in results.items()
    }


def curves(results: dict[str, list[Result]]) -> dict[str, Any]:
    """What storage does to the losses of a run."""
    exact = results["stored f32"]
    pairs = {name: list(zip(found, exact, strict=True)) for name, found in results.items()}
    return {
        "f32_equals_live_bit_for_bit": [
            torch.equal(a.losses, b.losses) and torch.equal(a.weights, b.weights) for a, b in pairs["live"]
        ],
        "f16_at_the_same_weights": [apart(r.rounded, r.losses) for r in exact],
        "f16_as_trained": [apart(a.losses, b.losses) for a, b in pairs["stored f16"]],
        "nudged_as_trained": [apart(a.losses, b.losses) for a, b in pairs["nudged"]],
    }


def show(document: dict[str, Any]) -> None:
    for group, reference in (("views", "views all"), ("storage", "stored f32")):
        for name, row in document[group].items():
            mean, other = row["accuracy"], row["difference"]
            within = "" if other["ci95"] is None else " [{:+.2f}, {:+.2f}]".format(*(100 * x for x in other["ci95"]))
            figures = f"{100 * mean['mean']:6.2f}%   to {reference} {100 * other['mean']:+.2f}{within} points"
            print(f"{name:<12} {figures}, {mean['n']} seeds")
    loss = document["loss_curves"]
    print("f32 equals live bit for bit:", loss["f32_equals_live_bit_for_bit"])
    for name in ("f16_at_the_same_weights", "f16_as_trained", "nudged_as_trained"):
        worst = max(row["max"] for row in loss[name])
        first = [row["first_step_over_limit"] for row in loss[name]]
        print(f"{name}: largest relative difference of a step {worst:.2e}; first step over {LIMIT}: {first}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parquet", type=Path, help="folder with train.parquet and test.parquet: img, label")
    parser.add_argument("--images", type=int, default=5000)
    parser.add_argument("--epochs", type=int, default=18)
    parser.add_argument("--teacher-epochs", type=int, default=TEACHER_EPOCHS)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(1)
    register("recorded distillation", distillation)
    parquet = ParquetSettings(path=options.parquet, image="img", label="label") if options.parquet else None
    settings = DataSettings(
        parquet=parquet,
        digits=None if parquet else DigitsSettings(),
        validation=0.0,
        limit=LimitSettings(train=options.images),
    )
    data = open_data(settings, base=Path.cwd(), seed=0)
    teacher, reached = trained_teacher(data, options.teacher_epochs)
    print(f"teacher: {reached:.4f} on the test split", flush=True)
    views: dict[str, list[Result]] = {arm.name: [] for arm in VIEWS_ARMS}
    storage: dict[str, list[Result]] = {arm.name: [] for arm in STORAGE_ARMS}
    with tempfile.TemporaryDirectory() as folder:
        for seed in range(options.seeds):
            for arm in VIEWS_ARMS + (STORAGE_ARMS if seed < STORAGE_SEEDS else ()):
                found = distil(arm, seed, data, teacher, options.epochs, Store(Path(folder)))
                (views if arm in VIEWS_ARMS else storage)[arm.name].append(found)
                print(f"seed {seed}  {arm.name:<12} {found.accuracy:.4f}  {found.cpu_s:.0f} s", flush=True)
    document = {
        "data": settings.source,
        "images": len(data.load("train")),
        "test_images": len(data.load("test")),
        "teacher": {"model": TEACHER, "epochs": options.teacher_epochs, "views": "all", "accuracy": reached},
        "student": {"model": STUDENT, "epochs": options.epochs, "batch": BATCH, "lr": OPTIM.lr},
        "precision": {"views": AUTO, "storage": "f32"},
        "environment": environment(("torch",)),
        "views": accuracies(views, "views all"),
        "storage": accuracies(storage, "stored f32"),
        "f16_is_exact_in_views_arms": all(torch.equal(r.losses, r.rounded) for r in views["views 16"]),
        "limit": LIMIT,
        "loss_curves": curves(storage),
    }
    show(document)
    if options.json is not None:
        options.json.write_text(json.dumps(document, indent=1) + "\n")


if __name__ == "__main__":
    main()
