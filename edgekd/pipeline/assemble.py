"""report.json's content from the artefacts of a run: plain values, nothing is loaded but JSON (torch-free)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from edgekd.pipeline.choice import choose
from edgekd.pipeline.gates import judge
from edgekd.pipeline.schema import Pipeline
from edgekd.stages.context import networks
from edgekd.store import Artifact

ARTIFACTS = "artifacts"
_MEASURED = ("comparisons", "throughput", "load")
_TRAINING = ("teacher", "distill", "quantize")
_INSIDE = ("better", "evaluated", "against")  # of a metric: what gates need and no reader
_OF_QUANTIZE = ("arms", "calibration", "sensitivity")


def assemble(pipeline: Pipeline, done: Mapping[str, Artifact]) -> dict[str, Any]:
    """Models, builds, latency, comparisons, gates and details of what was finished."""
    report: dict[str, Any] = {
        "models": _models(done, pipeline.roles),
        "builds": [b | {"host": pipeline.settings.targets[b["target"]].host} for b in _builds(done)],
        "latency": _latency(done),
        **{part: list(done["bench"].facts[part]) if "bench" in done else [] for part in _MEASURED},
        "details": _details(done, pipeline.roles),
    }
    choose(report, pipeline.settings.gates)
    report["gates"] = [judge(gate, report) for gate in pipeline.settings.gates]
    del report["preferred"]
    for row in (*report["models"], *report["builds"]):
        row["metrics"] = [{k: v for k, v in m.items() if k not in _INSIDE} for m in row["metrics"]]
    return report


def data_facts(done: Mapping[str, Artifact]) -> dict[str, Any]:
    """Sizes of the splits as the last stage that counted them saw them."""
    sizes: dict[str, Any] = {}
    for artifact in done.values():
        sizes.update(artifact.facts.get("data", {}).get("n", {}))
    return sizes


def build_path(build: Mapping[str, Any]) -> str:
    """Where a build lies below the run's folder."""
    return f"{ARTIFACTS}/builds/{build['folder']}/{build['file']}"


def _models(done: Mapping[str, Artifact], named: Mapping[str, str]) -> list[dict[str, Any]]:
    found = networks(done, named)
    if "quantize" in done:
        found["quantized"] = done["quantize"]
    return [
        {
            "role": role,
            "name": artifact.facts["model"],
            "parameters": artifact.facts["parameters"],
            "macs": artifact.facts["macs"],
            "size_bytes": artifact.facts["size_bytes"],
            "metrics": [*_evaluated(done, "models", role), *artifact.facts["metrics"]],
        }
        for role, artifact in found.items()
    ]


def _evaluated(done: Mapping[str, Artifact], kind: str, name: str) -> list[dict[str, Any]]:
    """Metrics of the evaluate stage, marked: gates judge these and no others."""
    if "evaluate" not in done:
        return []
    found = done["evaluate"].facts[kind].get(name, [])
    rows = found["metrics"] if isinstance(found, dict) else found
    return [{**row, "evaluated": True} for row in rows]


def _builds(done: Mapping[str, Artifact]) -> list[dict[str, Any]]:
    if "compile" not in done:
        return []
    compiled = done["compile"]
    rows = []
    for build in compiled.facts["builds"]:
        folder = build["folder"]
        scored = done["evaluate"].facts["builds"].get(folder, {}) if "evaluate" in done else {}
        row = {key: value for key, value in build.items() if key not in ("folder", "file", "origin", "max_batch")}
        row |= {
            "path": build_path(build),
            "onnx": _onnx_path(done, build),
            "sha256": compiled.files[f"{folder}/{build['file']}"],
            "seconds": compiled.record.get(folder, {}).get("seconds"),
            "metrics": _evaluated(done, "builds", folder),
            "difference": {k: v for k, v in found.items() if k not in ("better", "against")}
            if (found := scored.get("difference"))
            else None,
            "parity": scored.get("parity") or _exported_parity(done, build),
        }
        rows.append(row)
    return rows


def _onnx_path(done: Mapping[str, Artifact], build: Mapping[str, Any]) -> str | None:
    """Where the ONNX file that a build was made from lies below the run's folder."""
    for name, facts in done["export"].facts["files"].items():
        if (facts["model"], facts["flavour"]) == (build["model"], build["origin"]):
            return f"{ARTIFACTS}/{name}"
    return None


def _exported_parity(done: Mapping[str, Artifact], build: Mapping[str, Any]) -> dict[str, Any] | None:
    """Without `evaluate`: what is known of the ONNX file that the build was made from."""
    for facts in done["export"].facts["files"].values():
        if facts["model"] == build["model"] and facts["flavour"] == build["origin"]:
            parity: dict[str, Any] = {**facts["parity"], "reference": "PyTorch (the ONNX file)"}
            return parity
    return None


def _latency(done: Mapping[str, Artifact]) -> list[dict[str, Any]]:
    rows = done["bench"].facts["latency"] if "bench" in done else []
    return [{**r, "samples_path": r["samples_path"] and f"{ARTIFACTS}/latency/{r['samples_path']}"} for r in rows]


def _details(done: Mapping[str, Artifact], named: Mapping[str, str]) -> list[dict[str, Any]]:
    trained = [stage for stage in _TRAINING if stage in done]
    rows = [{"kind": "loss_curves", "path": f"{ARTIFACTS}/{named[stage]}.curves.json"} for stage in trained]
    if "quantize" in done:
        told = [kind for kind in _OF_QUANTIZE if f"{kind}.json" in done["quantize"].files]
        rows += [{"kind": kind, "path": f"{ARTIFACTS}/{named['quantize']}.{kind}.json"} for kind in told]
    if "evaluate" in done and "ladder.json" in done["evaluate"].files:
        rows.append({"kind": "ladder", "path": f"{ARTIFACTS}/ladder.json"})
    measured = done["bench"].files if "bench" in done else ()
    profiles = sorted(name for name in measured if name.endswith("/layers.json"))
    rows += [{"kind": "layers", "path": f"{ARTIFACTS}/latency/{name}"} for name in profiles]
    long_runs = sorted(name for name in measured if name.endswith("/sustain.json"))
    rows += [{"kind": "sustain", "path": f"{ARTIFACTS}/latency/{name}"} for name in long_runs]
    if "compile" in done and not profiles:
        folders = [build["folder"] for build in done["compile"].facts["builds"]]
        rows += [{"kind": "layers", "path": f"{ARTIFACTS}/builds/{folder}/layers.json"} for folder in folders]
    return rows
