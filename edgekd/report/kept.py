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
    taught = chosen.model != "teacher" and any(model.role == "teacher" for model in report.models)
    if chosen.precision == "int8":
        own = _gain(report, chosen, _floats(builds), "as fast as {}")
        if not taught:
            return ", ".join([f"INT8 kept: {own}", *_cost(report, chosen)])
        lost = ", ".join([f"INT8 against its own float: {own}", *_own_cost(report, target)])
        return f"INT8 kept: {_against_teacher(report, chosen, builds)}; {lost}"
    int8 = next((build for build in builds if build.precision == "int8"), None)
    reason = f", for INT8 {_because(int8.rejected_because)}" if int8 is not None and int8.rejected_because else ""
    own = f"; {_against_teacher(report, chosen, builds)}" if taught else ""  # what the student lost, before 8 bits
    return f"{_UPPER[chosen.precision]} kept{reason}" + "".join([own, *(f"; INT8: {c}" for c in _cost(report, int8))])


def _against_teacher(report: Report, build: Build, builds: list[Build]) -> str:
    """What the whole chain brought and cost: the student that is shipped beside the teacher that it learned from."""
    teachers = [other for other in builds if other.model == "teacher"]
    gain = _gain(report, build, teachers, "as fast")
    return ", ".join(
        [f"against the teacher: {gain}", *(c.replace(" against the teacher", "") for c in _cost(report, build))]
    )


def _floats(builds: list[Build]) -> list[Build]:
    """The float builds that an 8-bit one is of, else any."""
    floats = [build for build in builds if build.precision != "int8" and build.model != "teacher"]
    return floats or [build for build in builds if build.precision != "int8"]


def _own_cost(report: Report, target: str) -> list[str]:
    """What 8 bits alone cost, as the budget on them was judged."""
    for gate in report.gates:
        named = (gate.measure, gate.of, gate.target) == ("metric_drop", "quantized", target) and gate.unit == "pt"
        if named and gate.against != "teacher" and gate.value is not None:
            interval = f" [{-gate.ci95[1]:+.1f}, {-gate.ci95[0]:+.1f}]" if gate.ci95 else ""
            return [f"{-gate.value:+.1f} pt{interval}"]
    return []


def lost(report: Report, limit: float) -> list[str]:
    """What a chosen student lost to its teacher where that is more than `limit` (a share): a line for each target."""
    found = []
    for build in report.builds if any(model.role == "teacher" for model in report.models) else ():
        metric = build.difference or main_metric(build)  # without labels: the share of the teacher's own answers
        if not build.chosen or build.model == "teacher" or metric is None or metric.unit != "fraction":
            continue
        if (drop := -metric.value if build.difference else 1 - metric.value) > limit:
            found.append(
                f"{build.target}: the student loses {100 * drop:.1f} pt {metric.name} to its teacher (n {metric.n}), "
                f"more than {100 * limit:g} pt: train it longer (--epochs), or take a larger one"
            )
    return found


def _because(reason: str) -> str:
    """A reason of the report as it stands behind `for INT8`."""
    return reason if reason.startswith(("breaks", "is")) else f"is {reason}"


def _gain(report: Report, build: Build, twins: list[Build], words: str) -> str:
    """How many times faster than the first of some other builds that it was compared with, and how much smaller."""
    name = _called(build)
    for twin in twins:
        for row in report.comparisons:
            if {row.a, row.b} == {name, _called(twin)}:
                fast = words.format(_UPPER[twin.precision])
                return f"{_times(row, name)} {fast}{_smaller(build, twin)}"
    return "not measured against a float build"


def _called(build: Build) -> str:
    return f"{build.model}.{build.precision}@{build.target}"


def _times(row: Comparison, name: str) -> str:
    """`2.1x [2.0, 2.2]`: how many times as fast `name` is, whichever side of the comparison it stands on."""
    low, high = row.ci95 or (row.ratio, row.ratio)
    value, ends = (row.ratio, (low, high)) if row.b == name else (1 / row.ratio, (1 / high, 1 / low))
    digits = 1 if value >= _FINE_BELOW else 2  # 1.0x [1.0, 1.1] would read as no gain
    return f"{value:.{digits}f}x [{ends[0]:.{digits}f}, {ends[1]:.{digits}f}]"


def _smaller(build: Build, twin: Build) -> str:
    if not build.size_bytes or not twin.size_bytes:
        return ""
    return f" and {twin.size_bytes / build.size_bytes:.1f}x as small ({words.size(build.size_bytes)})"


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
