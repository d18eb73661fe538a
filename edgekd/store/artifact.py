"""An artefact: a folder of files, the sha256 of each, and facts; how its meta.json is written, read and checked."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any, Literal

from edgekd.files import canonical_json, sha256_file, sha256_json

META = "meta.json"
Place = Literal["local", "remote"]
_SHA256 = re.compile("[0-9a-f]{64}")
_WORDS, _TIMES = ("stage", "pipeline"), ("seconds", "created")
_LATEST_S = 253402300799  # the last second of the year 9999: a later one is no date


@dataclass(frozen=True)
class Artifact:
    """A finished result of a stage: a folder, the sha256 of each file in it, and the facts the stage stated.

    `record` is what may differ between two runs that built the same thing (seconds); it is not part of the digest.
    `found`: where it lay when it was asked for.
    """

    key: str
    folder: Path
    files: dict[str, str]
    facts: dict[str, Any]
    record: dict[str, Any]
    digest: str
    found: Place = "local"

    def path(self, name: str) -> Path:
        """Path of one file of the artefact."""
        return self.folder / name


@dataclass
class Draft:
    """What a stage fills while it works: files in `folder`, `facts`, `record`."""

    folder: Path
    facts: dict[str, Any] = field(default_factory=dict)
    record: dict[str, Any] = field(default_factory=dict)


def digest_of(files: dict[str, str], facts: dict[str, Any]) -> str:
    """Digest of an artefact's content."""
    return sha256_json({"files": files, "facts": facts})


def meta_text(key: str, files: dict[str, str], facts: dict[str, Any], record: dict[str, Any]) -> str:
    """The content of meta.json; `facts` are plain values."""
    facts = json.loads(canonical_json(facts))
    meta = {"key": key, "files": files, "facts": facts, "record": record, "digest": digest_of(files, facts)}
    return json.dumps(meta, indent=1, sort_keys=True)


def parse_meta(key: str, folder: Path, content: bytes, found: Place = "local") -> Artifact:
    """The artefact that meta.json describes, checked in itself; its files are not read.

    Raises:
        ValueError: it was changed, or names files outside of the artefact's folder.
    """
    try:
        meta = json.loads(content)
        artifact = Artifact(key, folder, meta["files"], meta["facts"], meta["record"], meta["digest"], found)
        whole = meta["key"] == key and artifact.digest == digest_of(artifact.files, artifact.facts)
        whole = whole and isinstance(artifact.files, dict) and isinstance(artifact.facts, dict)
        whole = whole and _is_record(artifact.record)  # which no digest covers
    except (ValueError, KeyError, TypeError, RecursionError):
        whole = False
    if not whole:
        raise ValueError(f"{META} was changed")
    for name, sha256 in artifact.files.items():
        if not stays_inside(name) or not isinstance(sha256, str) or _SHA256.fullmatch(sha256) is None:
            raise ValueError(f"{META} names the file {name!r}")
    return artifact


def problems_of(artifact: Artifact) -> list[str]:
    """What is wrong with an artefact's files: missing or changed ones."""
    found = []
    for name, sha256 in artifact.files.items():
        path = artifact.path(name)
        if not path.is_file():
            found.append(f"{name} is missing")
        elif sha256_file(path) != sha256:
            found.append(f"{name} was changed")
    return found


def strangers_in(artifact: Artifact) -> list[str]:
    """Files beside those of the artefact: never served, and never written by edgekd."""
    there = (path for path in artifact.folder.rglob("*") if not path.is_dir() or path.is_symlink())
    names = sorted(path.relative_to(artifact.folder).as_posix() for path in there)
    return [f"{name} is no file of it" for name in names if name not in artifact.files and name != META]


def _is_record(record: Any) -> bool:
    """Whether a record is of the kinds that stages write: what it is of, times in seconds, and those of each build."""
    if not isinstance(record, dict):
        return False
    words = [record[name] for name in _WORDS if name in record]
    builds = [value for name, value in record.items() if name not in (*_WORDS, *_TIMES)]
    if not all(isinstance(word, str) for word in words) or not all(isinstance(build, dict) for build in builds):
        return False
    times = [part[name] for part in (record, *builds) for name in _TIMES if name in part]
    return all(type(time) in (int, float) and 0 <= time <= _LATEST_S for time in times)


def is_key(name: str) -> bool:
    """Whether this is a key: what else lies in a store's folder is not the store's."""
    return _SHA256.fullmatch(name) is not None


def stays_inside(name: str) -> bool:
    """Whether a file of this name lies below the folder that it is looked for in, wherever that is."""
    parts = PurePosixPath(name).parts
    return bool(parts) and name == "/".join(parts) and ".." not in parts and not set(name) & {"\\", "\0", ":"}
