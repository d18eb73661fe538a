"""What a device says of itself before anything is measured on it. Python 3.8, standard library only."""

from __future__ import annotations

import importlib.util
import os
import platform
import shutil
import sys
import sysconfig
from collections.abc import Mapping
from importlib.machinery import PathFinder
from typing import Any

from edgekd.bench import machine
from edgekd.runtimes.registry import ENGINE_PACKAGES


def facts(job: Mapping[str, Any]) -> dict[str, Any]:
    """The answer to {"mode": "probe", "runtimes": [..]}.

    `machine` (see `machine.fingerprint`), `board`, `os`, `python`, `executable`, `numpy`, `engines` {runtime: version
    or None}, `power_mode`, `memory_free_bytes`, and `disk_free_bytes` of the folder that it runs in. Unknown is None.
    Of a Jetson `jetson`, the release of its Linux. Of the interpreter: whether it has `pip` and can make a `venv`, and
    whether it is `managed` by the system, which then lets nobody else install into it.
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
        "jetson": _jetson(),
        "pip": PathFinder.find_spec("pip") is not None,
        "venv": PathFinder.find_spec("ensurepip") is not None,
        "managed": _managed(),
    }


def engine_version(name: str) -> str | None:
    """Version of an engine without importing it; None: it is not installed here.

    Of an adapter of one's own ("module:Class") the version is "found".
    """
    if ":" in name:
        return "found" if importlib.util.find_spec(name.partition(":")[0]) else None
    versions = [machine.package_version(package) for package in ENGINE_PACKAGES.get(name, (name,))]
    return next((version for version in versions if version), None)


def _managed() -> bool:
    """Whether PEP 668 keeps pip away from this interpreter: Debian 12 and later, Raspberry Pi OS, Ubuntu 24.04."""
    mark = os.path.join(sysconfig.get_path("stdlib"), "EXTERNALLY-MANAGED")
    return sys.prefix == sys.base_prefix and os.path.exists(mark)


def _jetson() -> str | None:
    """NVIDIA's own line about the release, `R36 (release), REVISION: 4.3, ..`."""
    try:
        with open("/etc/nv_tegra_release", encoding="utf-8", errors="replace") as stream:
            return stream.readline().strip("# \n") or None
    except OSError:
        return None


def _system() -> str:
    """The distribution's own name where it says one, with kernel and architecture."""
    name = machine.distribution() or platform.system()
    return " ".join((name, platform.release(), platform.machine()))
