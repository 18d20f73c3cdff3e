"""Converts times to text and back: RFC 3339 in UTC, and readable durations. Callers pass in the current time."""

from __future__ import annotations

from datetime import UTC, datetime


def rfc3339(at: float) -> str:
    """Unix time -> `2026-11-05T14:03:22Z`, whole seconds like every Kubernetes time."""
    return datetime.fromtimestamp(at, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def unix(text: str) -> float:
    """`2026-11-05T14:03:22Z` -> Unix time. ValueError when it is no RFC 3339 time."""
    return datetime.fromisoformat(text).timestamp()


def maybe_unix(text: str | None) -> float | None:
    return unix(text) if text else None


def duration(seconds: float) -> str:
    """`45s`, `3m20s`, `1h12m`, `2d3h`: the two largest units."""
    left = max(0, round(seconds))
    days, left = divmod(left, 86_400)
    hours, left = divmod(left, 3600)
    minutes, left = divmod(left, 60)
    parts = [(days, "d"), (hours, "h"), (minutes, "m"), (left, "s")]
    first = next((i for i, (count, _) in enumerate(parts) if count), len(parts) - 1)
    text = "".join(f"{count}{unit}" for count, unit in parts[first : first + 2] if count)
    return text or "0s"
