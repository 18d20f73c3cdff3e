"""Formats numbers in the units of Grafana's field configuration, short enough for an axis. Pure functions."""

from __future__ import annotations

from hftitan_operator.cli.svg import number, ticks
from hftitan_operator.cli.text import duration

BYTES = ("B", "KiB", "MiB", "GiB", "TiB")
RATES = {"ops": "ops/s", "reqps": "req/s"}
KNOWN = ("short", "sci", "percentunit", "s", "bytes", *RATES)


def words(value: float, unit: str) -> str:
    """Return `12.3%`, `15 ms`, `2m05s`, `1.5 GiB`, `3 ops/s`. ValueError: unknown unit."""
    if unit not in KNOWN:
        raise ValueError(f"add the unit {unit} to hack/dashboard-pictures/units.py")
    if unit == "percentunit":
        return f"{value * 100:.3g}%"
    if unit == "sci":
        return f"{value:.3g}"
    if unit == "s":
        return _seconds(value)
    if unit == "bytes":
        return _bytes(value)
    return f"{value:.3g} {RATES[unit]}" if unit in RATES else number(value)


def marks(low: float, high: float, unit: str, count: int = 4) -> list[float]:
    """Return values from `low` to `high` that are round in the unit that `words` chooses."""
    scale = 1024 ** _power(high) if unit == "bytes" else 1
    return [tick * scale for tick in ticks(low / scale, high / scale, count) if low <= tick * scale <= high]


def clock_marks(seconds: float, most: int = 6) -> list[int]:
    """Return the marks of a time axis from 0 to `seconds`: multiples of 5 s, 10 s, 1 min and so on."""
    step = next(s for s in (5, 10, 15, 30, 60, 120, 300, 600, 1800, 3600) if seconds / s <= most)
    return list(range(0, int(seconds) + 1, step))


def _seconds(value: float) -> str:
    if abs(value) >= 60:
        return duration(value)
    if value == 0 or abs(value) >= 1:
        return f"{value:.3g} s"
    return f"{value * 1e3:.3g} ms" if abs(value) >= 1e-3 else f"{value * 1e6:.3g} µs"


def _bytes(value: float) -> str:
    power = _power(value)
    return f"{value / 1024**power:.4g} {BYTES[power]}"


def _power(value: float) -> int:
    """Return the largest power of 1024 that is not above the value."""
    return max((power for power in range(len(BYTES)) if abs(value) >= 1024**power), default=0)
