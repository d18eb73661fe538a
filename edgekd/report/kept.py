"""What became of each target, in one line: 8 bits kept, with their gain and cost, or what was kept instead and why."""

from __future__ import annotations

from edgekd.report import words
from edgekd.report.schema import Build, Comparison, Metric, Report
from edgekd.report.table import main_metric

_FINE_BELOW = 1.3
_UPPER = {"int8": "INT8", "f32": "FP32", "f16": "FP16", "bf16": "BF16"}


def verdicts(report: Report) -> list[tuple[str, str]]:
    """(target, verdict) of every target that was built for, in the order of the file."""
    targets = dict.fromkeys(build.target for build in report.builds)
    return [(target, _verdict(report, target)) for target in targets]


def _verdict(report: Report, target: str) -> str:
    builds = [build for build in report.builds if build.target == target]
    chosen = next((build for build in builds if build.chosen), None)
    if chosen is None:
        return "nothing is chosen: " + next((b.rejected_because for b in builds if b.rejected_because), "not measured")
    if chosen.precision == "int8":
        return ", ".join([f"INT8 kept: {_gain(report, chosen, builds)}", *_cost(report, chosen)])
    int8 = next((build for build in builds if build.precision == "int8"), None)
    reason = f", for INT8 {_because(int8.rejected_because)}" if int8 is not None and int8.rejected_because else ""
    taught = chosen.model != "teacher" and any(model.role == "teacher" for model in report.models)
    own = [f", {cost}" for cost in _cost(report, chosen)] if taught else []  # what the student lost, before 8 bits
    return f"{_UPPER[chosen.precision]} kept{reason}" + "".join([*own, *(f"; INT8: {c}" for c in _cost(report, int8))])


def _because(reason: str) -> str:
    """A reason of the report as it stands behind `for INT8`."""
    return reason if reason.startswith(("breaks", "is")) else f"is {reason}"


def _gain(report: Report, int8: Build, builds: list[Build]) -> str:
    """How many times faster than the float build of the same network, and how much smaller."""
    floats = [build for build in builds if build.precision != "int8" and build.model != "teacher"]
    floats = floats or [build for build in builds if build.precision != "int8"]
    name = _called(int8)
    for twin in floats:
        for row in report.comparisons:
            if {row.a, row.b} == {name, _called(twin)}:
                return f"{_times(row, name)} as fast as {_UPPER[twin.precision]}{_smaller(int8, twin)}"
    return "not measured against a float build"


def _called(build: Build) -> str:
    return f"{build.model}.{build.precision}@{build.target}"


def _times(row: Comparison, name: str) -> str:
    """`2.1x [2.0, 2.2]`: how many times as fast `name` is, whichever side of the comparison it stands on."""
    low, high = row.ci95 or (row.ratio, row.ratio)
    value, ends = (row.ratio, (low, high)) if row.b == name else (1 / row.ratio, (1 / high, 1 / low))
    digits = 1 if value >= _FINE_BELOW else 2  # 1.0x [1.0, 1.1] would read as no gain
    return f"{value:.{digits}f}x [{ends[0]:.{digits}f}, {ends[1]:.{digits}f}]"


def _smaller(int8: Build, twin: Build) -> str:
    if not int8.size_bytes or not twin.size_bytes:
        return ""
    return f" and {twin.size_bytes / int8.size_bytes:.1f}x as small ({words.size(int8.size_bytes)})"


def _cost(report: Report, build: Build | None) -> list[str]:
    """What 8 bits cost: the paired difference in accuracy, or without labels the agreement."""
    if build is None:
        return []
    if build.difference is not None:
        whom = "the teacher" if any(model.role == "teacher" for model in report.models) else "the float network"
        return [f"{points(build.difference)} {build.difference.name} against {whom} (n {build.difference.n})"]
    metric = main_metric(build)
    return [f"{metric.name} {words.metric_value(metric)} (n {metric.n})"] if metric is not None else []


def points(difference: Metric) -> str:
    """A difference with its interval, of shares in points: `-0.2 pt [-0.6, 0.3]`."""
    if difference.unit != "fraction":
        interval = f" [{difference.ci95[0]:+.3g}, {difference.ci95[1]:+.3g}]" if difference.ci95 else ""
        return f"{difference.value:+.3g}{interval}"
    interval = f" [{100 * difference.ci95[0]:+.1f}, {100 * difference.ci95[1]:+.1f}]" if difference.ci95 else ""
    return f"{100 * difference.value:+.1f} pt{interval}"
