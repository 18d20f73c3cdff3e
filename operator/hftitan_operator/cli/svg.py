"""Draws curves as inline SVG, as pure functions. The CSS variables of the page define the colors."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from html import escape

WIDTH, HEIGHT = 560, 256
LEFT, RIGHT, TOP, BOTTOM = 98, 20, 12, 46
"""Margins of the plot. Left and bottom have room for the labels of the ticks and for the title of the axis."""
MOST_POINTS = 600
"""Maximum number of points of a curve. A longer one keeps the lowest and highest value of each stretch: its spikes."""

Point = tuple[float, float]


@dataclass(frozen=True, slots=True)
class Mark:
    """A marked step on the x axis: `kind` is `attempt` (a new attempt) or `checkpoint`."""

    step: int
    kind: str
    words: str


def chart(
    title: str, axis: str, curves: Sequence[tuple[str, Sequence[Point]]], marks: Sequence[Mark], unit: str = ""
) -> str:
    """Return a figure with one or two curves (name, points by step). Return nothing if no value is finite.

    `axis` is the title of the y axis with its unit; `unit` follows the latest value in the caption.
    """
    finite = [(name, [p for p in points if math.isfinite(p[1])]) for name, points in curves]
    values = [y for _, points in finite for _, y in points]
    steps = [x for _, points in finite for x, _ in points]
    if not values:
        return ""
    low, high = _padded(min(values), max(values))
    first, last = min(steps), max(max(steps), min(steps) + 1)

    def at(x: float, y: float) -> tuple[float, float]:
        right, down = (x - first) / (last - first), (high - y) / (high - low)
        return LEFT + right * (WIDTH - LEFT - RIGHT), TOP + down * (HEIGHT - TOP - BOTTOM)

    parts = []
    for tick in ticks(low, high, 5):
        y = at(first, tick)[1]
        parts.append(f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>')
        parts.append(f'<text x="{LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{number(tick)}</text>')
    for tick in ticks(first, last, 6):
        if tick == int(tick):
            x = at(tick, low)[0]
            parts.append(f'<text x="{x:.1f}" y="{HEIGHT - BOTTOM + 17}" text-anchor="middle">{int(tick)}</text>')
    parts += [*_titles(axis)]
    for mark in marks:
        if first <= mark.step <= last:
            x, top = at(mark.step, low)[0], TOP if mark.kind == "attempt" else HEIGHT - BOTTOM - 7
            line = f'<line class="{mark.kind}" x1="{x:.1f}" x2="{x:.1f}" y1="{top}" y2="{HEIGHT - BOTTOM}">'
            parts.append(f"{line}<title>{escape(mark.words)}</title></line>")
    for index, (name, points) in enumerate(finite):
        if points:
            parts.append(_curve(index, name, [at(x, y) for x, y in thinned(points)]))
    latest = "".join(
        f'<b class="c{i}">{escape(name)} {number(points[-1][1])}{unit}</b>'
        for i, (name, points) in enumerate(finite)
        if points
    )
    drawing = "".join(parts)
    return (
        f"<figure><figcaption>{escape(title)}<span>{latest}</span></figcaption>"
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(title)} by step">{drawing}</svg></figure>'
    )


def _titles(axis: str) -> Iterator[str]:
    """Yield the titles of both axes. The y axis's title is turned."""
    x, y = (LEFT + WIDTH - RIGHT) / 2, (TOP + HEIGHT - BOTTOM) / 2
    yield f'<text class="axis" x="{x:g}" y="{HEIGHT - 8}" text-anchor="middle">step</text>'
    turned = f'transform="rotate(-90 13 {y:g})"'
    yield f'<text class="axis" x="13" y="{y:g}" {turned} text-anchor="middle">{escape(axis)}</text>'


def _curve(index: int, name: str, places: Sequence[Point]) -> str:
    if len(places) == 1:
        x, y = places[0]
        return f'<circle class="c{index}" cx="{x:.1f}" cy="{y:.1f}" r="3"/>'
    path = " ".join(f"{x:.1f},{y:.1f}" for x, y in places)
    return f'<polyline class="c{index}" points="{path}"><title>{escape(name)}</title></polyline>'


def thinned(points: Sequence[Point], most: int = MOST_POINTS) -> list[Point]:
    """Return about `most` points at most: the lowest and the highest of each stretch, in their order."""
    if len(points) <= most:
        return list(points)
    size = math.ceil(len(points) / (most / 2))
    kept: list[Point] = []
    for start in range(0, len(points), size):
        stretch = points[start : start + size]
        kept += sorted({min(stretch, key=lambda p: p[1]), max(stretch, key=lambda p: p[1])})
    return kept if kept[-1] == points[-1] else [*kept, points[-1]]


def ticks(low: float, high: float, count: int) -> Iterator[float]:
    """Yield about `count` round numbers from `low` to `high`."""
    rough = (high - low) / count
    magnitude = 10.0 ** math.floor(math.log10(rough))
    step = next(f * magnitude for f in (1, 2, 2.5, 5, 10) if f * magnitude >= rough * 0.999)
    for i in range(math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9) + 1):
        yield round(i * step, 12)


def number(value: float) -> str:
    """Format a number for an axis: `4.13`, `0.0003`, `1.175e-4`, `12k`, `3.2M`. At most eight characters and a sign."""
    if value == 0:
        return "0"
    for size, unit in ((1e9, "G"), (1e6, "M"), (1e4, "k")):
        if abs(value) >= size:
            return f"{value / min(size, 1e3 if unit == 'k' else size):.4g}{unit}"
    words = f"{value:.4g}"
    if abs(value) < 1e-3 and len(words) > 7:
        mantissa, exponent = f"{value:.3e}".split("e")
        words = f"{float(mantissa):g}e{int(exponent)}"
    return words


def _padded(low: float, high: float) -> tuple[float, float]:
    """Widen the range until ticks with four digits differ."""
    least = max(abs(low), abs(high)) * 2e-3
    room = (high - low) * 0.05 if high - low > least else least or 1.0
    return (0.0 if low >= 0 > low - room else low - room), high + room
