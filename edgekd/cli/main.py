"""The command line: one file per command beside this one; here they are put together. Nothing heavy loads."""

from __future__ import annotations

import sys

import typer

import edgekd
from edgekd.cli import doctor, listing, measure, plan, report, run_command, store
from edgekd.cli.shared import UsageGroup, say_error
from edgekd.errors import EdgekdError

app = typer.Typer(
    name="edgekd",
    cls=UsageGroup,
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


app.command("run")(run_command.run)
app.command("plan")(plan.plan)
app.command("measure")(measure.measure)
app.command("report")(report.report)
app.command("list")(listing.list_)
app.command("doctor")(doctor.doctor)
app.add_typer(store.app, name="store")


def run() -> None:
    """Entry point. Errors of ours become one line, one line of help and their exit code."""
    try:
        code = app(standalone_mode=False)
    except EdgekdError as error:
        say_error(error)
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        print("error: interrupted", file=sys.stderr)
        sys.exit(130)
    except BrokenPipeError:
        # The reader of our output went away (`edgekd list | head`): nothing is wrong.
        sys.stderr.close()
        sys.exit(0)
    except Exception as error:
        sys.exit(_usage_or_bug(error))
    sys.exit(code if isinstance(code, int) else 0)


def _usage_or_bug(error: Exception) -> int:
    """Exit code for what typer raises on a wrong command line, or for a bug of ours, whose traceback goes to a file."""
    from edgekd.cli.shared import explain_usage, keep_traceback

    if explain_usage(error):
        return 2
    path = keep_traceback(error)
    print(f"error: a bug in edgekd: {type(error).__name__}: {error}", file=sys.stderr)
    print(f"help: the traceback is in {path}; please report it", file=sys.stderr)
    return 1
