"""edgekd report DIR: draw a run's report again from its report.json, and show the table."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from edgekd.cli.shared import JsonOption, LogFormatOption, QuietOption, print_json, show_report


def report(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="Folder of a run.")],
    json_: JsonOption = False,
    log_format: LogFormatOption = "text",
    quiet: QuietOption = False,
) -> None:
    """Draw report.html, report.md and junit.xml again from report.json."""
    from edgekd.report.draw import draw, read_report

    found = read_report(folder)
    where = folder if folder.is_dir() else folder.parent
    draw(found, where)
    if json_:
        print_json(found.model_dump(mode="json"))
    else:
        show_report(found, where)
