"""The pipeline files that come with edgekd: each is valid, and runs as it is but for shorter training."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from forked import edgekd
from sklearn.datasets import load_digits

from edgekd.pipeline.schema import load_pipeline

ROOT = Path(__file__).parents[2]
FILES = sorted((ROOT / "pipelines").glob("*.yaml"))
CHAIN = ["teacher", "distill", "quantize", "export", "compile", "evaluate", "bench"]


def run(name: str, folder: Path, *arguments: str) -> dict[str, Any]:
    """Run a pipeline file by the command line with its own store below `folder`; gives the report."""
    places = ["--out", str(folder / "out"), "--store", str(folder / "store")]
    done = edgekd(["run", str(ROOT / "pipelines" / f"{name}.yaml"), *arguments, *places], cwd=folder)
    assert done.returncode == 0, done.stderr + done.stdout
    report: dict[str, Any] = json.loads((folder / "out" / "report.json").read_text())
    assert (report["status"], report["exit_code"]) == ("ok", 0)
    return report


def assert_exported(folder: Path, names: list[str]) -> None:
    artifacts = folder / "out" / "artifacts"
    missing = [name for name in names if not (artifacts / name).is_file()]
    assert not missing, sorted(str(path.relative_to(artifacts)) for path in artifacts.rglob("*"))


def ran(report: dict[str, Any]) -> list[str]:
    return [stage["name"] for stage in report["stages"] if stage["state"] == "ran"]


def builds(report: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {f"{b['target']}.{b['model']}.{b['precision']}": b for b in report["builds"]}


def test_all_four_pipeline_files_are_here() -> None:
    assert {path.stem for path in FILES} >= {"cifar10", "digits", "own_network", "quantize_only"}


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_every_pipeline_file_is_valid_and_carries_its_name(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "path", list(sys.path))  # `python_path` is put in front of it
    pipeline = load_pipeline(path)
    assert pipeline.settings.name == path.stem
    assert set(pipeline.settings.targets) == {"ov", "ort"}
    assert [stage.name for stage in pipeline.stages][-5:] == CHAIN[2:]


def test_the_example_weights_are_small() -> None:
    assert (ROOT / "examples/own_network/weights.safetensors").stat().st_size < 200_000


@pytest.mark.slow
def test_own_network_teaches_its_narrower_self(tmp_path: Path) -> None:
    report = run("own_network", tmp_path, "--set", "distill.epochs=1", "--set", "quantize.epochs=1", "--to", "compile")
    assert ran(report) == CHAIN[:5]
    models = {model["role"]: model for model in report["models"]}
    assert models["student"]["parameters"] < models["teacher"]["parameters"]
    assert models["quantized"]["parameters"] == models["student"]["parameters"]
    files = ["student.safetensors", "student.f32.onnx", "student.int8.onnx", "student.uint8.onnx"]
    assert_exported(tmp_path, files)
    assert {"ov.teacher.f32", "ov.student.f32", "ov.quantized.int8", "ort.quantized.int8"} <= set(builds(report))


@pytest.mark.slow
def test_quantize_only_compresses_a_network_without_training(tmp_path: Path) -> None:
    report = run("quantize_only", tmp_path, "--to", "evaluate")
    assert ran(report) == ["model", *CHAIN[2:6]]
    found = builds(report)
    assert set(found) == {"ov.student.f32", "ov.quantized.int8", "ort.student.f32", "ort.quantized.int8"}
    accuracy = {name: build["metrics"][0]["value"] for name, build in found.items()}
    assert {build["metrics"][0]["name"] for build in found.values()} == {"accuracy"}
    assert min(accuracy.values()) > 0.95
    assert max(accuracy.values()) - min(accuracy.values()) <= 0.01


@pytest.mark.slow
def test_quantize_only_reports_agreement_where_there_are_no_labels(tmp_path: Path) -> None:
    images = load_digits().images[:, None].astype(np.float32) / 16
    np.savez(tmp_path / "train.npz", x=images[:300])
    np.savez(tmp_path / "test.npz", x=images[300:500])
    unlabelled = f"data={{npz: {{path: {json.dumps(str(tmp_path))}, targets: []}}, normalize: none}}"
    report = run("quantize_only", tmp_path, "--set", unlabelled, "--to", "evaluate")
    for name, build in builds(report).items():
        (metric,) = build["metrics"]
        assert (metric["name"], metric["n"]) == ("agreement", 200)
        assert metric["value"] >= (0.97 if build["model"] == "quantized" else 1.0), name


@pytest.mark.slow
def test_cifar10_runs_from_the_command_line_with_other_networks_and_few_images(tmp_path: Path, shared: Path) -> None:
    smaller = [
        f"data.path={shared / 'data' / 'cifar10'}",
        "data.limit.train=256",
        "data.limit.validation=128",
        "teacher.model=resnet8",
        "teacher.epochs=1",
        "distill.student=resnet8",
        "distill.epochs=1",
        "quantize.epochs=1",
    ]
    report = run("cifar10", tmp_path, *(word for text in smaller for word in ("--set", text)), "--to", "export")
    assert ran(report) == CHAIN[:4]
    assert report["data"]["n"] == {"train": 256, "validation": 128, "test": 10_000}
    assert_exported(tmp_path, ["student.f32.onnx", "student.int8.onnx", "student.uint8.onnx"])
