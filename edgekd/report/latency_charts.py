"""The drawings of latency beyond single inferences: over time, per launch, by batch and streams, under load, sustained.

Each is SVG text, and empty when there is nothing to draw. Rows come from files that anything may have written: what is
not as expected is left out.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from edgekd.report import svg, words
from edgekd.report.attachments import Attachment, Launch, further_rows, launch_notes, launches
from edgekd.report.schema import Latency, Report

Row = Mapping[str, Any]
Interval = tuple[float, float, float]

_MOST_BINS = 240  # points of a curve over time, all launches together
_MOST_LAUNCHES = 20
_BREAK = (math.nan, math.nan)
_STATE = {"frequency_mhz": "frequency, MHz", "temperature_c": "temperature, °C", "pressure_percent": "pressure, %"}


def over_time(report: Report, folder: Path) -> list[str]:
    """Latency of every build while it was measured, launch after launch, and below it what the machine noted then."""
    drawings = []
    for target in dict.fromkeys(row.target for row in report.latency):
        rows = [row for row in report.latency if row.target == target]
        found = {_label(row): kept for row in rows if (kept := launches(row, folder))}
        found = dict(list(found.items())[: svg.SERIES_COLOURS])
        count = min((len(kept) for kept in found.values()), default=0)
        if 0 < count <= _MOST_LAUNCHES:
            drawings.append(_timeline(target, found, count, launch_notes(rows[0], folder)))
    return drawings


def _timeline(target: str, found: Mapping[str, Sequence[Launch]], count: int, noted: Sequence[Row]) -> str:
    series: dict[str, list[svg.Point]] = {name: [] for name in found}
    states: dict[str, list[svg.Point]] = {name: [] for name in _STATE}
    begins, offset = [], 0.0
    for index in range(count):
        first = min(int(kept[index].start_ns[0]) for kept in found.values())
        begins.append(offset)
        seconds = 0.0
        for name, kept in found.items():
            points = _visits(kept[index], first, _MOST_BINS // count)
            series[name] += [*((offset + t, ms) for t, ms in points), _BREAK]
            seconds = max(seconds, points[-1][0])
        for note in _notes(noted, index):
            for name, points in states.items():
                points.append((offset + _number(note.get("t_s")), _number(note.get(name))))
        for points in states.values():
            points.append(_BREAK)
        offset += 1.04 * seconds
    known = {_STATE[name]: points for name, points in states.items() if any(math.isfinite(v) for _, v in points)}
    missing = [name.split(",")[0] for name in list(_STATE.values())[:2] if name not in known]
    notes = [f"This machine does not tell its {' or '.join(missing)}."] if missing else []
    values = [ms for points in series.values() for _, ms in points if math.isfinite(ms)]
    log = max(values) > 10 * min(values)

    def launch_lines(x: svg.Scale, y: svg.Scale) -> str:
        return "".join(svg.line((x(at), y.start), (x(at), y.end), "front") for at in begins[1:])

    return svg.line_chart(
        f"Latency on {target} over time", series, notes=notes, x_label=f"s, {count} launches", log_y=log, panels=known,
        y_label=f"ms{' (log)' if log else ''}, median of some 20 ms", also=launch_lines,
    )  # fmt: skip


def _visits(launch: Launch, first_ns: int, most: int) -> list[svg.Point]:
    """Median time per call over a launch: (seconds since its first visit, milliseconds), at most so many."""
    import numpy as np

    medians = np.median(launch.samples.wall_ns, axis=1) / 1e6
    seconds = (launch.start_ns[: len(medians)] - first_ns) / 1e9
    parts = np.array_split(np.arange(len(medians)), min(len(medians), max(2, most)))
    return [(float(seconds[part].mean()), float(np.median(medians[part]))) for part in parts]


def _notes(notes: Sequence[Row], index: int) -> list[Row]:
    monitor = notes[index].get("monitor") if index < len(notes) else None
    return [note for note in monitor if isinstance(note, dict)] if isinstance(monitor, list) else []


def ratios_by_launch(report: Report, folder: Path) -> dict[int, list[Interval]]:
    """For each comparison (by its place in the report) the ratio within each launch: median, and its 95% interval.

    The interval is that of the order statistics of the launch's rounds: it holds within that launch alone.
    """
    measured = {f"{row.model}.{row.precision}@{row.target}": row for row in report.latency}
    kept: dict[str, list[Launch]] = {}
    found = {}
    for index, c in enumerate(report.comparisons):
        if c.a not in measured or c.b not in measured:
            continue
        for name in (c.a, c.b):
            if name not in kept:
                kept[name] = launches(measured[name], folder)
        pairs = zip(kept[c.a], kept[c.b], strict=False)
        own = [_ratio(a, b, by_cpu=c.clock == "cpu") for a, b in list(pairs)[:_MOST_LAUNCHES]]
        if own:
            found[index] = own
    return found


def _ratio(a: Launch, b: Launch, *, by_cpu: bool) -> Interval:
    import numpy as np

    times = [s.round_cpu_ns() if by_cpu else s.round_wall_ns() for s in (a.samples, b.samples)]
    rounds = min(map(len, times))
    logs = np.sort(np.log(np.maximum(times[0][:rounds], 1.0) / np.maximum(times[1][:rounds], 1.0)))
    reach = 1.96 * math.sqrt(rounds) / 2
    low, high = max(0, math.floor((rounds - 1) / 2 - reach)), min(rounds - 1, math.ceil((rounds - 1) / 2 + reach))
    middle, low_end, high_end = (math.exp(float(v)) for v in (np.median(logs), logs[low], logs[high]))
    return middle, low_end, high_end


def throughput(report: Report) -> list[str]:
    """Samples per second of each build by the size of a batch, and by how many run at once, with 95% intervals."""
    rows = [row for row in further_rows(report, "throughput") if _number(row.get("throughput_per_s")) > 0]
    drawings = []
    for build, own in _grouped(rows, ("target", "model", "precision")):
        for x, other in (("batch", "streams"), ("streams", "batch")):
            if len({row.get(x) for row in own}) > 1:
                drawings.append(_by(f"Throughput of {build} by {x}", own, x, other))
    return drawings


def _by(title: str, rows: Sequence[Row], x_name: str, other: str) -> str:
    kept = sorted((row for row in rows if _number(row.get(x_name)) > 0), key=lambda row: _number(row[x_name]))
    groups = dict(_grouped(kept, (other,)))
    series = {
        f"{other} {value}": [(_number(row[x_name]), _number(row["throughput_per_s"])) for row in own]
        for value, own in list(groups.items())[: svg.SERIES_COLOURS]
    }
    ends = [_ends(row, "throughput_per_s") for row in kept]

    def marks(x: svg.Scale, y: svg.Scale) -> str:
        body = ""
        for row, (low, high) in zip(kept, ends, strict=True):
            place = list(groups).index(str(row.get(other)))
            if place >= svg.SERIES_COLOURS:
                continue
            at, css = x(_number(row[x_name])), f"s{place}"
            value = _number(row["throughput_per_s"])
            tip = f"{x_name} {row[x_name]}, {other} {row.get(other)}: {words.number(value)} per s"
            full = bool(row.get("saturated"))
            body += svg.line((at, y(low)), (at, y(high)), f"curve {css}")
            body += svg.dot((at, y(value)), f"mark {css}", tip + (", saturated" if full else ""), square=full)
        return body

    room = [(_number(row[x_name]), v) for row, pair in zip(kept, ends, strict=True) for v in pair]
    notes = ["A square: saturated, more streams bring no more."] if any(row.get("saturated") for row in kept) else []
    label = f"{x_name} (log)"
    return svg.line_chart(
        title, series, x_label=label, y_label="per s", log_x=True, also=marks, room=room, notes=notes
    )  # fmt: skip


def load(report: Report) -> list[str]:
    """Latency of each build under requests that arrive at a rate, whoever waits: its percentiles and the limit."""
    rows = [row for row in further_rows(report, "load") if _number(row.get("rate_per_s")) > 0]
    groups = _grouped(rows, ("target", "model", "precision", "batch", "streams"))
    return [drawing for _, own in groups if (drawing := _loaded(own))]


def _loaded(rows: Sequence[Row]) -> str:
    rows = sorted(rows, key=lambda row: _number(row["rate_per_s"]))
    series = {
        name: [(_number(row["rate_per_s"]), _number(row.get(f"{name}_ms"))) for row in rows]
        for name in ("p50", "p90", "p99")
    }
    series = {name: points for name, points in series.items() if any(v > 0 for _, v in points)}
    if not series:
        return ""
    limit = next((v for row in rows if (v := _number(row.get("limit_ms"))) > 0), math.nan)
    highest = [_number(row["rate_per_s"]) for row in rows if row.get("highest")]
    bars = [(_number(row["rate_per_s"]), *_ends(row, "p99_ms")) for row in rows if _number(row.get("p99_ms")) > 0]
    behind = [row for row in rows if row.get("kept_up") is False]

    def marks(x: svg.Scale, y: svg.Scale) -> str:
        body = ""
        if limit > 0:
            body += svg.line((x.start, y(limit)), (x.end, y(limit)), "front bad")
            body += svg.text(x.start + 4, y(limit) - 4, f"limit {words.number(limit)} ms", css="halo")
        for rate in highest:
            body += svg.line((x(rate), y.start), (x(rate), y.end), "front good")
        for rate, low, high in bars:
            body += svg.line((x(rate), y(max(low, y.low))), (x(rate), y(high)), f"curve s{list(series).index('p99')}")
        for row in behind:
            at, slow = _number(row["rate_per_s"]), _number(row.get("p99_ms") or row.get("p50_ms"))
            body += svg.ring((x(at), y(slow))) if slow > 0 else ""
        return body

    first = rows[0]
    notes = [f"{words.number(rate)} per s is the highest rate that keeps the limit." for rate in highest[:1]]
    notes += ["A ring: it did not keep up with the requests."] if behind else []
    build = f"{first.get('target')}, {first.get('model')} {first.get('precision')}"
    title = f"Under load: {build}"
    room = [
        *((r, v) for r, *ends in bars for v in ends),
        *([(_number(first["rate_per_s"]), limit)] if limit > 0 else []),
    ]
    return svg.line_chart(
        title, series, x_label="requests per s (log)", y_label="ms (log)", log_x=True, log_y=True, also=marks,
        room=room, notes=notes,
    )  # fmt: skip


def sustained(detail: Attachment) -> list[str]:
    """A long run of each build beside the reference model, with the machine's state below."""
    return [drawing for row in detail.rows if (drawing := _long_run(row))]


def _long_run(row: Row) -> str:
    seconds = [_number(v) for v in _list(row.get("t_s"))]

    def over(values: Iterable[Any], scale: float = 1.0) -> list[svg.Point]:
        points = [(t, scale * _number(v)) for t, v in zip(seconds, values, strict=False)]
        return svg.thin(points, _MOST_BINS) if any(math.isfinite(v) for _, v in points) else []

    times = {"p50": over(_list(row.get("p50_ms"))), "p50 of the reference": over(_list(row.get("reference_p50_ms")))}
    series = {name: points for name, points in times.items() if points}
    if not series:
        return ""
    panels = {_STATE[name]: over(_list(row.get(name))) for name in ("frequency_mhz", "temperature_c")}
    panels["resident memory, MB"] = over(_list(row.get("rss_bytes")), 1e-6)
    drift = _number(row.get("drift"))
    notes = [f"Drift {100 * drift:+.1f}% against the reference."] if math.isfinite(drift) else []
    notes += ["It was throttled."] if row.get("throttled") is True else []
    missing = [name.split(",")[0] for name, points in panels.items() if not points]
    notes += [f"This machine does not tell its {' or '.join(missing)}."] if missing else []
    title = f"Sustained: {row.get('target')}, {row.get('model')} {row.get('precision')}"
    known = {name: points for name, points in panels.items() if points}
    return svg.line_chart(title, series, x_label="s", y_label="ms", panels=known, notes=notes)


def _grouped(rows: Sequence[Row], names: Sequence[str]) -> list[tuple[str, list[Row]]]:
    groups: dict[str, list[Row]] = {}
    for row in rows:
        groups.setdefault(", ".join(str(row.get(name)) for name in names), []).append(row)
    return list(groups.items())


def _ends(row: Row, name: str) -> tuple[float, float]:
    value = _number(row.get(name))
    pair = (row.get("ci95") or {}).get(name) if isinstance(row.get("ci95"), dict) else None
    if isinstance(pair, (list, tuple)) and len(pair) == 2:
        low, high = map(_number, pair)
        if low <= value <= high:
            return low, high
    return value, value


def _label(row: Latency) -> str:
    return f"{row.model} {row.precision}, batch {row.batch}"


def _number(value: Any) -> float:
    plain = isinstance(value, (int, float)) and not isinstance(value, bool)
    return float(value) if plain and abs(value) < 1e300 else math.nan


def _list(value: Any) -> Sequence[Any]:
    return value if isinstance(value, (list, tuple)) else []
