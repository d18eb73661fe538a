"""edgekd run FILE: the whole chain, and its report."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from edgekd.cli.shared import (
    DEFAULT_STORE,
    FileArgument,
    JsonOption,
    LogFormatOption,
    OfflineOption,
    QuietOption,
    RemoteStoreOption,
    SetOption,
    StoreModeOption,
    StoreOption,
    check_stage_names,
    make_log,
    print_json,
    show_report,
)
from edgekd.errors import TryAgainError
from edgekd.files import launched

if TYPE_CHECKING:
    from edgekd.pipeline.start import RunOptions


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
    store_mode: StoreModeOption = "rw",
    remote_store: RemoteStoreOption = None,
    nproc: Annotated[
        int,
        typer.Option(
            "--nproc", min=1, help="Processes that train together on this machine; train.batch is shared out."
        ),
    ] = 1,
    max_restarts: Annotated[
        int, typer.Option("--max-restarts", min=0, help="With --nproc: start again after a process died, so often.")
    ] = 0,
    offline: OfflineOption = False,
    json_: JsonOption = False,
    log_format: LogFormatOption = "text",
    quiet: QuietOption = False,
) -> int:
    """Run a pipeline file: every stage from the store or anew, then the report and the budgets."""
    log = make_log(log_format, quiet or json_)
    from edgekd.pipeline.schema import load_pipeline

    if launched():
        from edgekd.pipeline.processes import done, meet

        if done():
            return 0
        meet()
    pipeline = load_pipeline(file, sets or ())
    names = [stage.name for stage in pipeline.stages]
    check_stage_names("--to", [to] if to else [], names)
    check_stage_names("--force", force or [], names)
    # What works is loaded for a file without a mistake.
    from edgekd.pipeline.processes import check_processes, follow, follows, launch
    from edgekd.pipeline.runner import run as run_pipeline
    from edgekd.pipeline.start import RunOptions, check_start
    from edgekd.store import StorePlace

    folder = out or Path("runs") / pipeline.settings.name
    place = StorePlace(store.absolute(), store_mode, None if offline else remote_store)
    options = RunOptions(folder, place, to, tuple(force or ()), remeasure)
    if nproc > 1 and not launched():
        check_processes(pipeline, nproc)
        check_start(pipeline, options)
        flags = [flag for flag, on in (("--remeasure", remeasure), ("--json", json_), ("--quiet", quiet)) if on]
        return launch([*_words(file, sets, options), *flags, "--log-format", log_format], nproc, max_restarts)
    if follows():
        return follow(pipeline, options)
    outcome = run_pipeline(pipeline, options, log)
    if launched() and outcome.exit_code == TryAgainError.exit_code:
        return outcome.exit_code  # torchrun starts it again: its results come then
    if json_:
        print_json(outcome.report)
        return outcome.exit_code
    from edgekd.report.schema import Report

    show_report(Report.model_validate(outcome.report), folder)
    return outcome.exit_code


def _words(file: Path, sets: list[str] | None, options: RunOptions) -> list[str]:
    """The command line of the processes that torchrun starts."""
    place = options.store
    words = ["run", str(file), "--out", str(options.out), "--store", str(place.folder), "--store-mode", place.mode]
    if place.remote is None:
        words.append("--offline")
    else:
        os.environ["EDGEKD_REMOTE_STORE"] = place.remote  # not for everybody to read in the list of processes
    for flag, values in (
        ("--set", sets or ()),
        ("--to", [options.to] if options.to else ()),
        ("--force", options.force),
    ):
        for value in values:
            words += [flag, value]
    return words
