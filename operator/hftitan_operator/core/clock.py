"""Converts times to text and back: RFC 3339 in UTC, and readable durations. Callers pass in the current time."""

from __future__ import annotations

from datetime import UTC, datetime


def rfc3339(at: float) -> str:
    """Convert Unix time to `2026-11-05T14:03:22Z`: whole seconds, as all Kubernetes times."""
    return datetime.fromtimestamp(at, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def unix(text: str) -> float:
    """Convert `2026-11-05T14:03:22Z` to Unix time. Raises ValueError for other formats."""
    return datetime.fromisoformat(text).timestamp()


def maybe_unix(text: str | None) -> float | None:
    return unix(text) if text else None


def duration(seconds: float) -> str:
    """Format seconds in the two largest units: `45s`, `3m20s`, `1h12m`, `2d3h`."""
    left = max(0, round(seconds))
    days, left = divmod(left, 86_400)
    hours, left = divmod(left, 3600)
    minutes, left = divmod(left, 60)
    parts = [(days, "d"), (hours, "h"), (minutes, "m"), (left, "s")]
    first = next((i for i, (count, _) in enumerate(parts) if count), len(parts) - 1)
    text = "".join(f"{count}{unit}" for count, unit in parts[first : first + 2] if count)
    return text or "0s"
