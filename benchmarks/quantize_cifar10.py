"""What quantization costs and brings on CIFAR-10: our arms beside NNCF's and ONNX Runtime's own calibration.

    python benchmarks/quantize_cifar10.py train  --parquet FOLDER [--networks NAME..]
    python benchmarks/quantize_cifar10.py arms   --parquet FOLDER [--networks NAME..] [--seeds 3] [--workers 2]
    python benchmarks/quantize_cifar10.py others --parquet FOLDER [--networks NAME..] [--seeds 3]
    python benchmarks/quantize_cifar10.py speed  --parquet FOLDER
    python benchmarks/quantize_cifar10.py table

`train` makes the float networks (about two core-hours for resnet20, 40 core-minutes for mobilenetv2, which has half the
channels); the last round of resnet20 learns of a stronger network, given by `--teacher shopnet:ShopNet --teacher-folder
FOLDER --teacher-weights FILE` (1.65 M parameters, 89.4 % of the test images). Their weights are in benchmarks/networks,
so the rest runs from them. An arm is a run of `edgekd run` with a pipeline file that stands in the folder of work:
calibration alone, with targets, with self-distillation (KL alone, no labels), and the float network trained as much
longer, one epoch of 20,000 training images each; `longer` is three epochs of all 45,000. A seed sets the order, the
views, and which 256 images calibrate. Settings of training were chosen on the validation split. Weights of 8 bits have
7 where inputs may be negative (`overflow_fix: signed_inputs`); the default of pipelines with OpenVINO is 7 in all.

Accuracy is that of the build in ONNX Runtime, which sums exactly on every processor, on the 10,000 test images; for
four bits of the same simulated in eight. OpenVINO's builds are scored beside it (`--engines`). Where they are not what
was trained the run ends: with four bits it may round otherwise where it adds.

`others` gives the same 256 images to NNCF (`pip install -e '.[compare]'`) and to ONNX Runtime's quantize_static, each
with all its ways to find ranges, on the same float ONNX file. `speed` is the bench stage: INT8 against float32 on one
core, interleaved, five launches of four seconds, at batch 1 and 16.

Each arm, network and seed is written to the results when it is done and not run again.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import statistics
import subprocess
import sys
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

os.environ.setdefault("OMP_NUM_THREADS", "1")

from other_calibration import WAYS, accuracy_of
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from scipy import stats  # type: ignore[import-untyped]

from edgekd.bench.machine import environment
from edgekd.export.metadata import read_metadata
from edgekd.files import write_atomic

HERE = Path(__file__).parent
OUT = HERE / "results" / "quantize_cifar10.json"


@dataclass(frozen=True)
class Round:
    """One rise and fall of the learning rate, alone or with a teacher and kd's defaults."""

    epochs: int
    batch: int = 128
    validation: float = 0.1
    taught: Literal["", "by itself", "by the teacher"] = ""
    lr: float | None = None


NETWORKS = {
    "resnet20": (
        Round(30),
        Round(20),
        Round(18, 64, 0.02, taught="by itself"),
        Round(14, 128, 0.02, taught="by the teacher", lr=0.03),
    ),
    "mobilenetv2": (Round(20),),
}
"""Networks and how they are trained."""
HALF_FROM = 1024
"""Weights of at least so many values are stored in float16, so that a network stays below 2 MB."""
LONGER = {"epochs": 1, "batch": 64, "lr": 5e-4}
ALONE: dict[str, Any] = {"task_weight": 1.0}
TAUGHT: dict[str, Any] = {"self_distillation": True}
ROOM = {"overflow_fix": "signed_inputs"}
LEARNING: dict[int, dict[str, Any]] = {8: {"lr": 1e-4}, 4: {"optimizer": "adam", "lr": 3e-4, "weight_decay": 0.0}}
"""How networks of so many bits learn, chosen on the validation split."""
FLOAT = "float, as much longer"
IMAGES = 20_000
LOSS = 0.5  # points; of less nobody can say what share was won back
SPEED = ("resnet20", "resnet8x4")
ENGINES = ("openvino", "onnxruntime")


def arms() -> dict[str, dict[str, Any]]:
    """The stage of each arm: quantize, but for the float network that is trained longer."""
    found: dict[str, dict[str, Any]] = {FLOAT: {"teacher": LONGER}}
    for bits, learning in LEARNING.items():
        ways: dict[str, dict[str, Any]] = {
            "calibration": {},
            "targets": {**ALONE, "epochs": 1, **learning},
            "self-distillation": {**TAUGHT, "epochs": 1, **learning},
        }
        for name, way in ways.items():
            found[f"W{bits}A{bits} {name}"] = {"quantize": {"weights": bits, "activations": bits, **ROOM, **way}}
    longer = {"weights": 4, "activations": 4, **ROOM, **TAUGHT, "epochs": 3, **LEARNING[4]}
    found["W4A4 self-distillation, longer"] = {"quantize": longer, "images": None}
    return found


def data_of(args: argparse.Namespace, **more: Any) -> dict[str, Any]:
    if args.trial:
        more["limit"] = {"train": 512, "validation": 128, "test": 512}
    return {
        "parquet": {"path": str(args.parquet.resolve()), "image": "img", "label": "label"},
        "validation": 0.1,
        "augment": {"crop": 4, "flip": True, "views": "all"},
        **more,
    }


def run(work: Path, name: str, file: Mapping[str, Any], *more: str) -> dict[str, Any]:
    """`edgekd run` of a pipeline in a process of its own; its report."""
    folder = work / name
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "pipeline.yaml"
    path.write_text(json.dumps({"name": "quantize_cifar10", "task": "classification", **file}, indent=1))
    command = [sys.executable, "-m", "edgekd", "run", str(path), "--out", str(folder), "--store", str(work / "store")]
    ended = subprocess.run([*command, "--quiet", *more], capture_output=True, text=True, check=False)
    if ended.returncode not in (0, 5):
        raise SystemExit(f"{name} ended with {ended.returncode}:\n{ended.stderr}")
    report: dict[str, Any] = json.loads((folder / "report.json").read_text())
    return report


def train(args: argparse.Namespace, document: dict[str, Any]) -> None:
    """Train the float networks and keep their weights."""
    for name in args.networks:
        start: dict[str, Any] = {"model": name}
        for number, part in enumerate(NETWORKS[name]):
            folder = args.work / f"train-{name}-{number}"
            lr = {} if part.lr is None else {"lr": part.lr}
            stages: list[Any] = [{"teacher": {**start, "epochs": part.epochs, **lr}}]
            if part.taught:
                student = {"student": name, "weights": start["weights"], "epochs": part.epochs, **lr}
                stages = [{"teacher": start if part.taught == "by itself" else teacher_of(args)}, {"distill": student}]
            file = {
                "seed": 0,
                "data": data_of(args, validation=part.validation),
                "train": {"batch": part.batch, "threads": 1},
                "stages": [*stages, {"export": {}}, {"evaluate": {}}],
                **({"python_path": [str(args.teacher_folder.resolve())]} if part.taught == "by the teacher" else {}),
            }
            report = run(args.work, folder.name, file, "--nproc", str(args.nproc))
            start["weights"] = str(
                (folder / "artifacts" / f"{'student' if part.taught else 'teacher'}.safetensors").resolve()
            )
        keep(folder, name, report, document)
        save(args, document)


def teacher_of(args: argparse.Namespace) -> dict[str, Any]:
    """The network that teaches a last round, as it was given."""
    return {"model": args.teacher, "weights": str(args.teacher_weights.resolve())}


def keep(folder: Path, name: str, report: Mapping[str, Any], document: dict[str, Any]) -> None:
    """The weights of a run, and what they expect of their inputs."""
    role = "student" if NETWORKS[name][-1].taught else "teacher"
    state = load_file(folder / "artifacts" / f"{role}.safetensors")
    small = {key: value.half() if value.numel() >= HALF_FROM else value for key, value in state.items()}
    given = read_metadata(folder / "artifacts" / f"{role}.f32.onnx")["preprocessing"]["image"]
    (HERE / "networks").mkdir(exist_ok=True)
    normalize = json.dumps({key: given[key] for key in ("mean", "std")})
    save_file(small, weights_of(name), metadata={"preprocessing": normalize})
    (model,) = (model for model in report["models"] if model["role"] == role)
    found = {metric["split"]: round(100 * metric["value"], 2) for metric in model["metrics"]}
    rounds = [dataclasses.asdict(part) for part in NETWORKS[name]]
    document["networks"][name] = {"rounds": rounds, "parameters": model["parameters"], "trained": found}


def weights_of(name: str) -> Path:
    return HERE / "networks" / f"{name}_cifar10.safetensors"


def pipeline(
    args: argparse.Namespace, name: str, seed: int, stages: Sequence[Any], images: int | None = IMAGES, **more: Any
) -> dict[str, Any]:
    """A pipeline over a network as it was trained."""
    with safe_open(weights_of(name), "pt") as file:
        normalize = json.loads(file.metadata()["preprocessing"])
    return {
        "seed": seed,
        "data": data_of(args, normalize=normalize, limit={"train": images, "validation": 2000}),
        "train": {"batch": 64, "threads": 1},
        "stages": [*stages],
        **more,
    }


def one_arm(args: argparse.Namespace, name: str, arm: str, seed: int) -> dict[str, Any]:
    """One arm of one network: accuracy in points of what it gave, in PyTorch and in each engine."""
    stage = dict(arms()[arm])
    images = stage.pop("images", IMAGES)
    given = {"model": name, "weights": str(weights_of(name).resolve())}
    after: list[Any] = [{"export": {}}, {"compile": {}}, {"evaluate": {}}]
    if "teacher" in stage:
        stages: list[Any] = [{"teacher": {**given, **stage["teacher"]}}, {"evaluate": {}}]
        more: dict[str, Any] = {}
    else:
        targets = {key: {"runtime": key, "precision": ["int8"]} for key in args.engines}
        stages, more = [stage, *after], {**given, "targets": targets}
    report = run(
        args.work,
        f"{name}-{arm.replace(' ', '_').replace(',', '')}-{seed}",
        pipeline(args, name, seed, stages, images, **more),
    )
    models = {model["role"]: _test(model) for model in report["models"]}
    builds = {f"{build['runtime']} {build['precision']}": _test(build) for build in report["builds"]}
    learned = sum(s["seconds"] for s in report["stages"] if s["name"] in ("quantize", "teacher"))
    return {"pytorch": models.get("quantized", models.get("teacher")), **builds, "seconds": round(learned, 1)}


def _test(part: Mapping[str, Any]) -> float | None:
    found = [m["value"] for m in part["metrics"] if m["split"] == "test" and m["name"].endswith("accuracy")]
    return round(100 * found[0], 2) if found else None


def run_arms(args: argparse.Namespace, document: dict[str, Any]) -> None:
    """Every arm that is not there yet, several at a time."""
    wanted = [
        (n, a, s) for s in range(args.seeds) for n in args.networks for a in arms() if not args.arms or a in args.arms
    ]
    missing = [(n, a, s) for n, a, s in wanted if str(s) not in document["runs"].get(n, {}).get(a, {})]

    def work(task: tuple[str, str, int]) -> None:
        name, arm, seed = task
        try:
            found = one_arm(args, name, arm, seed)
        except SystemExit as error:
            print(error, flush=True)  # the others go on
            raise
        document["runs"].setdefault(name, {}).setdefault(arm, {})[str(seed)] = found
        save(args, document)
        print(name, arm, seed, found, flush=True)

    with ThreadPoolExecutor(args.workers) as pool:
        for future in [pool.submit(work, task) for task in missing]:
            future.result()


def run_others(args: argparse.Namespace, document: dict[str, Any]) -> None:
    """NNCF's and ONNX Runtime's own calibration of the float ONNX file, with the same images."""
    for name in args.networks:
        stages: list[Any] = [{"export": {}}, {"evaluate": {}}]
        given = {"model": name, "weights": str(weights_of(name).resolve())}
        folder = args.work / f"{name}-float"
        report = run(args.work, f"{name}-float", pipeline(args, name, 0, stages, **given))
        document["networks"].setdefault(name, {})["float"] = _test(report["models"][0])
        (onnx_file,) = (folder / "artifacts").glob("*.f32.onnx")
        for seed in range(args.seeds):
            for way in WAYS:
                runs = document["runs"].setdefault(name, {}).setdefault(f"W8A8 {way}", {})
                if str(seed) in runs:
                    continue
                file = pipeline(args, name, seed, [])
                runs[str(seed)] = accuracy_of(way, onnx_file, file["data"], seed, args.work)
                print(name, way, seed, runs[str(seed)], flush=True)
                save(args, document)


def run_speed(args: argparse.Namespace, document: dict[str, Any]) -> None:
    """INT8 against float32 in each engine by the bench stage, at equal settings."""
    targets = {key: {"runtime": key, "precision": ["f32", "int8"]} for key in ENGINES}
    for name in SPEED:
        for batch in (1, 16):
            stages = [
                {"quantize": {}},
                {"export": {}},
                {"compile": {}},
                {"evaluate": {}},
                {"bench": {"batch": batch, "quick": True, "min_time_s": 4}},
            ]
            file = {
                "seed": 0,
                "data": data_of(args),
                "model": name,  # untrained, if its weights are not here: time does not depend on them
                "stages": stages,
                "targets": targets,
            }
            if weights_of(name).exists():
                file = pipeline(
                    args, name, 0, stages, model=name, weights=str(weights_of(name).resolve()), targets=targets
                )
            report = run(args.work, f"speed-{name}", file)
            rows = {}
            for comparison in report["comparisons"]:
                if "int8" in comparison["a"]:
                    rows[comparison["target"]] = {
                        "speedup": round(1 / comparison["ratio"], 3),
                        "ci95": [round(1 / end, 3) for end in reversed(comparison["ci95"])],
                        "clock": comparison.get("clock"),
                        "verdict": comparison["verdict"],
                    }
            for latency in report["latency"]:
                rows[latency["target"]][f"{latency['precision']}_p50_ms"] = latency["p50_ms"]
            for build in report["builds"]:
                rows[build["target"]].setdefault("chosen", build["precision"] if build["chosen"] else None)
                if build["chosen"]:
                    rows[build["target"]]["chosen"] = build["precision"]
            document["speed"].setdefault(name, {})[str(batch)] = rows
            print(name, batch, json.dumps(rows), flush=True)
            save(args, document)


def against(values: Sequence[float], reference: Sequence[float]) -> dict[str, Any]:
    """Mean difference in points over the seeds, with its 95% t-interval."""
    gains = [a - b for a, b in zip(values, reference, strict=True)]
    half = float(stats.t.ppf(0.975, len(gains) - 1)) * statistics.stdev(gains) / len(gains) ** 0.5
    mean = statistics.fmean(gains)
    return {"mean": round(mean, 2), "ci95": [round(mean - half, 2), round(mean + half, 2)]}


def summary(document: Mapping[str, Any]) -> dict[str, Any]:
    """For each network and arm: mean accuracy, against the float network, and how much of calibration's loss is won."""
    found: dict[str, Any] = {}
    for name, runs in document["runs"].items():
        float_points = document["networks"].get(name, {}).get("float")
        for arm, seeds in runs.items():
            values = [_points(seeds[key]) for key in sorted(seeds)]
            row: dict[str, Any] = {"n": len(values), "accuracy": round(statistics.fmean(values), 2)}
            if len(values) > 1 and float_points is not None:
                row["over_float"] = against(values, [float_points] * len(values))
                plain = runs.get(f"{arm.split(' ')[0]} calibration", {})
                if arm.startswith("W") and not arm.endswith("calibration") and plain.keys() >= seeds.keys():
                    base = [_points(plain[key]) for key in sorted(seeds)]
                    row["over_calibration"] = against(values, base)
                    lost = float_points - statistics.fmean(base)
                    row["share_of_loss_won_back"] = (
                        round(row["over_calibration"]["mean"] / lost, 2) if lost > LOSS else None
                    )
            found.setdefault(name, {})[arm] = row
    return found


def _points(run: Mapping[str, Any]) -> float:
    """The accuracy that counts: of the build in ONNX Runtime, or of the only thing that there is."""
    return float(run.get("onnxruntime int8") or run.get("pytorch") or run["accuracy"])


def save(args: argparse.Namespace, document: dict[str, Any]) -> None:
    document["summary"] = summary(document)
    document["environment"] = environment(("torch", "torchao", "openvino", "onnxruntime", "nncf"))
    write_atomic(args.json, json.dumps(document, indent=1) + "\n")


def show(document: Mapping[str, Any]) -> None:
    """The results as Markdown."""
    for name, rows in document["summary"].items():
        print(f"\n`{name}`, float {document['networks'].get(name, {}).get('float')}\n")
        print("| | accuracy | over float | over calibration | of its loss won back |\n|---|---:|---:|---:|---:|")
        for arm, row in rows.items():
            won = row.get("share_of_loss_won_back")
            cells = [f"{row['accuracy']:.2f}", _gain(row.get("over_float")), _gain(row.get("over_calibration"))]
            print(f"| {arm} | {' | '.join(cells)} | {'' if won is None else f'{won:.0%}'} |")
    print("\n| | batch | engine | f32 p50, ms | int8 p50, ms | int8 is faster |\n|---|---:|---|---:|---:|---:|")
    for name, batches in document["speed"].items():
        for batch, engines in batches.items():
            for engine, row in engines.items():
                times = f"{row['f32_p50_ms']:.3f} | {row['int8_p50_ms']:.3f}"
                gain = f"{row['speedup']:.2f} {_ends(row)} ({row['clock']} time)"
                print(f"| {name} | {batch} | {engine} | {times} | {gain} |")


def _gain(found: Mapping[str, Any] | None) -> str:
    return f"{found['mean']:+.2f} {_ends(found)}" if found else ""


def _ends(row: Mapping[str, Any]) -> str:
    return "[{:.2f}, {:.2f}]".format(*row["ci95"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("train", "arms", "others", "speed", "table"))
    parser.add_argument("--parquet", type=Path)
    parser.add_argument("--networks", nargs="+", choices=[*NETWORKS], default=[*NETWORKS])
    parser.add_argument("--arms", nargs="+", choices=[*arms()])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--teacher", help="network of the rounds that are taught by another, module:factory")
    parser.add_argument("--teacher-folder", type=Path, help="where its module lies")
    parser.add_argument("--teacher-weights", type=Path)
    parser.add_argument("--nproc", type=int, default=1, help="processes that train a float network together")
    parser.add_argument("--engines", nargs="+", choices=ENGINES, default=[*ENGINES])
    parser.add_argument("--trial", action="store_true", help="512 images: does everything run?")
    parser.add_argument("--work", type=Path, default=Path("runs/quantize_cifar10"))
    parser.add_argument("--json", type=Path, default=OUT)
    args = parser.parse_args()
    if args.what != "table" and args.parquet is None:
        parser.error("--parquet FOLDER: a folder with train.parquet and test.parquet")
    taught = any(part.taught == "by the teacher" for name in args.networks for part in NETWORKS[name])
    if args.what == "train" and taught and not (args.teacher and args.teacher_folder and args.teacher_weights):
        parser.error("the last round of resnet20 needs --teacher, --teacher-folder and --teacher-weights")
    empty: dict[str, Any] = {"networks": {}, "runs": {}, "speed": {}}
    document = json.loads(args.json.read_text()) if args.json.exists() else empty
    steps = {"train": train, "arms": run_arms, "others": run_others, "speed": run_speed}
    if args.what in steps:
        steps[args.what](args, document)
    show(document)


if __name__ == "__main__":
    main()
