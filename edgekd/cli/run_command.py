"""edgekd run FILE: the whole chain, and its report."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from edgekd.cli.shared import (
    DEFAULT_STORE,
    FileArgument,
    JsonOption,
    LogFormatOption,
    QuietOption,
    SetOption,
    StoreOption,
    check_stage_names,
    make_log,
    print_json,
)


def run(
    file: FileArgument,
    sets: SetOption = None,
    to: Annotated[str | None, typer.Option("--to", metavar="STAGE", help="Stop after this stage.")] = None,
    force: Annotated[list[str] | None, typer.Option("--force", metavar="STAGE", help="Run this stage again.")] = None,
    remeasure: Annotated[bool, typer.Option("--remeasure", help="Measure latency again.")] = False,
    out: Annotated[
        Path | None, typer.Option("--out", help="Folder for the report and the artefacts [default: runs/NAME].")
    ] = None,
    store: StoreOption = DEFAULT_STORE,
    offline: Annotated[
        bool,
        typer.Option("--offline", envvar="EDGEKD_OFFLINE", help="Use no network; no stage does, with or without it."),
    ] = False,
    json_: JsonOption = False,
    log_format: LogFormatOption = "text",
    quiet: QuietOption = False,
) -> int:
    """Run a pipeline file: every stage from the store or anew, then the report and the budgets."""
    log = make_log(log_format, quiet or json_)
    from edgekd.pipeline.schema import load_pipeline

    pipeline = load_pipeline(file, sets or ())
    names = [stage.name for stage in pipeline.stages]
    check_stage_names("--to", [to] if to else [], names)
    check_stage_names("--force", force or [], names)
    from edgekd.pipeline.runner import RunOptions
    from edgekd.pipeline.runner import run as run_pipeline

    folder = out or Path("runs") / pipeline.settings.name
    options = RunOptions(folder, store.absolute(), to, tuple(force or ()), remeasure)
    outcome = run_pipeline(pipeline, options, log)
    if json_:
        print_json(outcome.report)
        return outcome.exit_code
    from edgekd.report.schema import Report
    from edgekd.report.table import render_text

    table = render_text(Report.model_validate(outcome.report))
    if table:
        typer.echo(table)
    if (folder / "report.html").is_file():
        typer.echo(f"report: {folder / 'report.html'}  (also report.md, report.json, junit.xml)")
    return outcome.exit_code
