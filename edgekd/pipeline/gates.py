"""Budgets: a limit on something measured, judged with its interval."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any, Literal

from pydantic import field_validator, model_validator

from edgekd.config import Settings
from edgekd.stages.context import roles
from edgekd.tasks.intervals import wilson

Measure = Literal[
    "metric", "metric_drop", "p50", "p90", "p95", "p99", "speedup", "throughput", "size", "peak_memory", "parity",
    "executed_share",
]  # fmt: skip
Role = Literal["teacher", "student", "quantized"]
# Unit -> factor to the base unit of its measure: shares, milliseconds, bytes, plain ratios.
_UNITS: dict[str, dict[str, float]] = {
    "metric": {"": 1.0, "pt": 0.01, "%": 0.01},
    "metric_drop": {"pt": 0.01, "%": 0.01, "": 1.0},
    "time": {"ms": 1.0, "us": 1e-3, "s": 1e3},
    "size": {"B": 1.0, "kB": 1e3, "KB": 1e3, "MB": 1e6, "GB": 1e9, "KiB": 1024.0, "MiB": 1024.0**2, "GiB": 1024.0**3},
    "speedup": {"x": 1.0, "": 1.0},
    "throughput": {"/s": 1.0},
    "share": {"%": 0.01, "": 1.0},
}
_BASE = {"metric": "", "metric_drop": "", "time": "ms", "size": "B", "speedup": "x", "throughput": "/s", "share": ""}
_LATENCY = ("p50", "p90", "p95", "p99")
_FAMILIES = {
    **dict.fromkeys(_LATENCY, "time"),
    "peak_memory": "size",
    "parity": "share",
    "executed_share": "share",
}
_MEASURED = (*_LATENCY, "speedup", "throughput", "peak_memory")
_NEEDS = {**dict.fromkeys(_MEASURED, "bench"), "executed_share": "compile", "parity": "evaluate"}
_ALL = "by the samples at hand: the limit is the end of the scale"
_KEPT = "so 8 bits are not chosen, but a float build"
_COLUMNS = {
    **{measure: f"{measure}_ms" for measure in _LATENCY},
    "throughput": "throughput_per_s",
    "peak_memory": "peak_rss_bytes",
}
_Reason = tuple[str, str]
Interval = tuple[float, float] | None
_NO_INTERVAL = {
    "size": "exact: bytes of files",
    "executed_share": "exact: counted layers",
    "peak_memory": "measured once, in a process of its own",
}


class GateSettings(Settings):
    """One budget."""

    measure: Measure
    """What is limited. Of a network or a build: metric, metric_drop (against another network), size. Of a build on a
    target: p50, p90, p95, p99, speedup, throughput, peak_memory, parity (answers that are PyTorch's), executed_share
    (layers that run in `precision`)."""
    of: Role
    """Whose: teacher, student or quantized."""
    against: Role | Literal["float"] | None = None
    """The other side of metric_drop and speedup; float: the network that was quantized."""
    target: str | None = None
    """The target whose build is meant; size and metrics without it are those of the network in PyTorch."""
    precision: Literal["int8", "f16", "bf16", "f32"] = "int8"
    """The precision that executed_share counts."""
    max: str | float | None = None
    """Upper limit with its unit: "2 ms", "1.5 MB", "0.5 pt"."""
    min: str | float | None = None
    """Lower limit with its unit: "0.9", "1.5 x"."""
    undecided: Literal["fail", "pass"] = "pass"
    """What an interval means that lies on both sides of the limit, or a figure that was not measured."""

    otherwise: Literal["fail", "float"] = "fail"
    """What a broken accuracy budget of the quantized network means: the run fails with exit code 5, or its float build
    is chosen and the run goes on."""

    @field_validator("max", "min", mode="before")
    @classmethod
    def _number(cls, value: Any) -> Any:
        return float(value) if isinstance(value, int) and not isinstance(value, bool) else value

    @model_validator(mode="after")
    def _limits(self) -> GateSettings:
        if (self.max is None) == (self.min is None):
            raise ValueError('a gate has one limit, max or min | e.g. max: "2 ms"')
        if self.otherwise == "float" and not (self.of == "quantized" and self.measure.startswith("metric")):
            raise ValueError("otherwise: float is for accuracy of the quantized network | remove it")
        self.limit()
        if "precision" in self.model_fields_set and self.measure != "executed_share":
            raise ValueError(f"precision does nothing for {self.measure} | remove it, or set measure: executed_share")
        return self

    @property
    def family(self) -> str:
        """Which units the measure has."""
        return _FAMILIES.get(self.measure, self.measure)

    def limit(self) -> float:
        """The limit in the measure's base unit: a share, milliseconds, bytes, or a ratio."""
        text = self.max if self.max is not None else self.min
        match = re.fullmatch(r"\s*([-+]?[0-9.]+(?:[eE][-+]?\d+)?)\s*([A-Za-z%/]*)\s*", str(text))
        units = _UNITS[self.family]
        if match is None or match[2] not in units:
            known = ", ".join(f'"1 {unit}"' if unit else '"1"' for unit in units)
            raise ValueError(f"{text!r} is no limit for {self.measure} | write e.g. {known}")
        try:
            found = float(match[1]) * units[match[2]]
        except ValueError:
            raise ValueError(f'{text!r} is no number | write e.g. "2 ms"') from None
        if (self.family == "share" or (self.family == "metric" and match[2])) and not 0 <= found <= 1:
            raise ValueError(f"{text!r} is no share for {self.measure} | shares are between 0 % and 100 %")
        return found

    def shown_unit(self) -> tuple[str | None, float]:
        """Unit of the report's row, and the factor to it from the base unit: points where the limit is in points."""
        text = str(self.max if self.max is not None else self.min)
        if self.family in ("metric", "metric_drop", "share") and text.rstrip().endswith(("pt", "%")):
            return ("pt" if self.measure == "metric_drop" else "%"), 100.0
        return _BASE[self.family] or None, 1.0

    def problems(self, stages: set[str], targets: set[str]) -> list[_Reason]:
        """What does not fit the rest of the file: (message, hint)."""
        found: list[_Reason] = []
        if self.target is not None and self.target not in targets:
            found.append(
                (f"the gate names an unknown target {self.target!r}", f"known are: {', '.join(sorted(targets))}")
            )
        if self.measure in _NEEDS and self.target is None:
            found.append((f"the gate on {self.measure} names no target", "add `target:`"))
        needed = "evaluate" if self.measure.startswith("metric") else _NEEDS.get(self.measure)
        if needed is not None and needed not in stages:
            found.append((f"the gate on {self.measure} needs the stage {needed}", f"add `- {needed}: {{}}`"))
        if self.measure in ("metric_drop", "speedup") and self.against is None:
            found.append((f"the gate on {self.measure} names nothing to compare with", "add `against: student`"))
        if "quantized" in (self.of, self.against) and "quantize" not in stages:
            found.append(("the gate is on the quantized network, and nothing is quantized", "add a `quantize` stage"))
        if self.against == "float" and self.of != "quantized":
            found.append(
                (f"against: float is for the quantized network, not for the {self.of}", "name the other network")
            )
        made = list(dict.fromkeys(roles(stages).values()))
        for role in (self.of, self.against):
            if role in ("teacher", "student") and role not in made:
                hint = f"known are: {', '.join(made)}" if made else "add a `teacher` stage"
                found.append((f"the gate names a {role}, and this file makes none", hint))
        return found

    def label(self) -> str:
        """The gate in words."""
        side = "at most" if self.max is not None else "at least"
        against = f" against {self.against}" if self.against else ""
        target = f" on {self.target}" if self.target else ""
        measure = f"{self.measure} ({self.precision})" if self.measure == "executed_share" else self.measure
        return f"{measure} of {self.of}{against}{target} {side} {self.max if self.max is not None else self.min}"


def judge(gate: GateSettings, report: dict[str, Any]) -> dict[str, Any]:
    """A gate's row of report.json, from the report's models, builds, latency and comparisons."""
    return _judged(gate, *_value(gate, report))


def judge_build(gate: GateSettings, report: dict[str, Any], build: dict[str, Any]) -> dict[str, Any]:
    """A gate on accuracy as it stands for one build, or for a network in PyTorch, whoever it is on."""
    return _judged(gate, *_accuracy(gate, report, _first_evaluated(build)))


def _judged(gate: GateSettings, value: float | None, ci95: Interval) -> dict[str, Any]:
    limit, upper = gate.limit(), gate.max is not None
    unit, shown = gate.shown_unit()
    verdict = "undecided"
    if value is not None:
        low, high = ci95 or (value, value)
        if (high <= limit) if upper else (low >= limit):
            verdict = "passed"
        elif (low > limit) if upper else (high < limit):
            verdict = "failed"
    by_value = verdict == "undecided" and value is not None and _ends_scale(gate, ci95)
    if by_value and value == limit:
        verdict = "passed"
    row = {
        "measure": gate.measure,
        "of": gate.of,
        "against": gate.against,
        "target": gate.target,
        "limit": limit * shown,
        "unit": unit,
        "value": None if value is None else value * shown,
        "ci95": (ci95[0] * shown, ci95[1] * shown) if ci95 else None,
        "no_interval": None if value is None or ci95 else _NO_INTERVAL.get(gate.measure),
        "verdict": verdict,
        "label": gate.label(),
    }
    kept = gate.otherwise == "float" and rejects(gate, row)
    held = _ALL if verdict == "passed" and by_value else None
    return {**row, "message": "not measured" if value is None else _KEPT if kept else held}


def _ends_scale(gate: GateSettings, ci95: Interval) -> bool:
    """Whether a limit is the end of a share's scale: no interval lies whole on it, so what was measured decides."""
    if gate.family not in ("share", "metric") or ci95 is None:
        return False
    return gate.limit() == 0.0 and ci95[0] >= 0.0 if gate.max is not None else gate.limit() == 1.0 and ci95[1] <= 1.0


def rejects(gate: GateSettings, row: dict[str, Any]) -> bool:
    """Whether a build with this row is not shipped. A drop that its interval leaves open counts as it was measured."""
    if gate.measure != "metric_drop" or row["value"] is None:
        return bool(row["verdict"] == "failed")
    return bool(row["value"] > row["limit"] if gate.max is not None else row["value"] < row["limit"])


def broken(gate: GateSettings, row: dict[str, Any], *, whole: bool = True) -> bool:
    """Whether a judged gate ends the run. One that was asked to stop early (not `whole`) may leave gates unmeasured."""
    if gate.otherwise == "float":
        return False
    left_out = row["value"] is None and not whole
    return row["verdict"] == "failed" or (row["verdict"] == "undecided" and gate.undecided == "fail" and not left_out)


def _value(gate: GateSettings, report: dict[str, Any]) -> tuple[float | None, Interval]:
    if gate.measure in _COLUMNS:
        return _measured(report, gate, _COLUMNS[gate.measure])
    if gate.measure in ("speedup", "parity"):
        return _speedup(report, gate) if gate.measure == "speedup" else _parity(report, gate)
    facts = {"size": _size, "executed_share": _executed_share}
    if gate.measure in facts:
        return facts[gate.measure](report, gate), None
    return _accuracy(gate, report, _metric(report, gate.of, gate.target))


def _accuracy(gate: GateSettings, report: dict[str, Any], own: dict[str, Any] | None) -> tuple[float | None, Interval]:
    if gate.measure == "metric" or own is None:
        return (own["value"], _pair(own["ci95"])) if own else (None, None)
    assert gate.against is not None
    pairs = own["against"].get(_named(gate.against, report))
    if pairs is None:
        return None, None
    # Less is worse where more is better: the drop is the difference the other way round.
    ends = sorted(-own["better"] * end for end in pairs["ci95"])
    return -own["better"] * pairs["value"], (ends[0], ends[1])


def _metric(report: dict[str, Any], role: str, target: str | None) -> dict[str, Any] | None:
    """The first metric of a network, or of its quantized or float build on a target."""
    rows: Sequence[dict[str, Any]] = [m for m in report["models"] if m["role"] == role]
    if target is not None:
        rows = [b for b in report["builds"] if _stands_for(b, role, target, report)]
    return _first_evaluated(rows[0]) if rows else None


def _first_evaluated(row: dict[str, Any]) -> dict[str, Any] | None:
    return next((m for m in row["metrics"] if m.get("evaluated")), None)


def _stands_for(row: dict[str, Any], role: str, target: str | None, report: dict[str, Any]) -> bool:
    """Whether a build's row is the one of a network on a target: of several float builds, the one that was best."""
    preferred = report.get("preferred", {}).get((target, role))
    named = bool(row["target"] == target and row["model"] == role)
    return named and (preferred is None or row["precision"] == preferred)


def _measured(report: dict[str, Any], gate: GateSettings, column: str) -> tuple[float | None, Interval]:
    """What the stage bench measured of a build, with its interval where it has one."""
    row = next((r for r in report["latency"] if _stands_for(r, gate.of, gate.target, report)), None)
    if row is None or row.get(column) is None:
        return None, None
    return float(row[column]), _pair(row["ci95"].get(column))


def _build(report: dict[str, Any], gate: GateSettings) -> dict[str, Any] | None:
    return next((b for b in report["builds"] if _stands_for(b, gate.of, gate.target, report)), None)


def _parity(report: dict[str, Any], gate: GateSettings) -> tuple[float | None, Interval]:
    """The share of the evaluated samples on which a build answers as PyTorch does; of several outputs, the least."""
    build = _build(report, gate)
    parity = (build and build["parity"]) or {}
    shares = parity.get("agreement") or {}
    if not shares:
        return None, None
    least = float(min(shares.values()))
    return least, wilson(least, parity["n"])


def _executed_share(report: dict[str, Any], gate: GateSettings) -> float | None:
    """The share of a build's layers that its engine runs in a precision."""
    build = _build(report, gate)
    counts: dict[str, int] = build["executed_precision"] if build is not None else {}
    return counts.get(gate.precision, 0) / sum(counts.values()) if counts else None


def _named(role: str, report: dict[str, Any]) -> str:
    """The role that `float` stands for: the student, where there is one, else the teacher."""
    if role != "float":
        return role
    made = [model["role"] for model in report["models"]]
    return "student" if "student" in made else "teacher"


def _speedup(report: dict[str, Any], gate: GateSettings) -> tuple[float | None, Interval]:
    """How many times faster `of` is than `against`: the inverse of the ratio of their times.

    Like with like: builds of one precision where both have one, else each float network's best build.
    """
    assert gate.against is not None
    preferred, sides = report.get("preferred", {}), {gate.of, _named(gate.against, report)}
    found: dict[bool, tuple[float, tuple[float, float]]] = {}
    for row in report["comparisons"]:
        named = [row[side].partition("@")[0].partition(".") for side in ("a", "b")]
        (a, _, first), (b, _, second) = named
        if row["target"] != gate.target or {a, b} != sides:
            continue
        alike = first == second
        if not alike and any(preferred.get((gate.target, role), kind) != kind for role, _, kind in named):
            continue
        low, high = row["ci95"]
        turned = (1 / row["ratio"], (1 / high, 1 / low)) if a == gate.of else (row["ratio"], (low, high))
        found.setdefault(alike, turned)
    return found.get(True) or found.get(False) or (None, None)


def _size(report: dict[str, Any], gate: GateSettings) -> float | None:
    if gate.target is not None:
        rows = [build] if (build := _build(report, gate)) is not None else []
    else:
        rows = [m for m in report["models"] if m["role"] == gate.of]
    return float(rows[0]["size_bytes"]) if rows else None


def _pair(values: Any) -> Interval:
    return (float(values[0]), float(values[1])) if values else None
