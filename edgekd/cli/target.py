"""edgekd target add|list|check: devices that measure over ssh."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from edgekd.cli.shared import JsonOption, LogFormatOption, QuietOption, print_json
from edgekd.errors import ConfigError, UnavailableError

app = typer.Typer(
    help="Name devices that measure over ssh, and see what they have.",
    no_args_is_help=True,
    rich_markup_mode=None,
    add_completion=False,
)
BookOption = Annotated[
    Path | None,
    typer.Option("--file", envvar="EDGEKD_TARGETS", help="File of names (default: in your configuration folder)."),
]


@app.command("add")
def add(
    name: Annotated[str, typer.Argument(metavar="NAME", help="What to call the device.")],
    host: Annotated[str, typer.Argument(metavar="ssh://USER@HOST[:PORT]", help="Where it is.")],
    python: Annotated[
        str | None,
        typer.Option("--python", help="The interpreter there, of a venv say; relative paths begin at the home folder."),
    ] = None,
    file: BookOption = None,
    json_: JsonOption = False,
    log_format: LogFormatOption = "text",
    quiet: QuietOption = False,
) -> None:
    """Give a device a name for `host:` and `--host`."""
    from edgekd.bench.targets.address import parse_address
    from edgekd.bench.targets.book import Device, add_device, book_path

    device = Device(parse_address(host), python)
    add_device(file or book_path(), name, device)
    if json_:
        print_json({"name": name, "host": str(device.address), "python": python})
    elif not quiet:
        typer.echo(f"{name}: {device.address}; `edgekd target check {name}` shows what it has")


@app.command("list")
def list_(
    file: BookOption = None,
    json_: JsonOption = False,
    log_format: LogFormatOption = "text",
    quiet: QuietOption = False,
) -> None:
    """List the devices that have a name."""
    from edgekd.bench.targets.book import book_path, read_book

    devices = read_book(file or book_path())
    if json_:
        rows = [{"name": name, "host": str(one.address), "python": one.python} for name, one in devices.items()]
        print_json(rows)
        return
    for name, one in devices.items():
        typer.echo(f"{name:<16} {one.address}{f'  {one.python}' if one.python else ''}")


@app.command("check")
def check(
    name: Annotated[str, typer.Argument(metavar="NAME", help="A name, or ssh://USER@HOST[:PORT].")],
    runtime: Annotated[
        list[str] | None, typer.Option("--runtime", help="An engine that must be there; by default any one.")
    ] = None,
    file: BookOption = None,
    json_: JsonOption = False,
    log_format: LogFormatOption = "text",
    quiet: QuietOption = False,
) -> int:
    """Connect, and show what the device is, what it has, what is missing, and the command for it."""
    from edgekd.bench.targets.book import target_for
    from edgekd.config.settings import did_you_mean
    from edgekd.runtimes.registry import RUNTIMES

    for wanted in runtime or ():
        if wanted not in RUNTIMES:
            raise ConfigError(f"--runtime {wanted}: is not known", hint=did_you_mean(wanted, RUNTIMES))
    facts = target_for(name, file).probe(runtime or list(RUNTIMES))
    lacking = [row["what"] for row in facts["missing"]]
    ready = not lacking if runtime else facts["numpy"] is not None and any(facts["engines"].values())
    if json_:
        print_json({**facts, "ready": ready})
    else:
        for line in _lines(facts, [] if ready else facts["missing"]):
            typer.echo(line)
        typer.echo("ready to measure" if ready else f"not ready: {', '.join(lacking)} missing")
    return 0 if ready else UnavailableError.exit_code


def _lines(facts: dict[str, Any], missing: list[dict[str, str]]) -> list[str]:
    """The facts for people, one a line, and what brings that which is missing."""
    memory, disk = facts["memory_free_bytes"], facts["disk_free_bytes"]
    rows = {
        "board": facts["board"],
        "cpu": f"{facts['machine']['cpu']}, {facts['machine']['cores']} cores",
        "system": facts["os"],
        "python": f"{facts['python']} ({facts['executable']})",
        "numpy": facts["numpy"],
        **facts["engines"],
        "gpu": facts["machine"]["gpu"],
        "gpu driver": facts["machine"]["gpu_driver"],
        "jetson linux": facts["jetson"],
        "power mode": facts["power_mode"],
        "free memory": None if memory is None else f"{memory / 1e6:.0f} MB",
        "free disk": None if disk is None else f"{disk / 1e6:.0f} MB",
    }
    nvidia = ("gpu", "gpu driver", "jetson linux")
    found = [f"{n:<13} {'-' if v is None else v}" for n, v in rows.items() if v is not None or n not in nvidia]
    return [*found, *(f"{row['what']} is missing: {row['command']}" for row in missing)]
