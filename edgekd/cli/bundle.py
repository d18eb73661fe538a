"""edgekd bundle DIR: one archive with a run's build and all that a device needs to use it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from edgekd.cli.shared import JsonOption, LogFormatOption, QuietOption, print_json


def bundle(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="Folder of a run.")],
    target: Annotated[str | None, typer.Option("--target", help="Which target's build, if there are several.")] = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="The archive [default: DIR-TARGET.tar.gz, beside DIR].")
    ] = None,
    licence: Annotated[Path | None, typer.Option("--licence", help="File with the licence of the network.")] = None,
    json_: JsonOption = False,
    log_format: LogFormatOption = "text",
    quiet: QuietOption = False,
) -> None:
    """Pack the chosen build with labels, preprocessing, manifest, predict.py and licence into one archive."""
    from edgekd.pipeline.bundle import bundle as pack

    path, manifest = pack(folder, target, output, licence)
    if json_:
        print_json({"archive": str(path), **manifest})
    elif not quiet:
        what = f"{manifest['target']} in {manifest['precision']}, the chosen build"
        typer.echo(f"{path}: {what}; {path.stat().st_size:,} bytes; {manifest['run_it']}")
