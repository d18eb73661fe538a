"""edgekd compare BASE NEW: what changed between two runs, with intervals; a regression ends with 5."""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from edgekd.cli.shared import JsonOption, LogFormatOption, QuietOption, make_log, print_json
from edgekd.errors import ConfigError

if TYPE_CHECKING:
    from edgekd.pipeline.log import Log
    from edgekd.report.changes import Change, Kind, Options
    from edgekd.report.compare import Outcome

_SHARE = re.compile(r"\s*([0-9.]+(?:e[-+]?\d+)?)\s*(%|pt|)\s*")


def compare(
    base: Annotated[Path, typer.Argument(metavar="BASE", help="Folder of a run, or its report.json.")],
    new: Annotated[Path, typer.Argument(metavar="NEW", help="Another one, of the same pipeline.")],
    threshold: Annotated[
        list[str] | None,
        typer.Option(
            "--threshold",
            metavar="KIND=VALUE",
            help="The smallest change that counts, of metric (0.5pt, or a number in its unit), latency, throughput, "
            "size, memory (2%) or precision.",
        ),
    ] = None,
    run_noise: Annotated[
        str,
        typer.Option(
            "--run-noise",
            metavar="SD",
            help="Standard deviation of one build's latency from run to run on this machine.",
        ),
    ] = "5.7%",
    across_machines: Annotated[
        bool, typer.Option("--across-machines", help="Judge latency also where the machines differ.")
    ] = False,
    across_data: Annotated[
        bool, typer.Option("--across-data", help="Judge scores also where they are of other samples.")
    ] = False,
    allow_missing: Annotated[
        list[str] | None,
        typer.Option(
            "--allow-missing",
            metavar="NAME",
            help="A target of BASE, or a build of it (TARGET.PRECISION), that NEW need not have; repeatable.",
        ),
    ] = None,
    markdown: Annotated[bool, typer.Option("--markdown", help="Print Markdown, for a pull request.")] = False,
    json_: JsonOption = False,
    log_format: LogFormatOption = "text",
    quiet: QuietOption = False,
) -> int:
    """Compare two runs with intervals: scores, latency, throughput, size, memory, precision; 5 on a regression."""
    if markdown and json_:
        raise ConfigError("--markdown and --json exclude each other", hint="choose one of them")
    from edgekd.report.changes import THRESHOLDS, Options
    from edgekd.report.compare import compare as compare_reports
    from edgekd.report.draw import read_report

    thresholds = {**THRESHOLDS, **dict(_threshold(text) for text in threshold or ())}
    noise = _number("--run-noise", run_noise, percent=True)
    options = Options(thresholds, noise, across_machines, across_data, tuple(allow_missing or ()))
    reports = [read_report(path) for path in (base, new)]
    folders = [path if path.is_dir() else path.parent for path in (base, new)]
    outcome = compare_reports(reports[0], folders[0], reports[1], folders[1], options)
    if json_:
        print_json(_document(outcome, [report.run_id for report in reports], options))
    else:
        typer.echo(_shown(outcome, markdown=markdown))
    _say_why(outcome, make_log(log_format, quiet))
    return outcome.exit_code


def _say_why(outcome: Outcome, log: Log) -> None:
    """One line for each reason not to end with 0."""
    from edgekd.report.compare import interval_text

    for row in outcome.regressions():
        log.error(f"regression: {row.measure} of {row.what}: {interval_text(row)}", _accepting(row))
    for name, what in outcome.gone().items():
        log.error(f"regression: {what} is missing in new", f"--allow-missing {name}, if it was meant to go")
    if outcome.incomparable:
        log.error(
            f"not comparable: scores of {', '.join(outcome.incomparable)} are of other samples",
            "run BASE again on the test data of NEW; or --across-data, which judges them all the same",
        )


def _accepting(row: Change) -> str:
    """What lets a regression of this size pass, if it is meant to."""
    bare = row.kind == "metric" and row.unit != "fraction"
    size = math.ceil(1000 * abs(row.change)) / (1000 if bare else 10)
    unit = "" if bare else "pt" if row.kind == "metric" else "%"
    return f"--threshold {row.kind}={size:g}{unit}, if so much is accepted"


def _shown(outcome: Outcome, *, markdown: bool) -> str:
    from edgekd.report import compare
    from edgekd.report.table import align

    return (
        compare.markdown(outcome)
        if markdown
        else "\n".join([align(compare.table(outcome.rows)), "", *compare.lines(outcome)])
    )


def _document(outcome: Outcome, runs: list[str], options: Options) -> dict[str, Any]:
    return {
        "base": runs[0],
        "new": runs[1],
        "verdict": outcome.verdict,
        "exit_code": outcome.exit_code,
        "run_noise": options.run_sd,
        "thresholds": dict(options.thresholds),
        "rows": [vars(row) for row in outcome.rows],
        "only_base": outcome.only_base,
        "only_new": outcome.only_new,
        "missing_targets": outcome.missing,
        "missing_builds": outcome.missing_builds,
        "not_comparable": outcome.incomparable,
        "notes": outcome.notes,
    }


def _threshold(text: str) -> tuple[Kind, float]:
    from edgekd.config.settings import did_you_mean
    from edgekd.report.changes import THRESHOLDS

    name, equals, value = text.partition("=")
    for kind in THRESHOLDS:
        if kind == name and equals:
            return kind, _number(f"--threshold {name}", value, percent=kind != "metric")
    raise ConfigError(f"--threshold {text}: names no kind of measure", hint=did_you_mean(name, list(THRESHOLDS)))


def _number(option: str, text: str, *, percent: bool) -> float:
    """A share from `2%` (0.02), or a metric's change from `0.5pt` (0.005) and `0.01`."""
    found = _SHARE.fullmatch(text)
    unit = found[2] if found else ""
    try:
        value = float(found[1]) if found else -1.0
    except ValueError:
        value = -1.0
    if value < 0 or unit == ("pt" if percent else "%"):
        raise ConfigError(
            f"{option}: {text!r} is no such number", hint="write e.g. 2%" if percent else "write e.g. 0.5pt"
        )
    return value / 100 if unit else value
