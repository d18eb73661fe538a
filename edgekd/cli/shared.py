"""What the commands share: common options, output, and errors in two lines. Loads nothing heavy."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from edgekd.errors import ConfigError, EdgekdError

if TYPE_CHECKING:
    from edgekd.pipeline.log import Log
    from edgekd.report.schema import Report

LogFormat = Literal["text", "json"]
JsonOption = Annotated[
    bool,
    typer.Option("--json", help="Print one JSON document on standard output and nothing else; errors are one too."),
]
QuietOption = Annotated[bool, typer.Option("--quiet", help="No progress, only results and errors.")]
LogFormatOption = Annotated[
    LogFormat,
    typer.Option("--log-format", envvar="EDGEKD_LOG_FORMAT", help="Form of progress and errors on standard error."),
]
StoreOption = Annotated[
    Path, typer.Option("--store", envvar="EDGEKD_STORE", help="Folder of the store of artefacts.", show_default=True)
]
StoreModeOption = Annotated[
    Literal["ro", "rw"],
    typer.Option(
        "--store-mode",
        envvar="EDGEKD_STORE_MODE",
        help="ro: read the store, never write to it; results stay in --out.",
    ),
]
RemoteStoreOption = Annotated[
    str | None,
    typer.Option(
        "--remote-store", envvar="EDGEKD_REMOTE_STORE", metavar="URL", help="Second level of the store, any fsspec URL."
    ),
]
OfflineOption = Annotated[
    bool,
    typer.Option("--offline", envvar="EDGEKD_OFFLINE", help="Use no remote store; no stage uses a network."),
]
FileArgument = Annotated[Path, typer.Argument(metavar="FILE", help="A pipeline file.")]
SetOption = Annotated[
    list[str] | None,
    typer.Option(
        "--set", metavar="A.B=C", help="Override a value; stages by name, `data.path` is that of the data source."
    ),
]
DEFAULT_STORE = Path(".edgekd/store")


def make_log(log_format: str, quiet: bool) -> Log:
    """The log that the options ask for."""
    from edgekd.pipeline.log import Log

    return Log(form=log_format, quiet=quiet)


def print_json(value: Any) -> None:
    """One JSON document on standard output."""
    sys.stdout.write(json.dumps(value, indent=1) + "\n")


def show_report(report: Report, folder: Path, also: str = "also report.md, report.json, junit.xml") -> None:
    """The tables of a run on standard output, and where its report lies."""
    from edgekd.report.table import render_text

    table = render_text(report)
    if table:
        typer.echo(table)
    page = folder / "report.html"
    if not page.is_file():
        return
    if report.status != "failed":
        typer.echo(f"report: {page}  ({also})")
        return
    earlier = folder / "artifacts" / "builds"
    stale = f"; {earlier} is of an earlier one" if not report.builds and earlier.is_dir() else ""
    typer.echo(f"report of the failed run: {page}{stale}")


def say_error(error: EdgekdError, words: Sequence[str] = ()) -> None:
    """Say an error in the form that the words of the command line (and EDGEKD_LOG_FORMAT) ask for.

    Standard error gets `error: ..` and `help: ..` for each problem, or a JSON object per problem; with `--json`
    standard output gets {"error": {message, hint, exit_code, problems[{message, hint}]}} as its one document.
    In a GitHub job a message with a place in a file becomes an annotation of that line too.
    """
    from edgekd.pipeline.log import annotate

    problems = error.problems if isinstance(error, ConfigError) else ((error.message, error.hint),)
    for message, hint in problems:
        if _log_form(words) == "json":
            print(json.dumps({"level": "error", "message": message, "hint": hint}), file=sys.stderr)
            continue
        print(f"error: {message}", file=sys.stderr)
        if hint:
            print(f"help: {hint}", file=sys.stderr)
        annotate(message)
    if "--json" in words:
        rows = [{"message": message, "hint": hint} for message, hint in problems]
        print_json({"error": {**rows[0], "exit_code": error.exit_code, "problems": rows}})


def explain_usage(error: Exception) -> ConfigError | None:
    """What is wrong with a command line; None when the error is not about one."""
    message = getattr(error, "format_message", None)
    if message is None:
        return None
    context = getattr(error, "ctx", None)
    path = context.command_path if context is not None else "edgekd"
    hint = f"`{path} --help` shows what it takes"
    refused, parameter = getattr(error.__cause__, "errors", None), getattr(error, "param", None)
    if refused is not None and parameter is not None:  # by pydantic, in a voice of its own
        from edgekd.config.settings import in_words

        detail = refused(include_url=False)[0]
        option = next((name for name in parameter.opts if name.startswith("--")), parameter.name.upper())
        return ConfigError(f"{option} {detail['input']}: {in_words(detail['msg']).rstrip('.')}", hint=hint)
    text = " ".join(str(message()).split()).replace("Value error, ", "").rstrip(".")
    if type(error).__name__ == "NoArgsIsHelpError":
        text = f"{path} needs a command: {', '.join(context.command.commands)}" if context else "a command is missing"
    return ConfigError(text[0].lower() + text[1:], hint=hint)


def keep_traceback(error: BaseException) -> Path:
    """Write a traceback to a file of its own and return its path."""
    import tempfile
    import traceback

    handle, name = tempfile.mkstemp(prefix="edgekd-bug-", suffix=".txt")
    with os.fdopen(handle, "w") as stream:
        stream.write("".join(traceback.format_exception(error)))
    return Path(name)


def check_stage_names(option: str, given: Sequence[str], known: Sequence[str]) -> None:
    """Raise ConfigError for a stage that the pipeline file does not have."""
    from edgekd.config.settings import did_you_mean

    for name in given:
        if name not in known:
            raise ConfigError(f"{option} {name}: this file has no such stage", hint=did_you_mean(name, known))


def _log_form(words: Sequence[str]) -> str:
    """The form of messages that a command line asks for, read before (or without) parsing it."""
    form = os.environ.get("EDGEKD_LOG_FORMAT", "text")
    for word, following in zip(words, [*words[1:], ""], strict=False):
        if word == "--log-format":
            form = following
        elif word.startswith("--log-format="):
            form = word.partition("=")[2]
    return form
