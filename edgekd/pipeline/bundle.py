"""One archive with all that a device needs of a build; the same build gives the same bytes (torch-free)."""

from __future__ import annotations

import gzip
import io
import json
import tarfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import edgekd
from edgekd.errors import ConfigError, StageError
from edgekd.export.card import CARD, PREDICT, read_card
from edgekd.files import sha256_bytes, sha256_file, write_atomic
from edgekd.report.draw import read_report
from edgekd.report.schema import Build, Report

MANIFEST = "manifest.json"
# Beside a build, and of no use on another machine: the form compiled for this one, and what layers ran as.
_LEFT = {"layers.json", "model.blob", "model.blob.json"}
_SUFFIX = ".tar.gz"


def bundle(run: Path, target: str | None, file: Path | None, licence: Path | None) -> tuple[Path, dict[str, Any]]:
    """Pack the chosen build of a run into one archive, and return its path and its manifest.

    Args:
        run: folder of a run.
        target: which target's build; needed where there are several.
        file: the archive; by default NAME-TARGET.tar.gz beside the run's report.
        licence: file with the licence of the network.

    Raises:
        ConfigError: there is no such run or target, or nothing was chosen for it.
        StageError: a file is not what the report says.
    """
    report = read_report(run)
    build = _chosen(report, target)
    assert build.path is not None
    folder, card = read_card(run / build.path)
    if build.sha256 != sha256_file(run / build.path):
        raise StageError(f"{run / build.path}: is not what the report says", hint="run the pipeline again")
    content = {path.name: path.read_bytes() for path in sorted(folder.iterdir()) if path.name not in _LEFT}
    content |= _texts(report, card, licence)
    manifest = _manifest(report, build, card, content)
    content[MANIFEST] = (json.dumps(manifest, indent=1, sort_keys=True) + "\n").encode()
    name = f"{report.pipeline}-{build.target}"
    archive = file or run / f"{name}{_SUFFIX}"
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
