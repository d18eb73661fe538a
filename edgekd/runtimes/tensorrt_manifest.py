"""engine.json beside an engine: what it was built by and for, and whether it may be loaded here.

An engine is machine code for some GPUs and one version of TensorRT. All of that is compared before TensorRT sees the
file, so that a wrong one is one line with a hint and not a crash. Python 3.8, the standard library alone.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from edgekd.errors import UnavailableError
from edgekd.runtimes.nvidia import Gpu

MANIFEST = "engine.json"
_HERE = "build it again here"


def read(engine: Path) -> dict[str, Any]:
    """The manifest beside an engine.

    Raises:
        UnavailableError: there is none, or it is no JSON object.
    """
    try:
        facts = json.loads((engine.parent / MANIFEST).read_text())
    except (OSError, ValueError):
        facts = None
    if not isinstance(facts, dict):
        raise UnavailableError(
            f"{engine.name} has no {MANIFEST} beside it that says what it was built for",
            hint="keep the two files of a build together, or build it again",
        )
    return facts


def write(folder: Path, facts: Mapping[str, Any]) -> None:
    """Write the manifest of the engine in a folder."""
    (folder / MANIFEST).write_text(json.dumps(facts, sort_keys=True, indent=1))


def check(engine: Path, facts: Mapping[str, Any], *, runtime: str, version: str, gpu: Gpu | None) -> None:
    """Refuse an engine that this runtime, its version or this GPU cannot run. Without a GPU, all but that is checked.

    Raises:
        UnavailableError: with what the engine was built for, and what is here.
    """
    built_by = facts.get("runtime", runtime)
    if built_by != runtime:
        raise UnavailableError(
            f"{engine.name} was built by {built_by}, not by {runtime}", hint=f"load it with runtime: {built_by}"
        )
    _check_version(engine, facts, runtime, version)
    if gpu is None:
        return
    listed = [str(one) for one in facts.get("compute_capabilities") or ()]
    if listed:
        _check_listed(engine, listed, gpu)
    else:
        _check_hardware(engine, facts, gpu)


def _check_version(engine: Path, facts: Mapping[str, Any], runtime: str, version: str) -> None:
    built = str(facts.get("version"))
    if built == version:
        return
    if not facts.get("version_compatible"):
        again = " or build it with version_compatible: true" if runtime == "tensorrt" else ""
        raise UnavailableError(
            f"{engine.name} was built by {runtime} {built}, here is {version}",
            hint=f"{_HERE}: an engine belongs to one version{again and ','}{again}",
        )
    if _numbers(version) < _numbers(built):
        raise UnavailableError(
            f"{engine.name} runs under {runtime} {built} and later, here is {version}",
            hint=f"install {runtime} {built}, or {_HERE}",
        )


def _check_listed(engine: Path, listed: Sequence[str], gpu: Gpu) -> None:
    if gpu.compute_capability is not None and gpu.compute_capability not in listed:
        raise UnavailableError(
            f"{engine.name} was built for compute capability {', '.join(listed)}, this GPU ({gpu.name}) has "
            f"{gpu.compute_capability}",
            hint=f'build it again with "{gpu.compute_capability}" in the target\'s `compute_capabilities`',
        )


def _check_hardware(engine: Path, facts: Mapping[str, Any], gpu: Gpu) -> None:
    """By hardware compatibility: Ampere and later, GPUs of the same compute capability, or the same GPU alone."""
    level, built, here = facts.get("hardware_compatibility", "none"), facts.get("compute_capability"), gpu
    if level == "ampere_plus":
        if here.compute_capability is not None and _numbers(here.compute_capability) < [8]:
            raise UnavailableError(
                f"{engine.name} runs on GPUs from compute capability 8.0 on, this one ({here.name}) has "
                f"{here.compute_capability}",
                hint=f"{_HERE}, without hardware_compatibility",
            )
        return
    if None not in (built, here.compute_capability) and built != here.compute_capability:
        raise UnavailableError(
            f"{engine.name} was built for compute capability {built}, this GPU ({here.name}) has "
            f"{here.compute_capability}",
            hint=f"{_HERE}, or with hardware_compatibility: ampere_plus",
        )
    if level != "same_compute_capability" and None not in (facts.get("gpu"), here.name) and facts["gpu"] != here.name:
        raise UnavailableError(
            f"{engine.name} was built on {facts['gpu']}, here is {here.name}",
            hint=f"{_HERE}, or with hardware_compatibility: same_compute_capability",
        )


def _numbers(version: str) -> list[int]:
    """10.13.2.6 -> [10, 13, 2, 6]; what is no number ends it."""
    found: list[int] = []
    for part in version.split("."):
        if not part.isdigit():
            break
        found.append(int(part))
    return found
