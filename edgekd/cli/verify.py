"""edgekd verify DIR: is a run's folder what its manifest says."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from edgekd.cli.shared import JsonOption, LogFormatOption, QuietOption, print_json
from edgekd.errors import StageError


def verify(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="Folder of a run.")],
    json_: JsonOption = False,
    log_format: LogFormatOption = "text",
    quiet: QuietOption = False,
) -> int:
    """Check every byte of a run's folder against its manifest; ends with 4 if anything is not as it was written."""
    from edgekd.pipeline.verify import verify_folder

    found = verify_folder(folder)
    if json_:
        print_json({"ok": not found.problems, "files": found.files, "stages": found.stages, "problems": found.problems})
    else:
        whole = f"{found.files} files and {found.stages} stages are as they were written"
        typer.echo("\n".join(found.problems) if found.problems else whole)
    return StageError.exit_code if found.problems else 0
