"""edgekd store ls|gc|verify: look after the store of artefacts."""

from __future__ import annotations

import time
from typing import Annotated, Any

import typer

from edgekd.cli.shared import DEFAULT_STORE, JsonOption, LogFormatOption, QuietOption, StoreOption, print_json

app = typer.Typer(
    help="Look after the store of artefacts.", no_args_is_help=True, rich_markup_mode=None, add_completion=False
)


@app.command("ls")
def ls(
    store: StoreOption = DEFAULT_STORE,
    json_: JsonOption = False,
    log_format: LogFormatOption = "text",
    quiet: QuietOption = False,
) -> None:
    """List artefacts, the newest first."""
    from edgekd.store import Store

    rows: list[dict[str, Any]] = [
        {
            "key": artifact.key,
            "stage": artifact.record.get("stage"),
            "pipeline": artifact.record.get("pipeline"),
            "bytes": sum(artifact.path(name).stat().st_size for name in artifact.files),
            "created": artifact.record.get("created"),
        }
        for artifact in Store(store).all()
    ]
    if json_:
        print_json(rows)
        return
    for row in rows:
        created = time.strftime("%Y-%m-%d %H:%M", time.localtime(row["created"] or 0))
        typer.echo(f"{row['key'][:12]}  {created}  {row['bytes']:>12,} B  {row['pipeline']}/{row['stage']}")


@app.command("gc")
def gc(
    keep: Annotated[int, typer.Option("--keep", min=0, help="How many of the newest artefacts stay.")] = 50,
    store: StoreOption = DEFAULT_STORE,
    json_: JsonOption = False,
    log_format: LogFormatOption = "text",
    quiet: QuietOption = False,
) -> None:
    """Delete old artefacts and abandoned work."""
    from edgekd.store import Store

    count, size = Store(store).collect(keep=keep)
    if json_:
        print_json({"removed": count, "bytes": size})
    else:
        typer.echo(f"removed {count} artefacts, {size:,} bytes")


@app.command("verify")
def verify(
    store: StoreOption = DEFAULT_STORE,
    json_: JsonOption = False,
    log_format: LogFormatOption = "text",
    quiet: QuietOption = False,
) -> int:
    """Check every artefact against its digests; changed ones are named (a run would build them again)."""
    from edgekd.store import Store

    place = Store(store)
    artifacts = place.all()
    problems = [problem for artifact in artifacts for problem in place.problems(artifact)]
    if json_:
        print_json({"artefacts": len(artifacts), "problems": problems})
    else:
        typer.echo("\n".join(problems) if problems else f"{len(artifacts)} artefacts are as they were written")
    return 4 if problems else 0
