"""The verdict in sentences: what a reader must know if they read nothing else."""

from __future__ import annotations

from edgekd.report import words
from edgekd.report.schema import Build, Comparison, Gate, Report
from edgekd.report.table import best_split, latency_of, main_metric

_MOST_LINES = 4


def sentences(report: Report) -> list[str]:
    """How the run ended, which budget broke, warnings; then chosen builds and clear comparisons. At least one line."""
    lines = [_outcome(report), *_broken_budgets(report)]
    if report.error and report.error.hint:
        lines.append(f"To mend it: {report.error.hint}")
    lines += [f"Warning: {stage.name}: {text}" for stage in report.stages for text in stage.warnings][:_MOST_LINES]
    chosen = [build for build in report.builds if build.chosen]
    lines += [_build(report, build) for build in chosen[:_MOST_LINES]]
    lines += [_comparison(c) for c in _telling(report)]
    return [" ".join(line.split()) for line in lines]


def broken(report: Report) -> list[Gate]:
    """The gates that end the run."""
    return [gate for gate in report.gates if gate.broken]


def _outcome(report: Report) -> str:
    if report.status == "failed":
        where = f" in stage {report.error.stage}" if report.error and report.error.stage else ""
        return f"{report.pipeline} failed{where}: {report.error.message if report.error else 'no reason was recorded'}"
    if report.status == "gate_failed":
        number = len(broken(report))
        text = f"{number} of {len(report.gates)} budgets broken" if number else "a budget was broken"
        return f"{report.pipeline}: {text}."
    if not report.gates:
        return f"{report.pipeline} is done; it has no budgets."
    passed = sum(gate.verdict == "passed" for gate in report.gates)
    undecided = sum(gate.verdict == "undecided" for gate in report.gates)
    kept = len(report.gates) - passed - undecided  # a run that broke others did not end well
    more = f"; where 8 bits broke {'one' if kept == 1 else kept}, a float build is chosen" if kept else ""
    return f"{report.pipeline}: {passed} of {len(report.gates)} budgets held" + (
        f", {undecided} undecided{more}." if undecided else f"{more}."
    )


def _broken_budgets(report: Report) -> list[str]:
    lines = []
    for gate in broken(report):
        kind = "Broken" if gate.verdict == "failed" else "Undecided"
        told = gate.message or gate.no_interval
        note = f" ({told})" if told else ""
        lines.append(
            f"{kind}: {words.gate_label(gate)} is {words.gate_value(gate)}, limit {words.gate_limit(gate)}{note}."
        )
    return lines


def _build(report: Report, build: Build) -> str:
    facts = []
    metric, latency = main_metric(build), latency_of(report, build)
    if metric:
        facts.append(f"{words.metric_value(metric)} {metric.name}{_teacher(report, metric.name, build.model)}")
    if latency:
        facts.append(f"p50 {words.number_between(latency.p50_ms, latency.ci95.get('p50_ms'))} ms")
    if build.size_bytes is not None:
        facts.append(words.size(build.size_bytes))
    return f"{build.target}: {build.model} in {build.precision} is chosen" + (
        f": {', '.join(facts)}." if facts else "."
    )


def _teacher(report: Report, metric: str, role: str) -> str:
    teacher = next((model for model in report.models if model.role == "teacher" != role), None)
    value = best_split(teacher.metrics, metric) if teacher else None
    return f" (teacher {words.with_unit(words.number(value.value), value.unit)})" if value else ""


def _telling(report: Report) -> list[Comparison]:
    """The clear comparisons that speak of a chosen build, turned where they must be; all of them, if none does.

    The measuring loop calls a build `model.precision@target`.
    """
    chosen = {f"{build.model}.{build.precision}@{build.target}" for build in report.builds if build.chosen}
    clear = [c for c in report.comparisons if c.verdict in ("faster", "slower")]
    clear = [_turned(c) if c.b in chosen and c.a not in chosen else c for c in clear]
    ours = [c for c in clear if c.a in chosen and c.b not in chosen]
    here = [c for c in ours if c.a.partition("@")[2] == c.b.partition("@")[2]]
    return (here or ours or clear)[:_MOST_LINES]


def _turned(c: Comparison) -> Comparison:
    verdict = "slower" if c.verdict == "faster" else "faster"
    interval = (1 / c.ci95[1], 1 / c.ci95[0]) if c.ci95 and c.ci95[0] > 0 else None
    turned = {"a": c.b, "b": c.a, "verdict": verdict, "ratio": 1 / c.ratio if c.ratio else c.ratio, "ci95": interval}
    return c.model_copy(update=turned)


def _comparison(comparison: Comparison) -> str:
    where = f" on {comparison.target}" if comparison.target else ""
    measure = comparison.measure + (f", {comparison.clock} time" if comparison.clock else "")
    faster = f"{words.times(comparison)} {comparison.verdict} than {comparison.b}"
    return f"{comparison.a} is {faster}{where} ({measure})."
