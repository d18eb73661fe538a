"""Whether a run's folder is what its manifest says, byte for byte, and the manifest true to itself (torch-free)."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from edgekd.errors import ConfigError
from edgekd.files import sha256_file, sha256_json
from edgekd.pipeline.compress import PREVIOUS
from edgekd.pipeline.manifest import SCHEMA_VERSION, manifest_text
from edgekd.report.lineage import MANIFEST
from edgekd.store.artifact import stays_inside

# What a run leaves beside its results: messages, curves to watch, its lock, a store of its own (--store-mode ro),
# and `compress` the pipeline files that it replaced.
_BESIDE = (MANIFEST, "log.jsonl", "tensorboard", ".lock", ".scratch", PREVIOUS.format(""), PREVIOUS.format(".[0-9]*"))


@dataclass(frozen=True)
class Verified:
    """What was checked, and what is wrong."""

    files: int
    stages: int
    problems: list[str]


def verify_folder(folder: Path) -> Verified:
    """Check every file, the manifest's own text, every stage's key and every step from a file to its sources.

    Raises:
        ConfigError: there is no manifest that this version reads.
    """
    path = folder / MANIFEST
    try:
        content = path.read_bytes()
    except OSError as error:
        raise ConfigError(
            f"{path}: {error.strerror}",
            hint="give the folder of a run that has ended; one that was killed has no manifest",
        ) from None
    try:
        manifest: dict[str, Any] = json.loads(content)
        version = manifest["schema_version"]
        listed = {**manifest["files"], **manifest["documents"]} if version == SCHEMA_VERSION else {}
        found = [] if manifest_text(manifest).encode() == content else [f"{MANIFEST} was changed"]
        if version == SCHEMA_VERSION:
            found += [*_files(folder, listed), *_keys(manifest), *_lineage(manifest), *_report(folder, manifest)]
    except (ValueError, KeyError, TypeError, AttributeError):
        return Verified(0, 0, [f"{MANIFEST} was changed: it is no manifest any more"])
    if version != SCHEMA_VERSION:
        raise ConfigError(
            f"{path}: version {version} of the manifest, this edgekd reads version {SCHEMA_VERSION}",
            hint="run the pipeline again: finished stages come from the store",
        )
    return Verified(len(listed), len(manifest["stages"]), found)


def _files(folder: Path, listed: Mapping[str, Mapping[str, Any]]) -> Iterator[str]:
    """Missing, changed, and additional files. Nothing outside of the folder is looked at."""
    for name, facts in listed.items():
        path = folder / name
        if not stays_inside(name):
            yield f"{MANIFEST} names {name!r}, which is not in this folder"
        elif path.is_symlink() or not path.is_file():
            yield f"{name} is missing" if not path.is_symlink() else f"{name} is a link"
        elif path.stat().st_size != facts["bytes"] or sha256_file(path) != facts["sha256"]:
            yield f"{name} was changed"
    for path in sorted(folder.rglob("*")):
        place = path.relative_to(folder)
        if any(fnmatchcase(place.parts[0], known) for known in _BESIDE) or (path.is_dir() and not path.is_symlink()):
            continue
        if place.as_posix() not in listed:
            yield f"{place.as_posix()} is not in {MANIFEST}"


def _keys(manifest: Mapping[str, Any]) -> Iterator[str]:
    """Each key is the sha256 of what the stage was made of; its inputs are the stages before it."""
    digests: dict[str, str] = {}
    keys = {}
    for stage in manifest["stages"]:
        name, made_of = stage["name"], stage["made_of"]
        keys[name] = stage["key"]
        if sha256_json(made_of) != stage["key"]:
            yield f"{name}: its key does not follow from what it was made of"
        for source, digest in made_of["inputs"].items():
            if digests.get(source) != digest:
                yield f"{name}: was made from another {source} than the one here"
        digests[name] = stage["digest"]
    for name, facts in manifest["files"].items():
        if keys.get(facts["stage"]) != facts["key"]:
            yield f"{name}: is of no stage of this run"


def _lineage(manifest: Mapping[str, Any]) -> Iterator[str]:
    """Every file that another one was made from is here."""
    for name, facts in manifest["files"].items():
        yield from (
            f"{name}: {source}, which it was made from, is not here"
            for source in facts["made_from"]
            if source not in manifest["files"]
        )


def _report(folder: Path, manifest: Mapping[str, Any]) -> Iterator[str]:
    """The report speaks of this run and of these builds."""
    try:
        report = json.loads((folder / "report.json").read_bytes())
    except (OSError, ValueError):
        return  # missing or changed: said already
    if report["run_id"] != manifest["run_id"]:
        yield "report.json is of another run"
    for build in report["builds"]:
        if manifest["files"].get(build["path"], {}).get("sha256") != build["sha256"]:
            yield f"report.json: {build['path']} is another build than the one here"
