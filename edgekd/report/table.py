"""Every table of the report as plain strings, header first: Markdown, HTML and the terminal only dress them."""

from __future__ import annotations

import re
from collections.abc import Sequence

from edgekd.report import words
from edgekd.report.schema import Build, Latency, Metric, Report

Rows = list[list[str]]
"""A header and the rows below it; an empty cell means that there is nothing to say."""

_NUMERIC = re.compile(r"^[-+]?\d[\d.,]*(e[-+]?\d+)?\S{0,3}( ?(\S{1,3} )?\[.*\])?( \S{1,4})?$")


def result_table(report: Report, *, compact: bool = False) -> Rows:
    """One row per build, and per measured file without one: how right, fast and small, and if it is the chosen one.

    A column for each metric; `compact` takes the intervals off several.
    """
    names = list(dict.fromkeys(metric.name for build in report.builds for metric in build.metrics))
    measured = ["p50 ms", "p99 ms", "size", "memory", "load ms", "layers", "result"]
    rows = [["target", "model", "precision", *names, *measured]]
    seen: set[int] = set()
    for build in report.builds:
        latency = latency_of(report, build)
        seen.update(i for i, row in enumerate(report.latency) if _same(row, build))
        quality = [_quality(build, name, interval=not compact or len(names) == 1) for name in names]
        rows.append([build.target, build.model, build.precision, *quality, *_speed(build, latency)])
    for index, row in enumerate(report.latency):
        if index not in seen:
            rows.append([row.target, row.model, row.precision, *[""] * len(names), *_speed(None, row)])
    return _tidy(rows)


def latency_table(report: Report) -> Rows:
    """Every latency measurement with its percentiles and conditions."""
    header = ["target", "model", "precision", "batch", "threads", "n", "launches"]
    times = ["p50 ms", "p90 ms", "p95 ms", "p99 ms", "CPU p50 ms", "per second", "load ms", "first ms"]
    rows = [[*header, *times, "memory", "notes"]]
    for row in report.latency:
        what = [row.target, row.model, row.precision, str(row.batch), str(row.threads or "auto")]
        percentiles = [_percentile(row, name) for name in ("p50_ms", "p90_ms", "p95_ms", "p99_ms", "cpu_p50_ms")]
        once = [words.number(value) for value in (row.throughput_per_s, row.load_ms, row.first_ms)]
        notes = ", ".join(_conditions(row))
        rows.append([*what, str(row.n), str(row.launches), *percentiles, *once, words.size(row.peak_rss_bytes), notes])
    return _tidy(rows)


def model_table(report: Report) -> Rows:
    """Every network: its size and its numbers in PyTorch."""
    names = list(dict.fromkeys(metric.name for model in report.models for metric in model.metrics))
    rows = [["role", "model", "parameters", "MACs", "size", *names]]
    for model in report.models:
        values = [words.metric_value(best_split(model.metrics, name)) for name in names]
        sizes = [words.count(model.parameters), words.count(model.macs), words.size(model.size_bytes)]
        rows.append([model.role, model.name, *sizes, *values])
    return _tidy(rows)


def comparison_table(report: Report) -> Rows:
    """Every interleaved comparison; the ratio is a's measure divided by b's."""
    rows = [["a", "b", "target", "measure", "clock", "a / b", "verdict"]]
    for c in report.comparisons:
        ratio = words.number_between(c.ratio, c.ci95)
        rows.append([c.a, c.b, c.target or "", c.measure, c.clock or "", ratio, f"a is {c.verdict}"])
    return _tidy(rows)


def gate_table(report: Report) -> Rows:
    """Every budget with its limit, what was measured and the verdict."""
    rows = [["budget", "limit", "measured", "verdict", "note"]]
    for gate in report.gates:
        row = [words.gate_label(gate), words.gate_limit(gate), words.gate_value(gate)]
        rows.append([*row, gate.verdict, gate.message or gate.no_interval or ""])
    return _tidy(rows)


def stage_table(report: Report) -> Rows:
    """Every stage: what became of it, how long it took and why it ran."""
    rows = [["stage", "state", "cache", "time", "why"]]
    for stage in report.stages:
        rows.append([stage.name, stage.state, stage.cache or "", words.seconds(stage.seconds), stage.why or ""])
    return _tidy(rows)


def environment_table(report: Report) -> Rows:
    """Where the run took place, on what data, with what software."""
    e, git, data = report.environment, report.git, report.data
    sizes = data.n.model_dump(exclude_none=True) if data else {}
    broken = data.broken_images if data else {}
    spent = [(name, value) for name, value in report.timing if name != "own_cpu_s"]
    facts = {
        "run": report.run_id,
        "edgekd": report.edgekd_version,
        "created": report.created.isoformat(timespec="seconds"),
        "took": words.seconds(report.seconds),
        "of that": ", ".join(f"{part.removesuffix('_s')} {words.seconds(s)}" for part, s in spent if s >= 0.05),
        "seed": "" if report.seed is None else str(report.seed),
        "git": f"{git.commit}{' with local changes' if git.dirty else ''}" if git else "",
        "host": e.host or "",
        "cpu": f"{e.cpu or 'unknown'}, {e.cores} cores" if e.cores else e.cpu or "",
        "memory": words.size(e.memory_bytes),
        "gpu": e.gpu or "",
        "os": e.os or "",
        "python": e.python or "",
        "data": data.fingerprint if data else "",
        "data licence": (data.licence or "") if data else "",
        "samples": ", ".join(f"{n} {split}" for split, n in sizes.items()),
        "broken images left out": ", ".join(f"{n} {split}" for split, n in broken.items() if n),
        **e.packages,
    }
    return [["what", "value"], *([name, words.cell(value)] for name, value in facts.items() if value)]


def render_text(report: Report) -> str:
    """The result table (without builds that of the networks), and the budgets if there are any, for a terminal.

    A failed run has what was made until then; nothing is held against budgets.
    """
    tables = [align(result_table(report, compact=True)) or align(model_table(report))]
    tables += [align(gate_table(report))] if report.status != "failed" else []
    return "\n\n".join(table for table in tables if table)


def align(rows: Rows) -> str:
    """Rows as plain text in columns, numbers to the right; empty when there is nothing below the header."""
    if len(rows) < 2:
        return ""
    right = numeric_columns(rows)
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = [_line(row, widths, right) for row in rows]
    return "\n".join([lines[0], "  ".join("-" * width for width in widths), *lines[1:]])


def numeric_columns(rows: Rows) -> list[bool]:
    """For each column whether it holds nothing but numbers below its header."""
    return [all(_NUMERIC.match(cell) for cell in column if cell) for column in zip(*rows[1:], strict=True)]


def latency_of(report: Report, build: Build) -> Latency | None:
    """The latency of a build at its smallest batch, or null when it was not measured."""
    rows = [row for row in report.latency if _same(row, build)]
    return min(rows, key=lambda row: (row.batch, row.threads), default=None)


def main_metric(build: Build) -> Metric | None:
    """The number that stands for a build: its first metric, on the test split where there is one."""
    return best_split(build.metrics, build.metrics[0].name) if build.metrics else None


def best_split(metrics: Sequence[Metric], name: str) -> Metric | None:
    """The metric of this name on the test split, else on validation, else on any; null when there is none."""
    order = {"test": 0, "validation": 1}
    named = [metric for metric in metrics if metric.name == name]
    return min(named, key=lambda metric: order.get(metric.split or "", 2), default=None)


def _line(row: list[str], widths: list[int], right: list[bool]) -> str:
    cells = (c.rjust(w) if to_right else c.ljust(w) for c, w, to_right in zip(row, widths, right, strict=True))
    return "  ".join(cells).rstrip()


def _same(row: Latency, build: Build) -> bool:
    return (row.target, row.model, row.precision) == (build.target, build.model, build.precision)


def _quality(build: Build, name: str, *, interval: bool) -> str:
    metric = best_split(build.metrics, name)
    if metric is None or interval:
        return words.metric_value(metric)
    return words.with_unit(words.number(metric.value), metric.unit)


def _speed(build: Build | None, latency: Latency | None) -> list[str]:
    times = ["", "", "", ""]
    if latency:
        p50, p99 = _percentile(latency, "p50_ms"), _percentile(latency, "p99_ms")
        times = [p50, p99, words.size(latency.peak_rss_bytes), words.number(latency.load_ms)]
    if build is None:
        return [*times[:2], "", *times[2:], "", ""]
    result = "chosen" if build.chosen else f"not chosen: {build.rejected_because}" if build.rejected_because else ""
    return [*times[:2], words.size(build.size_bytes), *times[2:], _layers(build), result]


def _layers(build: Build) -> str:
    kept = f"{len(build.kept_float)} kept in f32" if build.kept_float else ""
    return "; ".join(text for text in (words.layers(build.executed_precision), kept) if text)


def _percentile(row: Latency, name: str) -> str:
    return words.number_between(getattr(row, name), row.ci95.get(name))


def _conditions(row: Latency) -> list[str]:
    notes = ["quick"] if row.quick else []
    notes += ["too few launches for its interval"] if row.few_launches else []
    notes += ["not steady"] if row.steady is False else []
    notes += ["contended"] if row.contended else []
    notes += ["throttled"] if row.throttled else []
    return notes + ([f"power mode {row.power_mode}"] if row.power_mode else [])


def _tidy(rows: Rows) -> Rows:
    """One line per cell, and no column that is empty all the way down."""
    rows = [[words.cell(cell) for cell in row] for row in rows]
    kept = [i for i in range(len(rows[0])) if len(rows) == 1 or any(row[i] for row in rows[1:])]
    return [[row[i] for i in kept] for row in rows]
