"""Small drawing helpers: axes, lines and marks as SVG text. Colours come from the page's style sheet."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from types import MappingProxyType

from edgekd.report.words import number

WIDTH, HEIGHT = 440, 280
SERIES_COLOURS = 8
_PANEL = 78.0
Point = tuple[float, float]


@dataclass(frozen=True)
class Scale:
    """Maps values in `low`..`high` to pixels in `start`..`end`, by ratio if `log`."""

    low: float
    high: float
    start: float
    end: float
    log: bool = False

    def __call__(self, value: float) -> float:
        if self.log:
            share = math.log(value / self.low) / math.log(self.high / self.low)
        else:
            share = (value - self.low) / (self.high - self.low)
        return self.start + min(1.0, max(0.0, share)) * (self.end - self.start)

    def ticks(self, most: int = 6) -> list[float]:
        """Round values inside the scale, at most about `most`."""
        return _log_ticks(self.low, self.high, most) if self.log else _linear_ticks(self.low, self.high, most)


def fit(values: Iterable[float], start: float, end: float, *, log: bool = False) -> Scale:
    """A scale with some air around finite values (positive ones, if `log`)."""
    known = [v for v in values if math.isfinite(v) and (v > 0 or not log)] or [1.0]
    low, high = min(known), max(known)
    if log:
        air = max((high / low) ** 0.08, 1.02)
        return Scale(low / air, high * air, start, end, log=True)
    air = 0.08 * (high - low) or 0.05 * abs(high) or 1.0
    return Scale(low - air, high + air, start, end)


def axes(x: Scale, y: Scale, *, x_label: str, y_label: str) -> str:
    """Grid lines, tick labels and the names of both axes."""
    parts = []
    for value in y.ticks():
        at = y(value)
        parts.append(line((x.start, at), (x.end, at), "grid") + text(x.start - 5, at + 4, number(value), anchor="end"))
    for value in x.ticks():
        at = x(value)
        parts.append(line((at, y.start), (at, y.end), "grid") + text(at, y.start + 16, number(value), anchor="middle"))
    parts.append(text(x.end, y.start + 33, x_label, anchor="end") + text(4, y.end - 10, y_label))
    return "".join(parts)


def line(a: Point, b: Point, css: str) -> str:
    """A straight line."""
    return f'<path class="{css}" d="M{a[0]:.1f} {a[1]:.1f}L{b[0]:.1f} {b[1]:.1f}"/>'


def polyline(points: Sequence[Point | None], css: str) -> str:
    """A line through points in pixels, broken where a point is null."""
    path, pen_down = [], False
    for point in points:
        if point is not None:
            path.append(f"{'L' if pen_down else 'M'}{point[0]:.1f} {point[1]:.1f}")
        pen_down = point is not None
    return f'<path class="{css}" d="{"".join(path)}"/>' if path else ""


def text(x: float, y: float, content: str, *, anchor: str = "start", css: str = "") -> str:
    """A line of text; `anchor` is start, middle or end."""
    style = f' class="{css}"' if css else ""
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}"{style}>{escape(content)}</text>'


def dot(at: Point, css: str, title: str, *, square: bool = False, radius: float = 4.5) -> str:
    """A mark with a tooltip: a disc, or a square."""
    x, y = at
    tip = f"<title>{escape(title)}</title>"
    if square:
        return f'<rect class="{css}" x="{x - 4:.1f}" y="{y - 4:.1f}" width="8" height="8">{tip}</rect>'
    return f'<circle class="{css}" cx="{x:.1f}" cy="{y:.1f}" r="{radius:g}">{tip}</circle>'


def ring(at: Point) -> str:
    """An open circle around a mark."""
    return f'<circle class="ring" cx="{at[0]:.1f}" cy="{at[1]:.1f}" r="6"/>'


def bar(a: Point, b: Point, css: str, title: str) -> str:
    """A filled box between two corners, with a tooltip."""
    size = f'width="{max(b[0] - a[0], 1):.1f}" height="{b[1] - a[1]:.1f}"'
    return f'<rect class="mark {css}" x="{a[0]:.1f}" y="{a[1]:.1f}" {size}><title>{escape(title)}</title></rect>'


def grid_x(x: Scale, top: float, bottom: float) -> str:
    """Grid lines and tick labels of a horizontal axis alone."""
    return "".join(
        line((x(value), top), (x(value), bottom), "grid") + text(x(value), bottom + 16, number(value), anchor="middle")
        for value in x.ticks()
    )


def thin(points: list[Point], most: int = 200) -> list[Point]:
    """At most about so many points, the last one among them."""
    every = math.ceil(len(points) / most)
    return points[::every] if every <= 1 else [*points[::every], points[-1]]


def legend(names: Sequence[str], top: float) -> str:
    """One line of text per series, each with its colour."""
    rows = []
    for i, name in enumerate(names):
        at = top + 17 * i
        rows.append(line((10, at - 4), (28, at - 4), f"curve s{i % SERIES_COLOURS}") + text(34, at, short(name, 60)))
    return "".join(rows)


def frame(body: str, *, title: str, height: float = HEIGHT) -> str:
    """A whole drawing with its title on top, as wide as its place allows."""
    shown = text(4, -10, short(title, 62), css="title")
    return (
        f'<svg viewBox="0 -26 {WIDTH} {height + 26:.0f}" role="img" aria-label="{escape(title)}">'
        f"<title>{escape(title)}</title>{shown}{body}</svg>"
    )


def short(content: str, most: int) -> str:
    """Text of at most `most` characters."""
    return content if len(content) <= most else content[: most - 1] + "…"


def line_chart(
    title: str,
    series: Mapping[str, Sequence[Point]],
    *,
    x_label: str,
    y_label: str,
    log_x: bool = False,
    log_y: bool = False,
    panels: Mapping[str, Sequence[Point]] = MappingProxyType({}),
    also: Callable[[Scale, Scale], str] = lambda x, y: "",
    room: Sequence[Point] = (),
    notes: Sequence[str] = (),
) -> str:
    """Curves with a legend below. A point that is not finite (or not positive on a log axis) breaks its curve.

    Args:
        panels: further curves over the same x, each in a low panel of its own under the axis.
        also: what else is drawn on the scales.
        room: points that must lie within the axes, although no curve goes through them.
        notes: what else there is to say, a line each, below the legend.
    """
    xs, ys = _scales([*(p for points in series.values() for p in points), *room], log_x=log_x, log_y=log_y)
    shown = _shown(log_x=log_x, log_y=log_y)
    body = axes(xs, ys, x_label=x_label, y_label=y_label) + also(xs, ys)
    for i, points in enumerate(series.values()):
        pixels = [(xs(px), ys(py)) if shown((px, py)) else None for px, py in points]
        css = f"s{i % SERIES_COLOURS}"
        alone = len([p for p in pixels if p]) == 1
        body += polyline(pixels, f"curve {css}") + "".join(dot(p, f"mark {css}", "") for p in pixels if p and alone)
    below = HEIGHT + 4.0
    for label, points in panels.items():
        body += _panel(xs, points, label, below)
        below += _PANEL
    body += legend(list(series), below + 8)
    below += 8 + 17 * len(series)
    body += "".join(text(10, below + 17 * i, short(note, 66)) for i, note in enumerate(notes))
    return frame(body, title=title, height=below + 17 * len(notes))


def _panel(x: Scale, points: Sequence[Point], label: str, top: float) -> str:
    shown = _shown(log_x=False, log_y=False)
    y = fit([p[1] for p in points], top + _PANEL - 8, top + 20)
    body = text(4, top + 12, label)
    for value in y.ticks(3):
        body += line((x.start, y(value)), (x.end, y(value)), "grid")
        body += text(x.start - 5, y(value) + 4, number(value), anchor="end")
    return body + polyline([(x(px), y(py)) if shown((px, py)) else None for px, py in points], "curve s7")


def _scales(points: list[Point], *, log_x: bool, log_y: bool) -> tuple[Scale, Scale]:
    shown = _shown(log_x=log_x, log_y=log_y)
    kept = [p for p in points if shown(p)] or [(1.0, 1.0)]
    x = fit([p[0] for p in kept], 52, WIDTH - 12, log=log_x)
    return x, fit([p[1] for p in kept], HEIGHT - 44, 26, log=log_y)


def _shown(*, log_x: bool, log_y: bool) -> Callable[[Point], bool]:
    def shown(p: Point) -> bool:
        return math.isfinite(p[0]) and math.isfinite(p[1]) and (p[0] > 0 or not log_x) and (p[1] > 0 or not log_y)

    return shown


def _linear_ticks(low: float, high: float, most: int) -> list[float]:
    raw = (high - low) / most
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(power * factor for factor in (1, 2, 5, 10) if power * factor >= raw)
    return [i * step for i in range(math.ceil(low / step), math.floor(high / step) + 1)]


def _log_ticks(low: float, high: float, most: int) -> list[float]:
    first, last = math.floor(math.log10(low)), math.ceil(math.log10(high))
    for digits in ((1,), (1, 3), (1, 2, 5)):
        every = max(1, (last - first) // most)
        ticks = [d * 10.0**p for p in range(first, last + 1, every) for d in digits if low <= d * 10.0**p <= high]
        if len(ticks) >= 3:
            return ticks
    return _linear_ticks(low, high, most)
