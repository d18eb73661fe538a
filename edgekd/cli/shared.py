"""What the commands share: common options, output, and errors as one line with one line of help."""

from __future__ import annotations

import json
import os
import sys
import tempfile
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from edgekd.config.settings import did_you_mean
from edgekd.errors import ConfigError, EdgekdError
from edgekd.pipeline.log import Log

JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON document and nothing else.")]
QuietOption = Annotated[bool, typer.Option("--quiet", help="No progress, only results and errors.")]
LogFormatOption = Annotated[
    str,
    typer.Option("--log-format", envvar="EDGEKD_LOG_FORMAT", help="Form of progress on standard error: text or json."),
]
StoreOption = Annotated[
    Path, typer.Option("--store", envvar="EDGEKD_STORE", help="Folder of the store of artefacts.", show_default=True)
]
FileArgument = Annotated[Path, typer.Argument(metavar="FILE", help="A pipeline file.")]
SetOption = Annotated[
    list[str] | None, typer.Option("--set", metavar="A.B=C", help="Override a value; stages are addressed by name.")
]
DEFAULT_STORE = Path(".edgekd/store")


class UsageGroup(TyperGroup):
    """Shows commands in the order of their use."""

    def list_commands(self, ctx: Any) -> list[str]:
        """Commands in the order in which they were registered."""
        return list(self.commands)


def make_log(log_format: str, quiet: bool) -> Log:
    """The log that the options ask for. Raises ConfigError for an unknown form."""
    if log_format not in ("text", "json"):
        raise ConfigError(f"--log-format {log_format}: is not known", hint=did_you_mean(log_format, ("text", "json")))
    return Log(form=log_format, quiet=quiet)


def print_json(value: Any) -> None:
    """One JSON document on standard output."""
    sys.stdout.write(json.dumps(value, indent=1) + "\n")


def say_error(error: EdgekdError) -> None:
    """An error of ours on standard error: what is wrong, how to mend it. In a GitHub job also as an annotation."""
    problems = error.problems if isinstance(error, ConfigError) else ((error.message, error.hint),)
    for message, hint in problems:
        print(f"error: {message}", file=sys.stderr)
        if hint:
            print(f"help: {hint}", file=sys.stderr)


def explain_usage(error: Exception) -> bool:
    """Say what is wrong with a command line; False when the error is not about one."""
    message = getattr(error, "format_message", None)
    if message is None:
        return False
    text = " ".join(str(message()).split())
    context = getattr(error, "ctx", None)
    path = context.command_path if context is not None else "edgekd"
    print(f"error: {text}", file=sys.stderr)
    print(f"help: `{path} --help` shows what it takes", file=sys.stderr)
    return True


def keep_traceback(error: BaseException) -> Path:
    """Write a traceback to a file of its own and return its path."""
    handle, name = tempfile.mkstemp(prefix="edgekd-bug-", suffix=".txt")
    with os.fdopen(handle, "w") as stream:
        stream.write("".join(traceback.format_exception(error)))
    return Path(name)


def check_stage_names(option: str, given: Sequence[str], known: Sequence[str]) -> None:
    """Raise ConfigError for a stage that the pipeline file does not have."""
    for name in given:
        if name not in known:
            raise ConfigError(f"{option} {name}: this file has no such stage", hint=did_you_mean(name, known))
