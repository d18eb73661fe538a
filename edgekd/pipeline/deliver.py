"""What a run leaves in its folder: artefacts, report.json and what is drawn from it, manifest.json (torch-free)."""

from __future__ import annotations

import json
import platform
import shutil
import subprocess
import sys
from collections.abc import Collection, Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import edgekd
from edgekd.bench.machine import environment
from edgekd.files import replace_atomic, sha256_file, sha256_json, write_atomic
from edgekd.pipeline.assemble import ARTIFACTS, assemble, data_facts
from edgekd.pipeline.gates import broken
from edgekd.pipeline.schema import Pipeline
from edgekd.report.draw import draw
from edgekd.report.schema import Report
from edgekd.store import Artifact

if TYPE_CHECKING:
    from edgekd.pipeline.runner import Outcome

_PACKAGES = (
    "torch", "torchao", "onnx", "onnxscript", "onnxruntime", "openvino", "tensorrt", "tensorrt-rtx", "numpy",
    "pydantic",
)  # fmt: skip


def deliver_stage(out: Path, stage: str, artifact: Artifact, named: Mapping[str, str]) -> None:
    """Copy a stage's files to where users look for them; files that are there already and right stay."""
    for name, target in _places(stage, artifact, named):
        path = out / ARTIFACTS / target
        if not path.is_file() or sha256_file(path) != artifact.files[name]:
            source = artifact.path(name)
            replace_atomic(path, lambda temporary, source=source: shutil.copyfile(source, temporary))  # type: ignore[misc]


def _places(stage: str, artifact: Artifact, named: Mapping[str, str]) -> Iterator[tuple[str, str]]:
    for name in artifact.files:
        if stage in ("model", "teacher", "distill", "quantize"):
            role = named[stage]
            yield name, f"{role}.safetensors" if name.startswith("weights") else f"{role}.{name}"
        elif stage in ("export", "evaluate"):
            yield name, name
        elif stage == "compile":
            yield name, f"builds/{name}"
        elif stage == "bench":
            yield name, f"latency/{name}"


def draw_report(pipeline: Pipeline, out: Path, outcome: Outcome, started: float) -> None:
    """Write report.json, report.html, report.md, junit.xml and manifest.json; `outcome.report` gets its values."""
    content = assemble(pipeline, outcome.done)
    failed = [
        row
        for gate, row in zip(pipeline.settings.gates, content["gates"], strict=True)
        if broken(gate, row, whole=outcome.whole)
    ]
    code = outcome.exit_code or (5 if failed else 0)
    document: dict[str, Any] = {
        "edgekd_version": edgekd.__version__,
        "run_id": f"{pipeline.settings.name}-{sha256_json([state['key'] for state in outcome.states])[:12]}",
        "pipeline": pipeline.settings.name,
        "status": "ok" if code == 0 else "gate_failed" if code == 5 else "failed",
        "exit_code": code,
        "error": outcome.error,
        "created": datetime.fromtimestamp(started, UTC).isoformat(timespec="seconds"),
        "seconds": round(outcome.seconds, 3),
        "seed": pipeline.settings.seed,
        "git": git_state(pipeline.base),
        "environment": _environment(),
        "data": _data(pipeline, outcome),
        "stages": outcome.states,
        **content,
    }
    report = Report.model_validate_json(json.dumps(document))
    outcome.report = report.model_dump(mode="json")  # kept also when the disk is too full to write it
    draw(report, out)
    files = _write_manifest(pipeline, out, outcome, document)
    if not outcome.exit_code:
        _remove_others(out, files)


def measured(row: Mapping[str, Any]) -> str:
    """A gate's value with its interval, for a message."""
    if row["value"] is None:
        return "nothing"
    unit = f" {row['unit']}" if row["unit"] else ""
    interval = f" [{row['ci95'][0]:.4g}, {row['ci95'][1]:.4g}]" if row["ci95"] else ""
    return f"{row['value']:.4g}{unit}{interval}, limit {row['limit']:.4g}{unit}"


def git_state(folder: Path) -> dict[str, Any] | None:
    """Commit and dirtiness of the repository that holds a folder, or None."""
    command = ["git", "-C", str(folder)]
    try:
        commit = subprocess.run([*command, "rev-parse", "HEAD"], capture_output=True, text=True, timeout=5, check=True)
        status = subprocess.run(
            [*command, "status", "--porcelain", "--untracked-files=no"],
            capture_output=True,
            text=True,
            timeout=10,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return {"commit": commit.stdout.strip(), "dirty": bool(status.stdout.strip())}


def _environment() -> dict[str, Any]:
    facts = environment(_PACKAGES)
    return {**facts, "packages": {name: version for name, version in facts["packages"].items() if version is not None}}


def _data(pipeline: Pipeline, outcome: Outcome) -> dict[str, Any] | None:
    if outcome.fingerprint is None:
        return None
    return {
        "fingerprint": outcome.fingerprint,
        "licence": pipeline.settings.data.licence,
        "n": data_facts(outcome.done),
    }


def _remove_others(out: Path, files: Collection[str]) -> None:
    """What an earlier run left among the artefacts, made with other settings: nobody shall ship it by mistake."""
    for path in sorted((out / ARTIFACTS).rglob("*"), reverse=True):  # what is inside comes before its folder
        if path.is_dir() and not path.is_symlink():
            if not any(path.iterdir()):
                path.rmdir()
        elif path.relative_to(out).as_posix() not in files:
            path.unlink()


def _write_manifest(pipeline: Pipeline, out: Path, outcome: Outcome, document: Mapping[str, Any]) -> Collection[str]:
    """manifest.json: what each file is made of, by sha256. Returns the files' paths."""
    files = {
        f"{ARTIFACTS}/{target}": {"sha256": artifact.files[name], "stage": stage, "key": artifact.key}
        for stage, artifact in outcome.done.items()
        for name, target in _places(stage, artifact, pipeline.roles)
    }
    manifest = {
        "schema_version": 1,
        "edgekd_version": edgekd.__version__,
        "pipeline": {"name": pipeline.settings.name, "file": pipeline.path.name, "sha256": sha256_file(pipeline.path)},
        "command": ["edgekd", *sys.argv[1:]],
        "python": platform.python_version(),
        "packages": document["environment"]["packages"],
        "git": document["git"],
        "seed": pipeline.settings.seed,
        "data": document["data"],
        "preprocessing": outcome.done["export"].facts["preprocessing"] if "export" in outcome.done else None,
        "files": dict(sorted(files.items())),
    }
    write_atomic(out / "manifest.json", json.dumps(manifest, indent=1))
    return files.keys()
