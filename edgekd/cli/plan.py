"""edgekd plan FILE: what each stage would do, why, and how long it took last."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Annotated

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
    make_log,
    print_json,
)


def plan(
    file: FileArgument,
    sets: SetOption = None,
    store: StoreOption = DEFAULT_STORE,
    store_mode: StoreModeOption = "rw",
    remote_store: RemoteStoreOption = None,
    offline: OfflineOption = False,
    exit_code: Annotated[bool, typer.Option("--exit-code", help="End with 1 if anything would run.")] = False,
    json_: JsonOption = False,
    log_format: LogFormatOption = "text",
    quiet: QuietOption = False,
) -> int:
    """Show each stage as cached or to run, and why."""
    from edgekd.pipeline.failures import check_folders
    from edgekd.pipeline.plan import Planner, frozen_answers
    from edgekd.pipeline.schema import load_pipeline
    from edgekd.store import StorePlace

    pipeline = load_pipeline(file, sets or ())
    place = StorePlace(store.absolute(), store_mode, None if offline else remote_store)
    if store_mode == "rw":
        check_folders({"--store": store})
    with tempfile.TemporaryDirectory() as scratch:
        planner = Planner.open(pipeline, place.open(Path(scratch), make_log(log_format, quiet or json_).warning))
        planner.fetch = False
        steps = planner.all()
    rows = [
        {
            "name": s.entry.name,
            "state": "cached" if s.artifact is not None else "would run",
            "cache": s.artifact.found if s.artifact is not None else "miss",
            "key": s.key,
            "why": s.why,
            "seconds": s.seconds,
            "frozen_outputs": frozen_answers(pipeline, s.entry),
        }
        for s in steps
    ]
    if json_:
        print_json({"pipeline": pipeline.settings.name, "stages": rows})
    else:
        for row in rows:
            answers = f"; {row['frozen_outputs']}" if row["frozen_outputs"] and row["state"] == "would run" else ""
            where = " (remote)" if row["cache"] == "remote" else ""
            took = f" [{row['seconds']:.1f} s last time]" if row["seconds"] is not None else ""
            typer.echo(f"{row['name']:<10} {row['state']:<10} {row['why']}{where}{answers}{took}")
    return int(exit_code and not all(step.cached for step in steps))
