"""Plots as inline SVG: numbers in, markup out. Colours come from the page's style, light or dark."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

WIDTH, HEIGHT = 340, 260
_LEFT, _RIGHT, _TOP, _BOTTOM = 54, 20, 10, 38
_STRIP = 132


class _Frame:
    """A plot with axes: data coordinates in, SVG elements out."""

    def __init__(self, x: tuple[float, float], y: tuple[float, float]) -> None:
        self.x_range, self.y_range = x, y
        self.parts: list[str] = []

    def x(self, value: float) -> float:
        low, high = self.x_range
        return _LEFT + (value - low) / (high - low) * (WIDTH - _LEFT - _RIGHT)

    def y(self, value: float) -> float:
        low, high = self.y_range
        return HEIGHT - _BOTTOM - (value - low) / (high - low) * (HEIGHT - _TOP - _BOTTOM)

    def axes(self, x_label: str, y_label: str, percent: tuple[bool, bool]) -> None:
        """Grid lines, tick labels and the names of the axes."""
        for value in ticks(*self.x_range):
            at = self.x(value)
            self.line((at, _TOP), (at, HEIGHT - _BOTTOM), "grid")
            self.text(at, HEIGHT - _BOTTOM + 14, _tick(value, percent[0]), "middle")
        for value in ticks(*self.y_range):
            at = self.y(value)
            self.line((_LEFT, at), (WIDTH - _RIGHT, at), "grid")
            self.text(_LEFT - 5, at + 4, _tick(value, percent[1]), "end")
        self.text((_LEFT + WIDTH - _RIGHT) / 2, HEIGHT - 6, x_label, "middle")
        middle = (_TOP + HEIGHT - _BOTTOM) / 2
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

    def svg(self, title: str) -> str:
        """The finished picture."""
        return (
            f'<svg class="plot" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(title)}">'
            f"{''.join(self.parts)}</svg>"
        )


def ticks(low: float, high: float) -> list[float]:
    """Round numbers between `low` and `high`, about five of them."""
    from math import ceil, floor, log10

    rough = (high - low) / 5
    size = 10.0 ** floor(log10(rough))
    step = next(size * factor for factor in (1, 2, 5, 10) if size * factor >= rough * 0.999)
    first, last = ceil(low / step - 1e-9), floor(high / step + 1e-9)
    return [round(i * step, 10) for i in range(first, last + 1)]


def _tick(value: float, percent: bool) -> str:
    return f"{value:.0%}" if percent else f"{value:g}"


def reliability(bins: Sequence[Mapping[str, Any]]) -> str:
    """Accuracy against confidence; a dot is a bin, its area grows with the examples in it."""
    frame = _Frame((0, 1), (0, 1))
    frame.axes("confidence", "accuracy", (True, True))
    frame.path([(0, 0), (1, 1)], "ideal")
    frame.path([(b["confidence"], b["accuracy"]) for b in bins], "curve")
    most = max(b["n"] for b in bins)
    for b in bins:
        title = f"{b['n']} examples: {b['confidence']:.1%} sure, {b['accuracy']:.1%} right"
        frame.dot(b["confidence"], b["accuracy"], 2 + 3 * (b["n"] / most) ** 0.5, title)
    return frame.svg("Reliability: accuracy by confidence; the dashed line is perfect calibration")


def risk_coverage(points: Sequence[Mapping[str, Any]]) -> str:
    """Accuracy among the surest share of the examples."""
    low = min(p["accuracy"] for p in points)
    bottom = max(0.0, min(0.9, low // 0.1 * 0.1 - 0.1))
    frame = _Frame((0, 1), (bottom, 1))
    frame.axes("share of examples answered", "accuracy", (True, True))
    last = points[-1]["accuracy"]
    frame.path([(0, last), (1, last)], "ideal")
    frame.path([(p["coverage"], p["accuracy"]) for p in points], "curve")
    return frame.svg("Risk–coverage: accuracy when only the surest examples are answered")


def earnings(gross: Sequence[float], net: Sequence[float]) -> str:
    """Summed returns in percent by trading day, before (dashed) and after costs."""
    frame = _Frame((0, max(len(net), 2)), _span([0.0, *gross, *net]))
    frame.axes("trading day", "summed return, %", (False, False))
    for values, kind in ((gross, "ideal"), (net, "curve")):
        frame.path([(0, 0.0), *enumerate(values, 1)], kind)
    return frame.svg("Summed returns of the forecasts, before costs (dashed) and after")


def scatter(targets: Sequence[float], predictions: Sequence[float], unit: str) -> str:
    """Prediction against target; the axes have one scale each, the dashed line is equality."""
    x, y = _span(targets), _span(predictions)
    frame = _Frame(x, y)
    suffix = f" ({unit})" if unit else ""
    frame.axes(f"target{suffix}", f"prediction{suffix}", (False, False))
    low, high = max(x[0], y[0]), min(x[1], y[1])
    if low < high:
        frame.path([(low, low), (high, high)], "ideal")
    for target, prediction in zip(targets, predictions, strict=True):
        frame.dot(target, prediction, 2.2, f"target {target:+.2f}, prediction {prediction:+.2f}")
    return frame.svg("Predictions against targets; the dashed line is where they are equal")


def _span(values: Sequence[float]) -> tuple[float, float]:
    low, high = min(values), max(values)
    margin = 0.05 * (high - low) or max(1.0, abs(high)) * 0.1
    return low - margin, high + margin


def strip(
    value: float,
    interval: Sequence[float] | None,
    scale: tuple[float, float],
    marks: Sequence[tuple[str, float]] = (),
) -> str:
    """A figure and its interval on a small line, with the figures of others as marks (class, value)."""
    low, high = scale

    def at(x: float) -> float:
        return 6 + (min(max(x, low), high) - low) / (high - low or 1) * (_STRIP - 12)

    parts = [f'<line class="rail" x1="6" y1="9" x2="{_STRIP - 6}" y2="9"/>']
    if interval:
        parts.append(
            f'<line class="whisker" x1="{at(interval[0]):.1f}" y1="9" x2="{at(interval[1]):.1f}" y2="9"/>'
        )
    for kind, mark in marks:
        parts.append(f'<line class="{kind}" x1="{at(mark):.1f}" y1="2" x2="{at(mark):.1f}" y2="16"/>')
    parts.append(f'<circle class="dot" cx="{at(value):.1f}" cy="9" r="3.4"/>')
    return f'<svg class="strip" viewBox="0 0 {_STRIP} 18" aria-hidden="true">{"".join(parts)}</svg>'
