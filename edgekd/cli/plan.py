"""edgekd plan FILE: what each stage would do, and why."""

from __future__ import annotations

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
    print_json,
)


def plan(
    file: FileArgument,
    sets: SetOption = None,
    store: StoreOption = DEFAULT_STORE,
    exit_code: Annotated[bool, typer.Option("--exit-code", help="End with 1 if anything would run.")] = False,
    json_: JsonOption = False,
    log_format: LogFormatOption = "text",
    quiet: QuietOption = False,
) -> int:
    """Show each stage as cached or to run, and why."""
    from edgekd.pipeline.failures import check_folders
    from edgekd.pipeline.plan import Planner, frozen_answers
    from edgekd.pipeline.schema import load_pipeline
    from edgekd.store import Store

    pipeline = load_pipeline(file, sets or ())
    check_folders({"--store": store})
    steps = Planner.open(pipeline, Store(store.absolute())).all()
    rows = [
        {
            "name": s.entry.name,
            "state": "cached" if s.cached else "would run",
            "key": s.key,
            "why": s.why,
            "frozen_outputs": frozen_answers(pipeline, s.entry),
        }
        for s in steps
    ]
    if json_:
        print_json({"pipeline": pipeline.settings.name, "stages": rows})
    else:
        for row in rows:
            answers = f"; {row['frozen_outputs']}" if row["frozen_outputs"] and row["state"] == "would run" else ""
            typer.echo(f"{row['name']:<10} {row['state']:<10} {row['why']}{answers}")
    return int(exit_code and not all(step.cached for step in steps))
