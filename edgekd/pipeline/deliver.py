"""What a run leaves in its folder: artefacts, report.json and what is drawn from it, manifest.json (torch-free)."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Collection, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import edgekd
from edgekd.bench.machine import environment
from edgekd.files import replace_atomic, sha256_file, sha256_json, temporaries, write_atomic
from edgekd.pipeline.assemble import ARTIFACTS, assemble, data_facts
from edgekd.pipeline.gates import broken
from edgekd.pipeline.manifest import (
    MODEL_CARD,
    delivered,
    lineage,
    manifest_of,
    places,
    write_manifest,
)
from edgekd.pipeline.schema import Pipeline
from edgekd.report import words
from edgekd.report.draw import DRAWN, draw
from edgekd.report.drawings import Remembered
from edgekd.report.lineage import MANIFEST
from edgekd.report.model_card import CardFacts, model_card
from edgekd.report.schema import Gate, Report
from edgekd.store import Artifact
from edgekd.tasks.settings import OUTPUT_NAMES

if TYPE_CHECKING:
    from edgekd.pipeline.runner import Outcome

_PACKAGES = (
    "torch", "torchao", "onnx", "onnxscript", "onnxruntime", "openvino", "tensorrt", "tensorrt-rtx", "numpy",
    "pydantic",
)  # fmt: skip


def deliver_stage(out: Path, stage: str, artifact: Artifact, named: Mapping[str, str]) -> None:
    """Copy a stage's files to where users look for them; files that are there already and right stay.

    Copies are not forced to disk: what a power cut spoils, `edgekd verify` finds and the next run copies again.
    """
    for name, target in places(stage, artifact, named):
        path = out / ARTIFACTS / target
        if not path.is_file() or sha256_file(path) != artifact.files[name]:
            source = artifact.path(name)
            replace_atomic(path, lambda new, source=source: shutil.copyfile(source, new), durable=False)  # type: ignore[misc]


def draw_report(
    pipeline: Pipeline, out: Path, outcome: Outcome, started: float, remembered: Remembered | None = None
) -> None:
    """Write the report in all its forms, the model card and manifest.json; `outcome.report` gets its values."""
    content = assemble(pipeline, outcome.done)
    for gate, row in zip(pipeline.settings.gates, content["gates"], strict=True):
        row["broken"] = broken(gate, row, whole=outcome.whole)
    code = outcome.exit_code or (5 if any(row["broken"] for row in content["gates"]) else 0)
    document: dict[str, Any] = {
        "edgekd_version": edgekd.__version__,
        "run_id": f"{pipeline.settings.name}-{sha256_json([state['key'] for state in outcome.states])[:12]}",
        "pipeline": pipeline.settings.name,
        "status": "ok" if code == 0 else "gate_failed" if code == 5 else "failed",
        "exit_code": code,
        "error": outcome.error,
        "created": datetime.fromtimestamp(started, UTC).isoformat(timespec="seconds"),
        "seconds": round(outcome.seconds, 3),
        "timing": outcome.clock.spent(outcome.seconds),
        "seed": pipeline.settings.seed,
        "git": git_state(pipeline.base),
        "environment": _environment(),
        "data": _data(pipeline, outcome),
        "stages": outcome.states,
        **content,
    }
    report = Report.model_validate_json(json.dumps(document))
    outcome.report = report.model_dump(mode="json")  # kept also when the disk is too full to write it
    files = delivered(outcome.done, pipeline.roles)
    manifest = manifest_of(pipeline, outcome, document, files)
    draw(report, out, manifest, remembered)
    write_atomic(out / MODEL_CARD, model_card(report, _card_facts(pipeline, outcome, files)))
    write_manifest(out, manifest, pipeline)
    if not outcome.exit_code:
        _remove_others(out, files)


def measured(row: Mapping[str, Any]) -> str:
    """A gate's value with its interval, for a message."""
    gate = Gate.model_validate(row)
    if gate.value is None:
        return f"nothing, limit {words.gate_limit(gate)}"
    note = f" ({gate.no_interval})" if gate.no_interval else ""
    return f"{words.gate_value(gate)}{note}, limit {words.gate_limit(gate)}"


def git_state(folder: Path) -> dict[str, Any] | None:
    """Commit and dirtiness of the repository that holds a folder, or None."""
    command = ["git", "-C", str(folder), "status", "--porcelain=v2", "--branch", "--untracked-files=no"]
    try:
        told = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True).stdout.splitlines()
    except (OSError, subprocess.SubprocessError):
        return None
    commit = next((line.split()[2] for line in told if line.startswith("# branch.oid ")), "(initial)")
    if commit == "(initial)":  # a repository without a commit
        return None
    return {"commit": commit, "dirty": any(not line.startswith("#") for line in told)}


def _environment() -> dict[str, Any]:
    facts = environment(_PACKAGES)
    return {**facts, "packages": {name: version for name, version in facts["packages"].items() if version is not None}}


def _data(pipeline: Pipeline, outcome: Outcome) -> dict[str, Any] | None:
    if outcome.fingerprint is None:
        return None
    return {
        "fingerprint": outcome.fingerprint,
        "split_fingerprints": outcome.split_fingerprints,
        "licence": pipeline.settings.data.licence,
        "n": data_facts(outcome.done),
        "broken_images": outcome.broken_images,
    }


def _remove_others(out: Path, files: Collection[str]) -> None:
    """What an earlier run left that this one did not make, or was killed over: nobody shall ship it by mistake."""
    for name in (*DRAWN, MODEL_CARD, MANIFEST):
        for path in temporaries(out, name):
            path.unlink()
    for path in sorted((out / ARTIFACTS).rglob("*"), reverse=True):  # what is inside comes before its folder
        if path.is_dir() and not path.is_symlink():
            if not any(path.iterdir()):
                path.rmdir()
        elif path.relative_to(out).as_posix() not in files:
            path.unlink()


def _card_facts(pipeline: Pipeline, outcome: Outcome, files: Mapping[str, Mapping[str, Any]]) -> CardFacts:
    """What the model card tells beside the report."""
    task = pipeline.settings.task
    settings = {
        entry.name: entry.settings.model_dump(mode="json", by_alias=True, exclude_unset=True)
        for entry in pipeline.stages
        if entry.name in outcome.done
    }
    builds = outcome.report.get("builds", ())
    chains = {b["path"]: [(f, files[f]["sha256"]) for f in lineage(b["path"], files)] for b in builds}
    return CardFacts({OUTPUT_NAMES[task]: task} if isinstance(task, str) else task, settings, chains)
