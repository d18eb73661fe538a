"""The command line: one file per command beside this one, each loaded when it is called. Nothing heavy loads here."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

import typer

import edgekd
from edgekd.cli.lazy import Command, LazyGroup
from edgekd.cli.shared import explain_usage, keep_traceback, say_error
from edgekd.errors import ConfigError, EdgekdError
from edgekd.files import launched, leave

# The help is the first line of the command's docstring (a test holds it): `edgekd --help` loads no command.
COMMANDS = {
    "compress": Command(
        "edgekd.cli.compress:compress",
        "Quantize, compile, evaluate and measure a network as it is; with --student distil it first.",
    ),
    "run": Command(
        "edgekd.cli.run_command:run",
        "Run a pipeline file: every stage from the store or anew, then the report and the budgets.",
    ),
    "check": Command(
        "edgekd.cli.check:check",
        "See within a minute if a network can be captured, quantized, exported in 8 bits and built; what stays float.",
    ),
    "new": Command(
        "edgekd.cli.new:new", "Write a commented pipeline file, a tiny network and a thousand images: it runs as it is."
    ),
    "plan": Command("edgekd.cli.plan:plan", "Show each stage as cached or to run, and why."),
    "measure": Command(
        "edgekd.cli.measure:measure",
        "Measure latency in processes of their own; several models are interleaved and compared.",
    ),
    "predict": Command(
        "edgekd.cli.predict:predict",
        "Show what a build says of images: classes with probabilities; unreadable images are named at the end.",
    ),
    "evaluate": Command(
        "edgekd.cli.evaluate_command:evaluate", "Score a build on data of your own: its metric with a 95% interval."
    ),
    "bundle": Command(
        "edgekd.cli.bundle:bundle",
        "Pack the chosen build with labels, preprocessing, manifest, predict.py and licence into one archive.",
    ),
    "target": Command("edgekd.cli.target:app", "Name devices that measure over ssh, and see what they have."),
    "data": Command("edgekd.cli.data:app", "See what a data set holds, and what is wrong with it."),
    "report": Command("edgekd.cli.report:report", "Draw report.html, report.md and junit.xml again from report.json."),
    "verify": Command(
        "edgekd.cli.verify:verify",
        "Check every byte of a run's folder against its manifest; ends with 4 if anything is not as it was written.",
    ),
    "compare": Command(
        "edgekd.cli.compare:compare",
        "Compare two runs with intervals: scores, latency, throughput, size, memory, precision; 5 on a regression.",
    ),
    "list": Command("edgekd.cli.listing:list_", "List what there is, with every option."),
    "doctor": Command(
        "edgekd.cli.doctor:doctor", "Show the machine, and for every engine whether it can build and run here."
    ),
    "store": Command("edgekd.cli.store:app", "Look after the store of artefacts."),
}


class Edgekd(LazyGroup):
    """The group of all commands."""

    table = COMMANDS


app = typer.Typer(
    name="edgekd",
    cls=Edgekd,
    help="From a trained PyTorch network to a small, fast, verified artefact for an edge device.",
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    add_completion=False,
)


def _version(show: bool) -> None:
    if show:
        typer.echo(edgekd.__version__)
        raise typer.Exit


@app.callback()
def _root(
    version: bool = typer.Option(False, "--version", help="Show the version.", callback=_version, is_eager=True),
) -> None:
    pass


def run(argv: Sequence[str] | None = None) -> None:
    """Entry point. Errors of ours become one line, one line of help and their exit code. Without `argv` it is the end
    of the process.

    With `--json` an error is one document on standard output too: {"error": {message, hint, exit_code, problems}}.

    Raises:
        SystemExit: always, with the exit code of the README.
    """
    code = _exit_code(list(sys.argv[1:] if argv is None else argv))
    if launched():
        from edgekd.pipeline.processes import leave_with

        leave_with(code)
    if argv is None:
        leave(code)
    sys.exit(code)


def _exit_code(words: list[str]) -> int:
    try:
        code = app(args=words, prog_name="edgekd", standalone_mode=False)
    except EdgekdError as error:
        # A mistake in the pipeline file meets all processes of a run alike; the first one says it.
        if not (launched() and os.environ.get("RANK") != "0" and isinstance(error, ConfigError)):
            say_error(error, words)
        return error.exit_code
    except KeyboardInterrupt:
        if not launched():
            print("error: interrupted", file=sys.stderr)
        return 130
    except SystemExit as stop:
        return _stopped(stop, words)
    except BrokenPipeError:
        sys.stderr.close()
        return 0
    except Exception as error:
        return _usage_or_bug(error, words)
    return code if isinstance(code, int) else 0


def _stopped(stop: SystemExit, words: Sequence[str]) -> int:
    """Exit code for what the library of the command line, or code of the user's own, ended the process with."""
    if isinstance(stop.__context__, BrokenPipeError):
        return 0  # the reader of our output went away (`edgekd list | head`): nothing is wrong
    # The library raises no other: a module that the pipeline file names called exit while it was imported.
    ended = ConfigError("code of your own ended the process", hint="take `exit()` out of what the pipeline imports")
    say_error(ended, words)
    return ended.exit_code


def _usage_or_bug(error: Exception, words: Sequence[str]) -> int:
    """Exit code for what typer raises on a wrong command line, for a file that the system refuses, or a bug."""
    usage = explain_usage(error)
    if usage is not None:
        say_error(usage, words)
        return usage.exit_code
    if isinstance(error, OSError):
        from edgekd.pipeline.failures import explain_os_error

        refused = explain_os_error(error, stages=words[:1] in (["run"], ["compress"]))
        say_error(refused, words)
        return refused.exit_code
    path = keep_traceback(error)
    bug = EdgekdError(
        f"a bug in edgekd: {type(error).__name__}: {error}", hint=f"the traceback is in {path}; please report it"
    )
    say_error(bug, words)
    return bug.exit_code
