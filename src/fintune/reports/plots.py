"""Plots as inline SVG: numbers in, markup out. Colours come from the page's style, light or dark."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import ceil, floor, log10

from markupsafe import Markup, escape

from fintune.evaluation.results import Bin, Point
from fintune.tasks.types.regression import spread

WIDTH, HEIGHT = 340, 260
_LEFT, _RIGHT, _TOP, _BOTTOM = 54, 20, 10, 38


class _Frame:
    """A plot with axes: data coordinates in, SVG elements out."""

    def __init__(self, x: tuple[float, float], y: tuple[float, float], height: int = HEIGHT) -> None:
        self.x_range, self.y_range = x, y
        self.left, self.height = _LEFT, height
        self.parts: list[str] = []

    def x(self, value: float) -> float:
        low, high = self.x_range
        return self.left + (value - low) / (high - low) * (WIDTH - self.left - _RIGHT)

    def y(self, value: float) -> float:
        low, high = self.y_range
        return self.height - _BOTTOM - (value - low) / (high - low) * (self.height - _TOP - _BOTTOM)

    def axes(self, x_label: str, y_label: str, percent: tuple[bool, bool]) -> None:
        """Grid lines, tick labels and the names of the axes; without a `y_label` the x axis alone."""
        bottom = self.height - _BOTTOM
        if not y_label:
            self.left = _RIGHT
        for value in ticks(*self.x_range):
            at = self.x(value)
            self.line((at, _TOP), (at, bottom), "grid")
            self.text(at, bottom + 14, _tick(value, percent[0]), "middle")
        self.text((self.left + WIDTH - _RIGHT) / 2, self.height - 6, x_label, "middle")
        if not y_label:
            return
        for value in ticks(*self.y_range):
            at = self.y(value)
            self.line((self.left, at), (WIDTH - _RIGHT, at), "grid")
            self.text(self.left - 5, at + 4, _tick(value, percent[1]), "end")
        middle = (_TOP + bottom) / 2
        self.parts.append(
            f'<text x="11" y="{middle:g}" text-anchor="middle" transform="rotate(-90 11 {middle:g})">'
            f"{escape(y_label)}</text>"
        )

    def line(self, start: tuple[float, float], end: tuple[float, float], kind: str) -> None:
        """A line in SVG coordinates."""
        self.parts.append(
            f'<line class="{kind}" x1="{start[0]:.1f}" y1="{start[1]:.1f}" '
            f'x2="{end[0]:.1f}" y2="{end[1]:.1f}"/>'
        )

    def text(self, x: float, y: float, text: str, anchor: str) -> None:
        """A text in SVG coordinates."""
        self.parts.append(f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(text)}</text>')

    def path(self, points: Sequence[tuple[float, float]], kind: str) -> None:
        """A line through points in data coordinates."""
        places = " ".join(f"{self.x(x):.1f},{self.y(y):.1f}" for x, y in points)
        self.parts.append(f'<polyline class="{kind}" points="{places}"/>')

    def dot(self, x: float, y: float, radius: float, title: str) -> None:
        """A point in data coordinates, with what it says when pointed at."""
        self.parts.append(
            f'<circle class="dot" cx="{self.x(x):.1f}" cy="{self.y(y):.1f}" r="{radius:.1f}">'
            f"<title>{escape(title)}</title></circle>"
        )

    def bar(self, left: float, right: float, top: float, title: str) -> None:
        """A bar from 0 to `top` in data coordinates."""
        x, y = self.x(left) + 0.5, self.y(top)
        width, height = max(self.x(right) - x - 0.5, 0.5), self.y(0) - y
        self.parts.append(
            f'<rect class="bar" x="{x:.1f}" y="{y:.1f}" width="{width:.1f}" height="{height:.1f}">'
            f"<title>{escape(title)}</title></rect>"
        )

    def svg(self, title: str) -> Markup:
        """The finished picture."""
        return Markup(
            f'<svg class="plot" viewBox="0 0 {WIDTH} {self.height}" role="img" aria-label="{escape(title)}">'
            f"{''.join(self.parts)}</svg>"
        )


def ticks(low: float, high: float) -> list[float]:
    """Round numbers between `low` and `high`, about five of them."""
    rough = (high - low) / 5
    size = 10.0 ** floor(log10(rough))
    step = next(size * factor for factor in (1, 2, 5, 10) if size * factor >= rough * 0.7)
    first, last = ceil(low / step - 1e-9), floor(high / step + 1e-9)
    return [round(i * step, 10) for i in range(first, last + 1)]


def _tick(value: float, percent: bool) -> str:
    return f"{100 * value:g}%" if percent else f"{value:,g}" if abs(value) < 1e6 else f"{value:.0e}"


def crowded_from(bins: Sequence[Bin]) -> float | None:
    """The confidence from which a reliability plot needs a second, closer view; None where it needs none."""
    sure = [b.confidence for b in bins if b.confidence >= 0.95]
    return max(start for start in (0.95, 0.99, 0.999) if start <= min(sure)) if len(sure) > 2 else None


def reliability(bins: Sequence[Bin], start: float = 0.0) -> Markup:
    """Accuracy against confidence; a dot is a bin, its area grows with the examples in it.

    Args:
        start: the least confidence that is shown; with it the accuracy's axis begins where the dots do.
    """
    most = max(b.n for b in bins)
    bins = [b for b in bins if b.confidence >= start]
    lowest = min(start, *(b.accuracy for b in bins))
    frame = _Frame((start, 1), (floor(20 * lowest + 1e-9) / 20 if lowest < start else start, 1))
    frame.axes("confidence", "accuracy", (True, True))
    frame.path([(start, start), (1, 1)], "ideal")
    frame.path([(b.confidence, b.accuracy) for b in bins], "curve")
    for b in bins:
        title = f"{b.n} examples: confidence {b.confidence:.1%}, accuracy {b.accuracy:.1%}"
        frame.dot(b.confidence, b.accuracy, 2 + 3 * (b.n / most) ** 0.5, title)
    return frame.svg("Reliability: accuracy by confidence; the dashed line is perfect calibration")


def risk_coverage(points: Sequence[Point]) -> Markup:
    """Accuracy among the most confident share of the examples."""
    low = min(p.accuracy for p in points)
    bottom = max(0.0, min(0.9, low // 0.1 * 0.1 - 0.1))
    frame = _Frame((0, 1), (bottom, 1))
    frame.axes("share of examples answered", "accuracy", (True, True))
    whole = max(points, key=lambda p: p.coverage).accuracy
    frame.path([(0, whole), (1, whole)], "ideal")
    frame.path([(p.coverage, p.accuracy) for p in points], "curve")
    return frame.svg("Risk–coverage: accuracy when only the most confident examples are answered")


def earnings(gross: Sequence[float], net: Sequence[float]) -> Markup:
    """Summed returns in percent by trading day, before (dashed) and after costs."""
    frame = _Frame((0, max(len(net), 2)), _span([0.0, *gross, *net]))
    frame.axes("trading day", "summed return, %", (False, False))
    for values, kind in ((gross, "ideal"), (net, "curve")):
        frame.path([(0, 0.0), *enumerate(values, 1)], kind)
    return frame.svg("Summed returns of the forecasts, before costs (dashed) and after")


def scatter(pairs: Sequence[tuple[float, float]]) -> Markup:
    """Prediction against target, of (target, prediction) pairs; the dashed line is equality."""
    x, y = _span([target for target, _ in pairs]), _span([prediction for _, prediction in pairs])
    frame = _Frame(x, y)
    frame.axes("target", "prediction", (False, False))
    low, high = max(x[0], y[0]), min(x[1], y[1])
    if low < high:
        frame.path([(low, low), (high, high)], "ideal")
    for target, prediction in pairs:
        frame.dot(target, prediction, 2.2, f"target {target:+.2f}, prediction {prediction:+.2f}")
    return frame.svg("Predictions against targets; on the dashed line they are equal")


def distribution(
    levels: Mapping[float, float], value: float, interval: tuple[float, float], unit: str
) -> Markup:
    """A number's distribution over its levels: bars by area, the interval as a band, the mean as a line.

    A level's probability is spread to the middle between it and its neighbours, as the interval's is.

    Args:
        levels: level → its probability.
    """
    values = sorted(levels)
    edges = spread(values)
    heights = [levels[v] / (right - left) for v, left, right in zip(values, edges, edges[1:], strict=False)]
    span = min(edges[0], value, *interval), max(edges[-1], value, *interval)
    frame = _Frame(span, (0, 1.05 * max(heights)), 180)
    frame.axes("percent" if unit == "%" else unit or "value", "", (False, False))
    left, right = (frame.x(bound) for bound in interval)
    bottom = frame.y(0)
    frame.parts.append(
        f'<rect class="band" x="{left:.1f}" y="{_TOP}" width="{max(right - left, 2):.1f}" '
        f'height="{bottom - _TOP:.1f}"/>'
    )
    for level, height, low, high in zip(values, heights, edges, edges[1:], strict=False):
        frame.bar(low, high, height, f"{level:+g}: {levels[level]:.1%}")
    if frame.x_range[0] < 0 < frame.x_range[1]:
        frame.line((frame.x(0), _TOP), (frame.x(0), bottom), "ideal")
    frame.line((frame.x(value), _TOP), (frame.x(value), bottom), "mean")
    frame.dot(value, 0, 5, f"expected: {value:+.2f}")
    shares = ", ".join(f"{level:+g}: {levels[level]:.0%}" for level in values)
    return frame.svg(f"The probability of each level: {shares}")


def histogram(counts: Sequence[int], edges: Sequence[float], unit: str, limit: float | None = None) -> Markup:
    """Counts by bin, of `edges` (one more than there are counts); `limit` is a dashed line with its name."""
    low, high = (edges[0], edges[-1]) if edges[-1] > edges[0] else (edges[0] - 0.5, edges[0] + 0.5)
    frame = _Frame((low, high), (0, max(counts) * 1.08))
    frame.axes(unit, "examples", (False, False))
    for count, left, right in zip(counts, edges, edges[1:], strict=False):
        if count:
            frame.bar(left, right, count, f"{left:,.4g} to {right:,.4g}: {count:,} examples")
    if limit is not None and low <= limit <= high:
        x = frame.x(limit)
        frame.line((x, _TOP), (x, HEIGHT - _BOTTOM), "limit")
        anchor, shift = ("end", -5) if x > WIDTH / 2 else ("start", 5)
        frame.text(x + shift, _TOP + 10, f"max_length {limit:,g}", anchor)
    return frame.svg(f"Histogram of {unit}")


def _span(values: Sequence[float]) -> tuple[float, float]:
    low, high = min(values), max(values)
    margin = 0.05 * (high - low) or max(1.0, abs(high)) * 0.1
    return low - margin, high + margin
