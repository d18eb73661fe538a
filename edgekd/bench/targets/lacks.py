"""What a device lacks for some engines, from what it says of itself, and for each thing the command that brings it."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from typing import Any

from edgekd.bench.targets.address import Address
from edgekd.runtimes.registry import ENGINE_PACKAGES, OLDEST

_VENV = "edgekd-venv"  # in the home folder


def missing(address: Address, facts: Mapping[str, Any]) -> list[dict[str, str]]:
    """Rows of {"what", "command"}: numpy, engines that are not there, and engines that are too old.

    Args:
        address: the device.
        facts: see `bench.probe.facts`.
    """
    wanted = {"numpy": "numpy"} if facts["numpy"] is None else {}
    for name, version in facts["engines"].items():
        if version is None:
            wanted[name] = ENGINE_PACKAGES.get(name, (name.partition(":")[0],))[0]
        elif name in OLDEST and int(version.partition(".")[0]) < OLDEST[name]:
            wanted[f"{name} {OLDEST[name]} or later (it has {version})"] = f"{ENGINE_PACKAGES[name][0]}>={OLDEST[name]}"
    return [
        {"what": what, "command": _command(address, facts, package, list(wanted.values()))}
        for what, package in wanted.items()
    ]


def _command(address: Address, facts: Mapping[str, Any], package: str, all_: list[str]) -> str:
    """What brings a package to the interpreter, or to one beside it where the system keeps its own for itself."""
    python = facts["executable"]
    if package.startswith("tensorrt") and facts["jetson"]:
        # NVIDIA's wheels are not for a Jetson's GPU: the bindings come with JetPack, for the system's own Python.
        if ">=" in package:
            return "flash JetPack 6.1 or later (https://developer.nvidia.com/embedded/jetpack)"
        return _ssh(address, "sudo apt-get install -y python3-libnvinfer", asks=True)
    if facts["pip"] and not facts["managed"]:
        return _ssh(address, shlex.join([python, "-m", "pip", "install", package]))
    install = [f"{_VENV}/bin/pip", "install", *all_]
    make = f"{shlex.join([python, '-m', 'venv', '--system-site-packages', _VENV])} && {shlex.join(install)}"
    first = "" if facts["venv"] else "sudo apt-get install -y python3-venv && "
    made = _ssh(address, first + make, asks=bool(first))
    return f"{made} && edgekd target add NAME {address} --python {_VENV}/bin/python"


def _ssh(address: Address, words: str, *, asks: bool = False) -> str:
    """A command for the user to type; one that asks for a password needs a terminal."""
    return shlex.join(["ssh", *(["-t"] if asks else []), *address.words[:-2], address.host, words])
