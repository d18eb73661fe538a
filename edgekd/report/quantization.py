"""The drawings of quantization: how layers bear few bits, the arms, in which precision layers ran; the ladder's table.

Each drawing is SVG text, and empty when there is nothing to draw. Rows come from files that anything may have written:
what is not as expected is left out.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from edgekd.report import svg, words
from edgekd.report.attachments import Attachment

Row = Mapping[str, Any]

_WHOLE = 0  # a layer with its inputs, at the bits that were asked for
_BITS = re.compile(r"^divergence at (\d+) bits$")
_MOST_LAYERS, _MOST_BARS, _MOST_ARMS = 150, 20, 24
_NAMED_LAYERS, _TIPPED_LAYERS = 80, 60
_NAMES = 150.0  # pixels for the names of layers
_COLOURS = {"f32": "s0", "f16": "s3", "bf16": "s5", "int8": "s2", "uint8": "s2", "int4": "s6"}
_OTHER = "s7"


def sensitivity(detail: Attachment) -> list[str]:
    """The layers' sensitivity in the order of execution, and the way down to the budget."""
    return [drawing for drawing in (_layers_by_bits(detail), _way_down(detail)) if drawing]


def _layers_by_bits(detail: Attachment) -> str:
    """Layers from top to bottom, how far the answers move on a log axis: a line for each number of bits."""
    rows = _most_sensitive([r for r in detail.rows if isinstance(r.get("layer"), str) and _divergences(r)])
    widths = sorted({bits for row in rows for bits in _divergences(row)}, reverse=True)[: svg.SERIES_COLOURS]
    values = [v for row in rows for v in _divergences(row).values() if v > 0]
    if not rows or not values:
        return ""
    step = min(17.0, max(6.0, 1300.0 / len(rows)))
    top, height = 8.0, 8.0 + step * len(rows)
    x = svg.fit(values, _NAMES, svg.WIDTH - 12, log=True)
    body = svg.grid_x(x, top, height) + svg.text(x.end, height + 33, "divergence of the answers (log)", anchor="end")
    at = {index: top + step * (index + 0.5) for index in range(len(rows))}
    body += _layer_names([str(row["layer"]) for row in rows], at)
    for series, bits in enumerate(widths):
        points = [(x(max(d[bits], x.low)), at[i]) if bits in (d := _divergences(row)) else None
                  for i, row in enumerate(rows)]  # fmt: skip
        body += svg.polyline(points, f"curve s{series}")
        for point, row in zip(points, rows, strict=True):
            if point is not None and (len(rows) <= _TIPPED_LAYERS or _is_chosen(row, bits)):
                moved = words.number(_divergences(row)[bits])
                tip = f"{row['layer']}, {_series(bits)}: {moved}; chosen: {row.get('chosen')}"
                body += _mark(point, series, tip, chosen=_is_chosen(row, bits))
    names = [_series(bits) for bits in widths]
    place = height + 52
    body += svg.legend(names, place) + _mark((19, place + 17 * len(names) - 4), -1, "", chosen=True)
    body += svg.text(34, place + 17 * len(names), "what was chosen")
    return svg.frame(body, title=f"How far each layer moves the answers{detail.of}", height=place + 17 * len(names) + 8)


def _way_down(detail: Attachment) -> str:
    steps = [(_number(step.get("mean_bits")), _number(step.get("divergence"))) for step in detail.further("steps")]
    steps = [point for point in steps if math.isfinite(point[0]) and point[1] > 0]
    if len(steps) < 2:
        return ""
    title = f"The way down, {len(steps)} steps to {words.number(steps[-1][0])} bits{detail.of}"
    label = "sum of the layers' divergences (log)"
    return svg.line_chart(
        title, {"a layer goes down": svg.thin(steps)}, x_label="mean bits of the weights", y_label=label, log_y=True
    )


def arms(detail: Attachment) -> list[str]:
    """For each metric a line per arm: its value and 95% interval."""
    rows = [row for row in detail.rows if isinstance(row.get("arm"), str) and math.isfinite(_number(row.get("value")))]
    names = dict.fromkeys((str(row.get("name", "")), str(row.get("split") or "")) for row in rows)
    groups = {name: [r for r in rows if (str(r.get("name", "")), str(r.get("split") or "")) == name] for name in names}
    return [_intervals(name, split, group[:_MOST_ARMS], detail.of) for (name, split), group in groups.items()]


def _intervals(name: str, split: str, rows: Sequence[Row], of: str) -> str:
    ends = {i: _interval(row) for i, row in enumerate(rows)}
    x = svg.fit([v for pair in ends.values() for v in pair], 12, svg.WIDTH - 12)
    height = 8.0 + 40 * len(rows)
    unit = str(rows[0].get("unit") or "")
    body = svg.grid_x(x, 8, height)
    body += svg.text(x.end, height + 33, words.with_unit(f"{name}, 95% interval", unit), anchor="end")
    for i, row in enumerate(rows):
        at, (low, high) = 26 + 40 * i, ends[i]
        shown = words.number_between(_number(row["value"]), (low, high) if low < high else None)
        body += svg.text(12, at, svg.short(str(row["arm"]), 36), css="halo")
        body += svg.text(x.end, at, shown, anchor="end", css="halo")
        body += svg.line((x(low), at + 12), (x(high), at + 12), "curve s0")
        tip = f"{row['arm']}: {words.with_unit(shown, unit)}, n {row.get('n')}"
        body += svg.dot((x(_number(row["value"])), at + 12), "mark s0", tip)
    where = f" ({split})" if split else ""
    return svg.frame(body, title=f"Arms by {name}{where}{of}", height=height + 42)


def layers(detail: Attachment) -> list[str]:
    """The layers of each build that took the most time, the slowest first, coloured by what they executed in."""
    rows = [row for row in detail.rows if _number(row.get("ms")) > 0]
    keys = dict.fromkeys(_build_of(row) for row in rows)
    return [_bars(key, [row for row in rows if _build_of(row) == key]) for key in keys]


def _bars(build: str, rows: Sequence[Row]) -> str:
    slowest = sorted(rows, key=lambda row: -_number(row["ms"]))[:_MOST_BARS]
    precisions = list(dict.fromkeys(str(row.get("executed") or "unknown") for row in slowest))
    height = 6.0 + 31 * len(slowest)
    x = svg.Scale(0, _number(slowest[0]["ms"]), 12, svg.WIDTH - 12)
    total = sum(_number(row["ms"]) for row in rows)
    body = ""
    for i, row in enumerate(slowest):
        at, ms = 18 + 31 * i, _number(row["ms"])
        share = _number(row.get("share"))
        share = share if math.isfinite(share) else ms / total
        executed = str(row.get("executed") or "unknown")
        label = f"{row.get('layer', '')} ({row.get('kind')})" if row.get("kind") else str(row.get("layer", ""))
        value = f"{words.number(ms)} ms, {100 * share:.1f}%"
        body += svg.text(12, at, svg.short(label, 40)) + svg.text(x.end, at, value, anchor="end")
        colour = _COLOURS.get(executed, _OTHER)
        body += svg.bar((x.start, at + 4), (x(ms), at + 12), colour, f"{label}: {value}, {executed}")
    for i, precision in enumerate(precisions):
        place = height + 22 + 17 * i
        body += svg.bar((10, place - 8), (28, place), _COLOURS.get(precision, _OTHER), "")
        body += svg.text(34, place, precision)
    more = f", the {len(slowest)} slowest of {len(rows)} layers" if len(rows) > len(slowest) else ""
    return svg.frame(body, title=f"{build}{more}", height=height + 16 + 17 * len(precisions))


@dataclass(frozen=True)
class Ladder:
    """The ladder as a table, header first, and a mark for each row below it: broken, worst, or nothing."""

    rows: list[list[str]]
    marks: list[str]


def ladder(detail: Attachment) -> Ladder:
    """Every rung; the one that agrees least stands out, and each that has no number at all."""
    rows = [row for row in detail.rows if "rung" in row][:100]
    fixed = ("rung", "against", "n", "max_abs_error", "agreement")
    scores = list(dict.fromkeys(key for row in rows for key in row if key not in fixed))[:6]
    header = ["rung", "held against", "n", "largest error", "agreement", *scores, "note"]
    held = [row for row in rows if row.get("against")]
    broken = [row for row in held if not all(math.isfinite(_number(row.get(key))) for key in fixed[3:])]
    worst = min(
        (row for row in held if row not in broken),
        key=lambda row: (_number(row["agreement"]), -_number(row["max_abs_error"])),
        default=None,
    )
    body, marks = [], []
    for row in rows:
        mark = "broken" if row in broken else "worst" if row is worst and len(held) > 1 else ""
        numbers = [_plain(row.get(key)) for key in ("max_abs_error", "agreement", *scores)]
        note = {"broken": "broken", "worst": "agrees least"}.get(mark, "")
        body.append([str(row["rung"]), str(row.get("against") or ""), _plain(row.get("n")), *numbers, note])
        marks.append(mark)
    return Ladder([header, *body], marks)


def arm_table(detail: Attachment) -> list[list[str]]:
    """The arms with their values, header first: an arm a line, a metric a column."""
    rows = [row for row in detail.rows if isinstance(row.get("arm"), str) and math.isfinite(_number(row.get("value")))]
    names = list(dict.fromkeys(str(row.get("name", "")) for row in rows))[:6]
    lines = []
    for arm in dict.fromkeys(str(row["arm"]) for row in rows):
        own = {str(row.get("name", "")): row for row in rows if row["arm"] == arm}
        first = next(iter(own.values()))
        values = [_value(own.get(name)) for name in names]
        lines.append([arm, *values, _plain(first.get("n")), str(first.get("split") or "")])
    return [["arm", *names, "n", "split"], *lines]


def _value(row: Row | None) -> str:
    if row is None:
        return ""
    low, high = _interval(row)
    text = words.with_unit(words.number(_number(row["value"])), str(row.get("unit") or ""))
    return f"{text} {words.bracket((low, high))}" if low < high else text


def _most_sensitive(rows: Sequence[Row]) -> Sequence[Row]:
    """At most so many layers, in the order of execution."""
    if len(rows) <= _MOST_LAYERS:
        return rows
    strongest = sorted(range(len(rows)), key=lambda i: -max(_divergences(rows[i]).values()))[:_MOST_LAYERS]
    return [rows[i] for i in sorted(strongest)]


def _divergences(row: Row) -> dict[int, float]:
    found = {int(match[1]): _number(value) for key, value in row.items() if (match := _BITS.match(str(key)))}
    if "divergence with its inputs" in row:
        found[_WHOLE] = _number(row["divergence with its inputs"])
    return {bits: value for bits, value in found.items() if math.isfinite(value)}


def _series(bits: int) -> str:
    return f"{bits} bits" if bits != _WHOLE else "weight and inputs"


def _is_chosen(row: Row, bits: int) -> bool:
    return row.get("chosen") == (f"{bits} bits" if bits != _WHOLE else "float")


def _layer_names(names: Sequence[str], at: Mapping[int, float]) -> str:
    every = math.ceil(len(names) / _NAMED_LAYERS)
    return "".join(
        svg.text(_NAMES - 6, at[i] + 4, _tail(name, 19), anchor="end") for i, name in enumerate(names) if i % every == 0
    )


def _tail(name: str, most: int) -> str:
    """The end of a name, which tells layers of one block apart."""
    return name if len(name) <= most else f"…{name[1 - most :]}"


def _mark(at: svg.Point, series: int, tip: str, *, chosen: bool) -> str:
    return (svg.ring(at) if chosen else "") + (svg.dot(at, f"mark s{series}", tip, radius=3) if series >= 0 else "")


def _build_of(row: Row) -> str:
    return ", ".join([str(row.get("target", "")), f"{row.get('model', '')} {row.get('precision', '')}".strip()])


def _interval(row: Row) -> tuple[float, float]:
    value, given = _number(row.get("value")), row.get("ci95")
    if isinstance(given, list) and len(given) == 2:
        low, high = map(_number, given)
        if low <= value <= high:
            return low, high
    return value, value


def _number(value: Any) -> float:
    plain = isinstance(value, (int, float)) and not isinstance(value, bool)
    return float(value) if plain and abs(value) < 1e300 else math.nan


def _plain(value: Any) -> str:
    number = _number(value)
    return words.number(number) if math.isfinite(number) else ""
