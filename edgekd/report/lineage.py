"""Where each build comes from, from the teacher to the engine, by digest; and the commands that made it."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from edgekd.report import words
from edgekd.report.schema import Build, Model, Report

MANIFEST = "manifest.json"
_DIGITS = 12
_ARTIFACTS = "artifacts"
_ONNX = re.compile(rf"{_ARTIFACTS}/([^/]+)\.(\w+)\.onnx")


@dataclass(frozen=True)
class Node:
    """A network, a file or a build: what it is, the head of its sha256 (or nothing), and what was made of it."""

    text: str
    digest: str
    note: str = ""
    children: list[Node] = field(default_factory=list)


def read_manifest(folder: Path) -> Mapping[str, Any]:
    """A run's manifest.json; empty where there is none that can be read."""
    try:
        content = json.loads((folder / MANIFEST).read_bytes())
    except (OSError, ValueError, RecursionError):
        return {}
    return content if isinstance(content, dict) else {}


def learned_from(manifest: Mapping[str, Any]) -> list[str]:
    """Digests of the files that the networks of a run, or of a bundle, were trained and calibrated on."""
    told = manifest.get("learned_from")
    if not isinstance(told, list):
        data = manifest.get("data")
        about = data if isinstance(data, dict) else {}
        names, files = about.get("learned_from"), about.get("files")
        told = [files.get(str(name)) for name in names] if isinstance(names, list) and isinstance(files, dict) else []
    return sorted(digest for digest in told if isinstance(digest, str))


def lineage(report: Report, manifest: Mapping[str, Any]) -> list[Node]:
    """The networks as a tree, each with its ONNX files and the builds made from them."""
    files = manifest.get("files")
    digests = {
        path: str(about.get("sha256", ""))
        for path, about in (files.items() if isinstance(files, dict) else ())
        if isinstance(about, dict)
    }
    nodes = {model.role: _network(model, report, digests) for model in report.models}
    roots = [_under(nodes, role) for role in nodes]
    top = [nodes[role] for role, parent in zip(nodes, roots, strict=True) if parent is None]
    for role, parent in zip(nodes, roots, strict=True):
        if parent is not None:
            nodes[parent].children.append(nodes[role])
    return top


def _under(nodes: Mapping[str, Node], role: str) -> str | None:
    """The network that another one was made from or taught by."""
    parents = {"quantized": ("student", "teacher"), "teacher": ()}
    return next((name for name in parents.get(role, ("teacher",)) if name in nodes), None)


def _network(model: Model, report: Report, digests: Mapping[str, str]) -> Node:
    stages = {stage.name for stage in report.stages}
    taught = model.role not in ("teacher", "quantized") and "distill" in stages
    made = "quantized" if model.role == "quantized" else "distilled" if taught else ""
    size = f"{words.count(model.parameters)} parameters" if model.parameters else ""
    note = ", ".join(part for part in (made, size) if part)
    own = [build for build in report.builds if build.model == model.role]
    taken = {build.onnx for build in report.builds if build.model != model.role}
    roles = {one.role for one in report.models}
    exported = [path for path in digests if _role_of(path, roles) == model.role and path not in taken]
    exported += [path for path in dict.fromkeys(build.onnx for build in own) if path and path not in exported]
    children = [_onnx(path, [build for build in own if build.onnx == path], digests) for path in exported]
    children += [_build(build) for build in own if build.onnx is None]
    weights = digests.get(f"{_ARTIFACTS}/{model.role}.safetensors", "")
    return Node(f"{model.role}: {model.name}", weights[:_DIGITS], note, children)


def _role_of(path: str, roles: Collection[str]) -> str | None:
    """Whose an ONNX file is: with 8 bits it has the name of the network that was quantized."""
    found = _ONNX.fullmatch(path)
    if found is None:
        return None
    return "quantized" if found[2] in ("int8", "uint8") and "quantized" in roles else found[1]


def _onnx(path: str, builds: list[Build], digests: Mapping[str, str]) -> Node:
    return Node(Path(path).name, digests.get(path, "")[:_DIGITS], "", [_build(build) for build in builds])


def _build(build: Build) -> Node:
    note = f"{build.runtime}, {build.device}" + (", chosen" if build.chosen else "")
    return Node(f"{build.target} {build.precision}", (build.sha256 or "")[:_DIGITS], note)


def commands(report: Report, manifest: Mapping[str, Any]) -> list[str]:
    """The command that made this run, as it was typed, and the commit that it ran on; empty without a manifest."""
    words_ = manifest.get("command")
    if not isinstance(words_, list) or not all(isinstance(word, str) for word in words_):
        return []
    changed = "  # with local changes" if report.git and report.git.dirty else ""
    checkout = [f"git checkout {report.git.commit}{changed}"] if report.git else []
    return [*checkout, shlex.join(words_)]
