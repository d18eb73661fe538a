"""edgekd plan FILE: what each stage would do, why, and how long it took last."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

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
from edgekd.errors import EdgekdError

if TYPE_CHECKING:
    from edgekd.pipeline.plan import Planner, Step


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
    from edgekd.pipeline.schema import load_pipeline

    pipeline = load_pipeline(file, sets or ())
    from edgekd.pipeline.failures import check_folders
    from edgekd.pipeline.plan import Planner, frozen_answers
    from edgekd.store import StorePlace

    place = StorePlace(store.absolute(), store_mode, None if offline else remote_store)
    if store_mode == "rw":
        check_folders({"--store": store})
    with tempfile.TemporaryDirectory() as scratch:
        planner = Planner.open(pipeline, place.open(Path(scratch), make_log(log_format, quiet or json_).warning))
        planner.fetch = False
        steps = planner.all()
        refused = _refused(planner, steps)  # a device leaves what it says of itself in `scratch` with a read-only store
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
        problem = refused and {"message": refused.message, "hint": refused.hint, "exit_code": refused.exit_code}
        print_json({"pipeline": pipeline.settings.name, "stages": rows, "refused": problem})
    else:
        for line in _lines(rows, first=planner.last.first):
            typer.echo(line)
    if refused is not None:
        if not json_:
            typer.echo(f"`edgekd run` would end with {refused.exit_code} before the first stage that would run:")
        make_log(log_format, quiet).error(refused.message, refused.hint)
        return refused.exit_code
    return int(exit_code and not all(step.cached for step in steps))


def _refused(planner: Planner, steps: list[Step]) -> EdgekdError | None:
    """What `edgekd run` would say of engines and devices before the first stage that is not in the store."""
    from edgekd.pipeline.preflight import check_targets

    first = next((step.entry for step in steps if not step.cached), None)
    if first is None:
        return None
    try:
        check_targets(planner.pipeline, planner, first, list(planner.pipeline.stages))
    except EdgekdError as error:
        return error
    return None


def _lines(rows: list[dict[str, Any]], *, first: bool) -> Iterator[str]:
    """One line for each stage. On a first run one more says why all of them would run, and theirs say nothing of it."""
    from edgekd.pipeline.keys import NEVER

    first = first and all(row["state"] == "would run" for row in rows)
    if first:
        yield f"the first run of this pipeline: all of its {len(rows)} stages would run"
    for row in rows:
        plain = first and (row["why"] == NEVER or row["why"].startswith("waits for "))
        told = [] if plain else [row["why"]]
        told += [row["frozen_outputs"]] if row["frozen_outputs"] and row["state"] == "would run" else []
        where = " (remote)" if row["cache"] == "remote" else ""
        took = f" [{row['seconds']:.1f} s last time]" if row["seconds"] is not None else ""
        yield f"{row['name']:<10} {row['state']:<10} {'; '.join(told)}{where}{took}".rstrip()
