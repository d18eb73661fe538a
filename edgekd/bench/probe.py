"""What a device says of itself before anything is measured on it. Python 3.8, standard library only."""

from __future__ import annotations

import importlib.util
import os
import platform
import shutil
import sys
from collections.abc import Mapping
from typing import Any

from edgekd.bench import machine
from edgekd.runtimes.registry import ENGINE_PACKAGES


def facts(job: Mapping[str, Any]) -> dict[str, Any]:
    """The answer to {"mode": "probe", "runtimes": [..]}.

    `machine` (see `machine.fingerprint`), `board`, `os`, `python`, `executable`, `numpy`, `engines` {runtime: version
    or None}, `power_mode`, `memory_free_bytes`, and `disk_free_bytes` of the folder that it runs in. Unknown is None.
    """
    return {
        "machine": machine.fingerprint(),
        "board": machine.board() or machine.cpu_model(),
        "os": _system(),
        "python": platform.python_version(),
        "executable": sys.executable,
        "numpy": machine.package_version("numpy"),
        "engines": {name: engine_version(name) for name in job["runtimes"]},
        "power_mode": machine.power_mode(),
        "memory_free_bytes": machine.memory_free_bytes(),
        "disk_free_bytes": shutil.disk_usage(os.curdir).free,
    }


def engine_version(name: str) -> str | None:
    """Version of an engine without importing it; None: it is not installed here.

    Of an adapter of one's own ("module:Class") the version is "found".
    """
    if ":" in name:
        return "found" if importlib.util.find_spec(name.partition(":")[0]) else None
    versions = [machine.package_version(package) for package in ENGINE_PACKAGES.get(name, (name,))]
    return next((version for version in versions if version), None)


def _system() -> str:
    """The distribution's own name where it says one, with kernel and architecture."""
    name = machine.distribution() or platform.system()
    return " ".join((name, platform.release(), platform.machine()))
