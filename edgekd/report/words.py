"""How numbers, units and intervals are written: once for the terminal, Markdown and HTML."""

from __future__ import annotations

import math
import unicodedata
from collections.abc import Mapping

from edgekd.report.schema import Comparison, Gate, Metric

_PLAIN_UNITS = {None, "", "1", "fraction", "ratio"}
_LONGEST_CELL = 300
Pair = tuple[float, float]


def number(value: float | None) -> str:
    """Four significant digits at most, no exponent between 0.001 and a million; empty for null."""
    if value is None:
        return ""
    if abs(value) < 1e-12:  # what is left of a difference of equals
        return "0"
    if 1e-3 <= abs(value) < 1e6:
        whole = len(str(int(abs(value)))) if abs(value) >= 1 else 0
        text = f"{value:.{max(0, 4 - whole)}f}"
        return text.rstrip("0").rstrip(".") if "." in text else text
    return f"{value:.3g}"


def number_between(value: float | None, interval: Pair | None) -> str:
    """A value and its 95% interval: `1.21 [1.18, 1.25]`."""
    return f"{number(value)} {bracket(interval)}".strip() if value is not None else ""


def bracket(interval: Pair | None) -> str:
    """A 95% interval: `[1.18, 1.25]`; empty for null."""
    return f"[{number(interval[0])}, {number(interval[1])}]" if interval else ""


def with_unit(text: str, unit: str | None) -> str:
    """Put a unit behind a number, if it has one."""
    return text if unit in _PLAIN_UNITS or not text else f"{text} {unit}"


def metric_value(metric: Metric | None) -> str:
    """A metric's value with its unit and interval."""
    if metric is None:
        return ""
    return f"{with_unit(number(metric.value), metric.unit)} {bracket(metric.ci95)}".strip()


def size(size_bytes: int | None) -> str:
    """A size in the unit that suits it, powers of 1000; empty for null."""
    if size_bytes is None:
        return ""
    if size_bytes < 1000:
        return f"{size_bytes} B"
    power = min(3, int(math.log10(size_bytes) // 3))
    return (
        f"{size_bytes / 1000**power:.3g} {('B', 'kB', 'MB', 'GB')[power]}"
        if power < 3
        else f"{size_bytes / 1e9:.4g} GB"
    )


def count(value: int | None) -> str:
    """A large count in thousands (k), millions (M) or billions (G); empty for null."""
    if value is None:
        return ""
    for power, letter in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= power:
            return f"{value / power:.3g}{letter}"
    return str(value)


def seconds(value: float | None) -> str:
    """A duration: `0.4 s`, `75 s`, `3 min 20 s`, `2 h 5 min`; empty for null."""
    if value is None:
        return ""
    if value < 100:
        return f"{value:.2g} s" if value < 1 else f"{value:.3g} s"
    minutes, rest = divmod(round(value), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s"


def layers(executed: Mapping[str, int]) -> str:
    """How many layers ran in which precision, most first: `20 int8, 3 f32`."""
    ordered = sorted(executed.items(), key=lambda item: (-item[1], item[0]))
    return ", ".join(f"{layer_count} {precision}" for precision, layer_count in ordered)


def factor(comparison: Comparison) -> tuple[float, Pair | None]:
    """How many times faster or slower, at least 1 wherever the verdict is one of the two, with its interval."""
    ratio, interval = comparison.ratio, comparison.ci95
    if ratio >= 1 or ratio <= 0:
        return ratio, interval
    turned = (1 / interval[1], 1 / interval[0]) if interval and interval[0] > 0 else None
    return 1 / ratio, turned


def times(comparison: Comparison) -> str:
    """The factor with its interval: `2.1x [2.0, 2.2]`, with more decimals the nearer it is to 1."""
    value, interval = factor(comparison)
    decimals = 1 if value >= 1.95 else 2 if value >= 1.095 else 3
    text = f"{value:.{decimals}f}x"
    return f"{text} [{interval[0]:.{decimals}f}, {interval[1]:.{decimals}f}]" if interval else text


def gate_label(gate: Gate) -> str:
    """The budget in words."""
    if gate.label:
        return gate.label
    against = f" against {gate.against}" if gate.against else ""
    target = f" on {gate.target}" if gate.target else ""
    return f"{gate.measure} of {gate.of}{against}{target}"


def gate_value(gate: Gate) -> str:
    """What was measured, with unit and interval; says so when nothing was."""
    if gate.value is None:
        return "not measured"
    return f"{_in_unit(gate.value, gate.unit)} {bracket(gate.ci95)}".strip()


def gate_limit(gate: Gate) -> str:
    """The limit with its unit."""
    return _in_unit(gate.limit, gate.unit)


def _in_unit(value: float, unit: str | None) -> str:
    return size(round(value)) if unit == "B" else with_unit(number(value), unit)


def cell(text: str) -> str:
    """Text fit for one cell of a table: one line, no control characters, not endless."""
    visible = "".join(" " if unicodedata.category(c) in ("Cc", "Cf", "Zl", "Zp") else c for c in text)
    line = " ".join(visible.split())
    return line if len(line) <= _LONGEST_CELL else line[: _LONGEST_CELL - 1] + "…"
