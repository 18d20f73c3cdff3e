"""Renders a dashboard panel and the results of its queries as SVG. Pure functions: data in, text out."""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from svg import COLORS, SERIES, Point, area, box, curve, fit, line, text, wide
from units import clock_marks, marks, words

Json = Mapping[str, Any]
RIGHT, TOP, BOTTOM, LEGEND = 20, 34, 22, 17
LEGEND_ROWS = 3
ROW = 22


@dataclass(frozen=True, slots=True)
class Place:
    x: float
    y: float
    width: float
    height: float


@dataclass(frozen=True, slots=True)
class Series:
    name: str
    labels: Mapping[str, str]
    points: tuple[Point, ...]
    """(Unix time, value), without NaN and infinities."""

    @property
    def last(self) -> float:
        return self.points[-1][1]


@dataclass(frozen=True, slots=True)
class Moments:
    """The times of one annotation query."""

    kind: str
    times: tuple[float, ...]


def series(panel: Json, answers: Mapping[str, Sequence[Json]]) -> list[Series]:
    """Return the series with data of all queries of a panel, named by their legends."""
    found = []
    for target in panel.get("targets", ()):
        for one in answers[target["refId"]]:
            pairs = one.get("values") or [one["value"]]
            points = tuple((float(t), float(v)) for t, v in pairs if math.isfinite(float(v)))
            if points:
                found.append(Series(_legend(target.get("legendFormat") or "", one["metric"]), one["metric"], points))
    return found


def _legend(pattern: str, labels: Mapping[str, str]) -> str:
    return re.sub(r"\{\{(\w+)\}\}", lambda found: labels.get(found[1], ""), pattern)


def draw(panel: Json, place: Place, shown: Sequence[Series], moments: Sequence[Moments], span: Point) -> Iterator[str]:
    """Yield the panel's elements. ValueError: unknown panel type.

    `span`: the Unix times at the ends of the time axis.
    """
    kind, unit = panel["type"], panel.get("fieldConfig", {}).get("defaults", {}).get("unit", "short")
    if kind == "row":
        yield text(place.x, place.y + place.height - 4, panel["title"], "row")
        return
    yield box(place.x, place.y, place.width, place.height, "card", 4)
    yield text(place.x + 10, place.y + 19, panel["title"], "title", room=place.width - 14, size=12)
    if not shown:
        none = panel["fieldConfig"]["defaults"].get("noValue") or "No data"
        yield text(place.x + place.width / 2, place.y + place.height / 2 + 10, none, "dim middle", size=14)
    elif kind == "stat":
        yield from stat(panel, place, shown, unit)
    elif kind == "bargauge":
        yield from bars(place, shown, unit)
    elif kind == "table":
        yield from table(panel, place, shown)
    elif kind == "timeseries":
        yield from curves(panel, place, shown, moments, span, unit)
    else:
        raise ValueError(f"{panel['title']}: panels of type {kind} are not drawn yet")


def stat(panel: Json, place: Place, shown: Sequence[Series], unit: str) -> Iterator[str]:
    named = panel["options"]["textMode"] == "name"
    shown_text = ", ".join(one.name if named else words(one.last, unit) for one in shown)
    room = place.width - 20
    size = max(12, min(26, int(room / wide(shown_text, 1))))
    color = _fixed_color(panel, shown[0].name)
    yield text(
        place.x + 10, place.y + place.height - 22, shown_text, f"f{color}" if color else "", room=room, size=size
    )


def bars(place: Place, shown: Sequence[Series], unit: str) -> Iterator[str]:
    most = 1.0 if unit == "percentunit" else max(one.last for one in shown) or 1.0
    name_room, value_room = place.width * 0.36, 70
    for i, one in enumerate(shown):
        y = place.y + TOP + 8 + i * ROW
        if y + ROW > place.y + place.height:
            return
        left, room = place.x + 10 + name_room, place.width - 30 - name_room - value_room
        yield text(left - 8, y + 12, one.name, "end", room=name_room - 8)
        yield box(left, y, max(1.5, room * one.last / most), ROW - 6, "f0", 2)
        yield text(place.x + place.width - 10, y + 12, words(one.last, unit), "end")


def table(panel: Json, place: Place, shown: Sequence[Series]) -> Iterator[str]:
    """Draw one row per series: its labels, then its value."""
    [organize] = (t["options"] for t in panel["transformations"] if t["id"] == "organize")
    names = organize["renameByName"]
    unit = next(p["value"] for o in panel["fieldConfig"]["overrides"] for p in o["properties"] if p["id"] == "unit")
    keys = sorted({key for one in shown for key in one.labels})
    header = [names.get(key, key) for key in keys] + [names["Value"]]
    rows = [[*(one.labels.get(key, "") for key in keys), words(one.last, unit)] for one in shown]
    room = (place.width - 20) / len(header)
    for r, cells in enumerate([header, *rows]):
        y = place.y + TOP + 16 + r * ROW
        if y > place.y + place.height:
            return
        for c, cell in enumerate(cells):
            yield text(place.x + 10 + c * room, y, cell, "" if r else "dim", room=room - 8)
        yield line(place.x + 10, y + 7, place.x + place.width - 10, y + 7, "grid")


def curves(
    panel: Json, place: Place, shown: Sequence[Series], moments: Sequence[Moments], span: Point, unit: str
) -> Iterator[str]:
    custom = panel["fieldConfig"]["defaults"].get("custom", {})
    stacked = custom.get("stacking", {}).get("mode") == "normal"
    log = custom.get("scaleDistribution", {}).get("type") == "log"
    as_bars = custom.get("drawStyle") == "bars"
    colors = [_fixed_color(panel, one.name) or str(i % SERIES) for i, one in enumerate(shown)]
    legend, rows = _legend_rows(shown, colors, place)
    bottom = place.y + place.height - BOTTOM - rows * LEGEND - 4
    layers = _stack(shown) if stacked else [([0.0] * len(one.points), one.points) for one in shown]
    values = [y for _, points in layers for _, y in points] + ([0.0] if stacked or as_bars else [])
    low, high = _log_range(values) if log else _range(values)
    scale = [(value, words(value, unit)) for value in (_powers(low, high) if log else marks(low, high, unit))]
    left = max(wide(label) for _, label in scale) + 16
    frame = Place(place.x + left, place.y + TOP, place.width - left - RIGHT, bottom - place.y - TOP)

    def at(t: float, value: float) -> Point:
        share = math.log(value / low) / math.log(high / low) if log else (value - low) / (high - low)
        return frame.x + (t - span[0]) / (span[1] - span[0]) * frame.width, bottom - share * frame.height

    for value, label in scale:
        y = at(span[0], value)[1]
        yield line(frame.x, y, frame.x + frame.width, y, "grid")
        yield text(frame.x - 6, y + 4, label, "dim end")
    for second in clock_marks(span[1] - span[0]):
        x = at(span[0] + second, high)[0]
        yield text(x, bottom + 15, f"{second // 60}:{second % 60:02}", "dim middle")
    for moment in moments:
        for t in moment.times:
            if span[0] <= t <= span[1]:
                x = at(t, high)[0]
                yield line(x, bottom - 6 if moment.kind == "Checkpoint" else frame.y, x, bottom, _word(moment.kind))
    for i, (floor, points) in enumerate(layers):
        color = colors[i]
        if as_bars:
            for t, value in points:
                x, y = at(t, value)
                yield box(x - 2, y, 4, bottom - y, f"f{color}")
            continue
        for run in _unbroken(points):
            places = [at(t, value) for t, value in points[run]]
            if stacked:
                base = [at(t, under) for (t, _), under in zip(points[run], floor[run], strict=True)]
                yield area([*places, *reversed(base)], f"a{color}")
            yield curve(places if len(places) > 1 else [*places, (places[0][0] + 1.5, places[0][1])], f"s{color}")
    for x, row, name, color in legend:
        y = place.y + place.height - 8 - (rows - 1 - row) * LEGEND
        yield box(x, y - 6, 10, 3, f"f{color}")
        yield text(x + 14, y, name)


def _fixed_color(panel: Json, name: str) -> str:
    """Return the colour that an override of the panel gives this series, or "". ValueError: unknown colour."""
    for override in panel["fieldConfig"].get("overrides", ()):
        if override["matcher"] == {"id": "byName", "options": name}:
            for entry in override["properties"]:
                if entry["id"] == "color":
                    color: str = entry["value"]["fixedColor"]
                    if color not in COLORS:
                        raise ValueError(f"add the color {color} to hack/dashboard-pictures/svg.py")
                    return color
    return ""


def _legend_rows(
    shown: Sequence[Series], colors: Sequence[str], place: Place
) -> tuple[list[tuple[float, int, str, str]], int]:
    """Return (x, row, name, colour) of each legend entry, and the number of rows. Entries without space are counted."""
    made: list[tuple[float, int, str, str]] = []
    x, row, end = place.x + 12, 0, place.x + place.width - 10
    for i, one in enumerate(shown):
        name = fit(one.name, place.width - 40)
        needs = wide(name) + 26
        if x + needs > end and made:
            x, row = place.x + 12, row + 1
        if row == LEGEND_ROWS:
            last = made.pop()
            made.append((last[0], last[1], f"and {len(shown) - len(made)} more", last[3]))
            return made, LEGEND_ROWS
        made.append((x, row, name, colors[i]))
        x += needs
    return made, row + 1


def _stack(shown: Sequence[Series]) -> list[tuple[list[float], tuple[Point, ...]]]:
    """Stack the series. Return (floor, points) of each."""
    height: dict[float, float] = {}
    layers = []
    for one in shown:
        floor = [height.get(t, 0.0) for t, _ in one.points]
        points = tuple((t, under + value) for (t, value), under in zip(one.points, floor, strict=True))
        height.update(points)
        layers.append((floor, points))
    return layers


def _unbroken(points: Sequence[Point]) -> Iterator[slice]:
    """Split a series at gaps: distances of more than 1.5 times the smallest distance."""
    gaps = [b[0] - a[0] for a, b in itertools.pairwise(points)]
    usual, start = min(gaps, default=0.0) * 1.5, 0
    for i, gap in enumerate(gaps, 1):
        if gap > usual:
            yield slice(start, i)
            start = i
    yield slice(start, len(points))


def _range(values: Sequence[float]) -> Point:
    """Return the ends of the value axis. It starts at zero if the values then fill half of it or are all equal."""
    low, high = min(values), max(values)
    if 0 <= low <= high * 0.5 or 0 <= low == high:
        return 0.0, (high or 1.0) * 1.08
    room = (high - low) * 0.1 or abs(high) * 0.1
    return low - room, high + room


def _log_range(values: Sequence[float]) -> Point:
    low, high = min(v for v in values if v > 0), max(values)
    return low / 1.2, high * 1.2


def _powers(low: float, high: float) -> list[float]:
    """Return the numbers 1, 2 and 5 times a power of ten between both ends."""
    exponents = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    return [f * 10.0**e for e in exponents for f in (1, 2, 5) if low <= f * 10.0**e <= high]


def _word(name: str) -> str:
    return name.replace(" ", "-")
