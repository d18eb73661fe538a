"""edgekd doctor: what this machine has, what is missing, and the command for it."""

from __future__ import annotations

from typing import Any

import typer

from edgekd.cli.shared import JsonOption, LogFormatOption, QuietOption, print_json
from edgekd.errors import UnavailableError

_DEVICES = {"openvino": "CPU", "onnxruntime": "CPU", "tensorrt": "GPU", "tensorrt_rtx": "GPU"}


def doctor(json_: JsonOption = False, log_format: LogFormatOption = "text", quiet: QuietOption = False) -> None:
    """Show the machine, and for every engine whether it can build and run here."""
    from edgekd.bench.machine import environment

    found: dict[str, Any] = {"environment": environment(), "runtimes": _runtimes()}
    if json_:
        print_json(found)
        return
    for name, value in found["environment"].items():
        if name != "packages" and value is not None:
            typer.echo(f"{name:<14} {value}")
    for row in found["runtimes"]:
        words = [f"version {row['version']}"] if row["version"] else []
        words += ["builds" if row["builds"] else "does not build", "runs" if row["runs"] else "does not run"]
        typer.echo(
            f"{row['name']:<14} {', '.join(words)}" + (f"  ({row['problem']}; {row['hint']})" if row["problem"] else "")
        )
        for line in _offers(row):
            typer.echo(f"    {line}")


def _offers(row: dict[str, Any]) -> list[str]:
    """What to write in a target of this engine: devices with their full names and precisions, architectures."""
    lines = []
    for device in row["devices"]:
        told = [device["full_name"], ", ".join(device["precisions"])]
        told.append(device["compute_capability"] and f"compute capability {device['compute_capability']}")
        lines.append("  ".join([f"device: {device['name']}", *(word for word in told if word)]))
    if row["compute_capabilities"]:
        named = ", ".join(f'"{capability}"' for capability in row["compute_capabilities"])
        lines.append(f"compute_capabilities: [{named}]")
    return lines


def _runtimes() -> list[dict[str, Any]]:
    from edgekd.runtimes.registry import RUNTIMES

    return [_runtime(name) for name in RUNTIMES]


def _runtime(name: str) -> dict[str, Any]:
    from dataclasses import asdict

    from edgekd.runtimes.registry import runtime

    engine = runtime(name)
    row: dict[str, Any] = {"name": name, "version": None, "builds": False, "runs": False}
    row.update(devices=[], compute_capabilities=[], problem=None, hint=None)
    try:
        row["version"] = engine.version()
        row.update(asdict(engine.supports()))
        engine.check(_DEVICES[name], run=False)
        row["builds"] = True
        engine.check(_DEVICES[name], run=True)
        row["runs"] = True
    except UnavailableError as error:
        row["problem"], row["hint"] = error.message, error.hint
    return row
