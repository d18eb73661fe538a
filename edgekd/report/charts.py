"""The drawings of the report: trade-off, distributions of latency, comparisons, loss curves.

Each is SVG text, and empty when there is nothing to draw.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path

from edgekd.report import svg, words
from edgekd.report.attachments import Curve, PhaseCurves, samples
from edgekd.report.schema import Build, Comparison, Latency, Report
from edgekd.report.table import latency_of, main_metric

_MOST_POINTS = 200
_QUANTILES = 120
_BINS = 48
_LOG_ABOVE = 10.0
_LAUNCH = 8  # pixels from one launch of a comparison to the next


def trade_off(report: Report) -> str:
    """Quality over median latency, one mark per build with 95% intervals; dashes join what nothing beats."""
    marks = [(b, row, m) for b in report.builds if (row := latency_of(report, b)) and (m := main_metric(b))]
    marks = [mark for mark in marks if mark[1].p50_ms > 0 and mark[2].name == marks[0][2].name][:_MOST_POINTS]
    if len(marks) < 2:
        return ""
    metric = marks[0][2]
    x_ends = [row.ci95.get("p50_ms") or (row.p50_ms, row.p50_ms) for _, row, _ in marks]
    y_ends = [m.ci95 or (m.value, m.value) for _, _, m in marks]
    x = svg.fit(
        [v for pair in x_ends for v in pair] + [row.p50_ms for _, row, _ in marks], 52, svg.WIDTH - 12, log=True
    )
    y = svg.fit([v for pair in y_ends for v in pair] + [m.value for _, _, m in marks], svg.HEIGHT - 44, 26)
    body = svg.axes(x, y, x_label="p50 ms (log)", y_label=words.with_unit(metric.name, metric.unit))
    pixels = [(x(row.p50_ms), y(m.value)) for _, row, m in marks]
    body += _front(pixels)
    dots, targets = "", list(dict.fromkeys(b.target for b, _, _ in marks))
    for (build, row, m), at, xe, ye in zip(marks, pixels, x_ends, y_ends, strict=True):
        colour = f"s{targets.index(build.target) % svg.SERIES_COLOURS}"
        low, high = (max(v, x.low) for v in xe)
        body += svg.line((x(low), at[1]), (x(high), at[1]), f"curve {colour}")
        body += svg.line((at[0], y(ye[0])), (at[0], y(ye[1])), f"curve {colour}")
        dots += svg.dot(at, f"mark {colour}", _tip(build, row, words.metric_value(m)), square=build.chosen)
    body += _labels([(at, f"{b.model} {b.precision}") for (b, _, _), at in zip(marks, pixels, strict=True)]) + dots
    body += svg.legend(targets, svg.HEIGHT + 12)
    return svg.frame(body, title=f"{metric.name} over median latency", height=svg.HEIGHT + 12 + 17 * len(targets))


def distributions(report: Report, folder: Path) -> list[str]:
    """Histogram and cumulative distribution of every measured latency, on a log axis: a pair of drawings per target."""
    drawings = []
    for target in dict.fromkeys(row.target for row in report.latency):
        measured = {
            f"{row.model} {row.precision}, batch {row.batch}, n {len(times)}": times
            for row in report.latency
            if row.target == target and (times := _sorted_samples(row, folder))
        }
        shown = dict(list(measured.items())[: svg.SERIES_COLOURS])
        if not shown:
            continue
        low, high = min(times[0] for times in shown.values()), max(times[-1] for times in shown.values())
        histograms = {name: _histogram(times, low, high) for name, times in shown.items()}
        cumulative = {name: _cumulative(times) for name, times in shown.items()}
        for kind, series in (("share of inferences", histograms), ("cumulative share", cumulative)):
            title = f"Latency on {target}: {kind}"
            drawings.append(svg.line_chart(title, series, x_label="ms (log)", y_label=kind, log_x=True))
    return drawings


def forest(comparisons: tuple[Comparison, ...], by_launch: Mapping[int, Sequence[tuple[float, float, float]]]) -> str:
    """One line per comparison: its ratio and 95% interval on a log axis with 1 marked; below it each launch."""
    rows = [(c, list(by_launch.get(i, ()))) for i, c in enumerate(comparisons) if c.ratio > 0][:30]
    if not rows:
        return ""
    ends = [v for c, own in rows for v in (c.ratio, *(c.ci95 or ()), *(v for one in own for v in one)) if v > 0]
    reach = max(*(max(v, 1 / v) for v in ends), 1.1)
    height = sum(44 + _LAUNCH * len(own) for _, own in rows) + 50
    x = svg.fit([1 / reach, reach], 12, svg.WIDTH - 12, log=True)
    y = svg.Scale(0, 1, height - 44, 8)
    body = svg.grid_x(x, y.end, y.start)
    body += svg.line((x(1), y.start), (x(1), y.end), "axis")
    body += svg.text(x.end, y.start + 33, "a / b (log): left of 1, a takes less", anchor="end")
    at = 24.0
    for c, own in rows:
        where = f" on {c.target}" if c.target else ""
        body += svg.text(12, at, svg.short(f"{c.a} / {c.b}{where}", 52), css="halo") + svg.text(
            x.end, at, c.verdict, anchor="end", css=c.verdict
        )
        low, high = (max(v, x.low) for v in c.ci95 or (c.ratio, c.ratio))
        body += svg.line((x(low), at + 15), (x(high), at + 15), f"curve {c.verdict}")
        tip = f"{c.a} / {c.b}, {c.measure}: {words.number_between(c.ratio, c.ci95)}"
        body += svg.dot((x(c.ratio), at + 15), f"mark {c.verdict}", tip)
        for number, (ratio, *within) in enumerate(own, start=1):
            place = at + 18 + _LAUNCH * number
            body += svg.line((x(within[0]), place), (x(within[1]), place), "curve s7 thin")
            told = words.number_between(ratio, (within[0], within[1]))
            body += svg.dot((x(ratio), place), "mark s7", f"launch {number}: {told}", radius=2.2)
        at += 44 + _LAUNCH * len(own)
    below = ", and launch by launch" if any(own for _, own in rows) else ""
    return svg.frame(body, title=f"Comparisons with 95% intervals{below}", height=height)


def learning(phase: PhaseCurves) -> list[str]:
    """The drawings of a phase: its terms, as many to a drawing as there are colours, its metrics, its learning rate."""
    drawings = []
    for kind, found, label in (("loss terms", phase.terms, "loss"), ("metrics", phase.metrics, "metric")):
        kept = [c for c in found if any(math.isfinite(v) for _, v in c.points)]
        groups = [kept[i : i + svg.SERIES_COLOURS] for i in range(0, len(kept), svg.SERIES_COLOURS)]
        for number, group in enumerate(groups, start=1):
            place = f" {number} of {len(groups)}" if len(groups) > 1 else ""
            drawings.append(_curves(f"{phase.name}: {kind}{place}", group, label))
    if any(value > 0 for curve in phase.rates for _, value in curve.points):
        drawings.append(_curves(f"{phase.name}: learning rate", phase.rates, "learning rate"))
    return [drawing for drawing in drawings if drawing]


def _curves(title: str, kept: list[Curve], y_label: str) -> str:
    """Curves over epochs; losses of very different size stand on a log axis."""
    values = [v for curve in kept for _, v in curve.points if math.isfinite(v)]
    if not values:
        return ""
    log = y_label == "loss" and min(values) > 0 and max(values) / min(values) > _LOG_ABOVE
    series = {curve.label: svg.thin(curve.points, _MOST_POINTS) for curve in kept}
    label = f"{y_label} (log)" if log else y_label
    return svg.line_chart(title, series, x_label="epoch", y_label=label, log_y=log)


def _front(pixels: list[svg.Point]) -> str:
    best = math.inf
    corners: list[svg.Point | None] = []
    for px, py in sorted(pixels):
        if py < best:
            corners += [(px, best), (px, py)] if corners else [(px, py)]
            best = py
    return svg.polyline(corners, "front")


def _labels(marks: list[tuple[svg.Point, str]]) -> str:
    placed = [(px - 5, px + 5, py + 4) for (px, py), _ in marks]  # from, to and bottom of what is in the way
    parts = []
    for (px, py), name in sorted(marks, key=lambda mark: mark[0][1]):
        label = svg.short(name, 24)
        wide = 6.4 * len(label)
        left = px + 8 if px + 8 + wide < svg.WIDTH else px - 8 - wide
        at = py - 6
        while any(abs(at - y) < 13 and left < right and start < left + wide for start, right, y in placed):
            at += 4
        placed.append((left, left + wide, at))
        parts.append(svg.text(left, at, label, css="halo"))
    return "".join(parts)


def _tip(build: Build, row: Latency, quality: str) -> str:
    p50 = words.number_between(row.p50_ms, row.ci95.get("p50_ms"))
    return f"{build.target}, {build.model} {build.precision}: {quality}, p50 {p50} ms"


def _sorted_samples(row: Latency, folder: Path) -> list[float]:
    found = samples(row, folder)
    return [] if found is None else found.tolist()


def _histogram(times: list[float], low: float, high: float) -> list[svg.Point]:
    from bisect import bisect_left

    ratio = max(high / low, 1.001) ** (1 / _BINS)
    edges = [low * ratio**i for i in range(_BINS + 1)]
    edges[-1] = math.inf
    positions = [bisect_left(times, edge) for edge in edges]
    steps: list[svg.Point] = [(low, 0.0)]
    for i, (a, b) in enumerate(pairwise(positions)):
        share = (b - a) / len(times)
        steps += [(low * ratio**i, share), (low * ratio ** (i + 1), share)]
    return [*steps, (low * ratio**_BINS, 0.0)]


def _cumulative(times: list[float]) -> list[svg.Point]:
    last = len(times) - 1
    places = sorted({round(last * i / _QUANTILES) for i in range(_QUANTILES + 1)})
    return [(times[i], (i + 1) / len(times)) for i in places]
