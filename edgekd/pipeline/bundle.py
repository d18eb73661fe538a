"""One archive with all that a device needs of a build; the same build gives the same bytes (torch-free)."""

from __future__ import annotations

import gzip
import io
import json
import tarfile
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import Any

import edgekd
from edgekd.bench.measure import LAYERS
from edgekd.errors import ConfigError, StageError
from edgekd.export.card import CARD, PREDICT, read_card
from edgekd.files import sha256_bytes, write_atomic
from edgekd.report.draw import read_report
from edgekd.report.lineage import MANIFEST, learned_from, read_manifest
from edgekd.report.schema import Build, Report
from edgekd.runtimes import openvino_blob
from edgekd.store.artifact import stays_inside

# Beside a build, and of no use on another machine: the form compiled for this one, and what layers ran as.
_LEFT = {LAYERS, openvino_blob.BLOB, openvino_blob.MANIFEST}
_SUFFIX = ".tar.gz"
_AGAIN = "run the pipeline again: finished stages come from the store; `edgekd verify` says what else was changed"


def bundle(run: Path, target: str | None, file: Path | None, licence: Path | None) -> tuple[Path, dict[str, Any]]:
    """Pack the chosen build of a run into one archive, and return its path and its manifest.

    Args:
        run: folder of a run.
        target: which target's build; needed where there are several.
        file: the archive; by default RUN-TARGET.tar.gz beside the run's folder, which holds what its manifest lists.
        licence: file with the licence of the network.

    Raises:
        ConfigError: there is no such run or target, or nothing was chosen for it.
        StageError: a file is not what the run's manifest says.
    """
    report = read_report(run)
    build = _chosen(report, target)
    assert build.path is not None
    content = _files(run, build.path, build.sha256)
    _, card = read_card(run / build.path)
    content |= _texts(report, card, licence)
    manifest = {**_manifest(report, build, card, content), "learned_from": learned_from(read_manifest(run))}
    content[MANIFEST] = (json.dumps(manifest, indent=1, sort_keys=True) + "\n").encode()
    name = f"{report.pipeline}-{build.target}"
    folder = run if run.name not in ("", "..") else run.resolve()
    archive = file or folder.with_name(f"{folder.name}-{build.target}{_SUFFIX}")
    if not archive.name.endswith((_SUFFIX, ".tgz")):
        raise ConfigError(f"-o {archive}: is no name of an archive", hint=f"let it end in {_SUFFIX}")
    write_atomic(archive, _packed(content, name))
    return archive, manifest


def _chosen(report: Report, target: str | None) -> Build:
    """The build to ship of the target that is asked for."""
    known = list(dict.fromkeys(build.target for build in report.builds))
    if not known:
        raise ConfigError("this run built nothing", hint="add a `compile` stage and targets, and run it")
    if target is None and len(known) > 1:
        raise ConfigError(f"this run has several targets: {', '.join(known)}", hint="choose one with --target")
    if target is not None and target not in known:
        raise ConfigError(f"--target {target}: this run has no such target", hint=f"known are: {', '.join(known)}")
    wanted = target or known[0]
    found = next((build for build in report.builds if build.target == wanted and build.chosen), None)
    if found is None:
        raise ConfigError(
            f"no build of {wanted} was chosen", hint="add `bench`, so that the run can tell which one is best"
        )
    return found


def _files(run: Path, path: str, sha256: str | None) -> dict[str, bytes]:
    """The files of a build that the run's manifest lists, each as it was when the run ended; nothing else is read."""
    listed = read_manifest(run).get("files")
    if not isinstance(listed, dict):
        raise ConfigError(f"{run / MANIFEST}: is not there, or no manifest", hint="give the folder of a whole run")
    folder = PurePosixPath(path).parent
    names = sorted(name for name in listed if PurePosixPath(name).parent == folder and stays_inside(name))
    found = {}
    for name in names:
        place = run / name
        if place.name in _LEFT:
            continue
        about = listed[name]
        expected = about.get("sha256") if isinstance(about, dict) else None
        if place.is_symlink() or not place.is_file():
            raise StageError(f"{place}: is no plain file", hint=_AGAIN)
        content = place.read_bytes()
        if sha256_bytes(content) != expected or (name == path and expected != sha256):
            raise StageError(f"{place}: is not what the run's manifest and report say", hint=_AGAIN)
        found[place.name] = content
    if path not in names:
        raise StageError(f"{run / path}: is not in {MANIFEST}", hint=_AGAIN)
    return found


def _texts(report: Report, card: Mapping[str, Any], licence: Path | None) -> dict[str, bytes]:
    """The licence, and the classes one a line."""
    if licence is not None:
        if not licence.is_file():
            raise ConfigError(f"--licence {licence}: there is no such file", hint="give the text of the licence")
        text = licence.read_bytes()
    else:
        data = report.data.licence if report.data else None
        text = (
            "No licence of the network was given when this archive was made (edgekd bundle --licence FILE).\n"
            f"Licence of the data that it learned from: {data or 'not stated'}\n"
        ).encode()
    found = {"LICENSE": text}
    for output, labels in card["labels"].items():
        name = "labels.txt" if len(card["labels"]) == 1 else f"labels.{output}.txt"
        found[name] = ("\n".join(labels) + "\n").encode()
    return found


def _manifest(report: Report, build: Build, card: Mapping[str, Any], content: Mapping[str, bytes]) -> dict[str, Any]:
    """What the archive holds and where it came from; nothing of when or where it was packed."""
    scored = [metric.model_dump(mode="json") for metric in build.metrics]
    return {
        "schema_version": 1,
        "edgekd_version": edgekd.__version__,
        "run_id": report.run_id,
        "pipeline": report.pipeline,
        "git": report.git.model_dump(mode="json") if report.git else None,
        "data_fingerprint": report.data.fingerprint if report.data else None,
        "target": build.target,
        "runtime": build.runtime,
        "device": build.device,
        "precision": build.precision,
        "built_with": card.get("built_with", {}),
        "built_on": build.built_on,
        "metrics": scored,
        "preprocessing": card["inputs"],
        "run_it": f"python {PREDICT} IMAGE" if PREDICT in content else f"feed the inputs of {CARD} to {card['file']}",
        "files": {name: {"sha256": sha256_bytes(data), "bytes": len(data)} for name, data in sorted(content.items())},
    }


def _packed(content: Mapping[str, bytes], top: str) -> bytes:
    """A .tar.gz of files in one folder, without times, users or anything else that differs between two packings."""
    plain = io.BytesIO()
    with tarfile.open(fileobj=plain, mode="w", format=tarfile.USTAR_FORMAT) as archive:
        for name in sorted(content):
            info = tarfile.TarInfo(f"{top}/{name}")
            info.size, info.mode = len(content[name]), 0o644
            archive.addfile(info, io.BytesIO(content[name]))
    return gzip.compress(plain.getvalue(), 9, mtime=0)
