"""edgekd store ls|gc|verify: look after the store of artefacts."""

from __future__ import annotations

import re
import time
from pathlib import Path
from typing import Annotated, Any

import typer

from edgekd.cli.shared import DEFAULT_STORE, JsonOption, LogFormatOption, QuietOption, StoreOption, print_json
from edgekd.errors import ConfigError

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
    """List artefacts, those used last first."""
    from edgekd.store import Store
    from edgekd.store.collect import disk_bytes

    rows: list[dict[str, Any]] = [
        {
            "key": artifact.key,
            "stage": artifact.record.get("stage"),
            "pipeline": artifact.record.get("pipeline"),
            "bytes": disk_bytes(artifact.folder),
            "created": artifact.record.get("created"),
            "seconds": artifact.record.get("seconds"),
        }
        for artifact in Store(_there(store)).all()
    ]
    if json_:
        print_json(rows)
        return
    for row in rows:
        created = time.strftime("%Y-%m-%d %H:%M", time.localtime(row["created"] or 0))
        typer.echo(f"{row['key'][:12]}  {created}  {row['bytes']:>12,} B  {row['pipeline']}/{row['stage']}")


@app.command("gc")
def gc(
    keep: Annotated[int, typer.Option("--keep", min=0, help="How many artefacts stay, those used last.")] = 50,
    max_size: Annotated[
        str | None, typer.Option("--max-size", metavar="SIZE", help='Most that stays, e.g. "10GB" (kB, MB, GB, TB).')
    ] = None,
    store: StoreOption = DEFAULT_STORE,
    json_: JsonOption = False,
    log_format: LogFormatOption = "text",
    quiet: QuietOption = False,
) -> None:
    """Delete what was not used for longest, and abandoned work; never what a live run or a pipeline's newest uses."""
    from edgekd.store import Store
    from edgekd.store.collect import collect

    most = None if max_size is None else _bytes(max_size)
    count, size, in_use = collect(Store(_there(store)), keep=keep, max_bytes=most)
    if json_:
        print_json({"removed": count, "bytes": size, "in_use": in_use})
        return
    kept = f"; {in_use} more are protected: a live run, or a pipeline's newest, uses them" if in_use else ""
    typer.echo(f"removed {count} artefacts and caches, {size:,} bytes{kept}")


def _there(store: Path) -> Path:
    """A store that is there, or the default one, which no run may have made yet.

    Raises:
        ConfigError: another one that is not there, or one that is a file.
    """
    if store.is_dir() or (store == DEFAULT_STORE and not store.exists()):
        return store
    wrong = "is a file, not a folder" if store.exists() else "there is no such folder"
    raise ConfigError(f"--store {store}: {wrong}", hint="give the folder of a store (also EDGEKD_STORE)")


def _bytes(text: str) -> int:
    """A size such as 10GB in bytes; units are powers of 1000, those with an `i` powers of 1024."""
    found = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([kKMGT]?)(i?)B?\s*", text)
    if found is None:
        raise ConfigError(f"--max-size {text}: is no size", hint="write e.g. --max-size 10GB")
    return int(
        float(found[1]) * (1024 if found[3] else 1000) ** ("", "k", "M", "G", "T").index(found[2].replace("K", "k"))
    )


@app.command("verify")
def verify(
    store: StoreOption = DEFAULT_STORE,
    json_: JsonOption = False,
    log_format: LogFormatOption = "text",
    quiet: QuietOption = False,
) -> int:
    """Check every artefact against its digests; changed ones are named (a run would build them again)."""
    from edgekd.store import Store

    count, problems = Store(_there(store)).check()
    if json_:
        print_json({"artefacts": count, "problems": problems})
    else:
        typer.echo("\n".join(problems) if problems else f"{count} artefacts are as they were written")
    return 4 if problems else 0
