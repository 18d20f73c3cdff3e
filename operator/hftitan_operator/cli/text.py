"""Formats times, durations and step records."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from hftitan_operator.local.run import End


def timestamp(when: float | None = None) -> str:
    """Format a Unix time, or the current time, as RFC 3339 with milliseconds in UTC."""
    moment = datetime.now(UTC) if when is None else datetime.fromtimestamp(when, UTC)
    return moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")


def duration(seconds: float) -> str:
    """Format a duration: `8s`, `3m07s`, `2h15m`, `3d04h`."""
    whole = int(seconds)
    if whole < 60:
        return f"{whole}s"
    if whole < 3600:
        return f"{whole // 60}m{whole % 60:02}s"
    if whole < 86_400:
        return f"{whole // 3600}h{whole % 3600 // 60:02}m"
    return f"{whole // 86_400}d{whole % 86_400 // 3600:02}h"


def numbers(record: dict[str, Any]) -> str:
    """Format the metrics of a step as one line, without unknown ones."""
    words = []
    if record.get("loss") is not None:
        words.append(f"loss {record['loss']:.4f}")
    if record.get("gradNorm") is not None:
        words.append(f"grad {record['gradNorm']:.3f}")
    if record.get("lr") is not None:
        words.append(f"lr {record['lr']:.3g}")
    if record.get("tokensPerSecond") is not None:
        words.append(f"{record['tokensPerSecond']:,.0f} tok/s")
    if record.get("mfu") is not None:
        words.append(f"mfu {record['mfu']:.1%}")
    if record.get("etaSeconds"):
        words.append(f"eta {duration(record['etaSeconds'])}")
    return "  ".join(words)


def validation(record: dict[str, Any]) -> str:
    """Format a validation loss as one line."""
    loss = record.get("loss")
    return f"step {record.get('step')}  validation loss {'not finite' if loss is None else format(loss, '.4f')}"


def last_words(end: End, told: str = "") -> str:
    """Format the result of a run as one line. `told` is the last printed message, which is not repeated."""
    took = f"in {duration(end.seconds)}"
    if end.phase == "Succeeded":
        export = f"; the model is in {end.export_path}" if end.export_path else ""
        return f"Succeeded: step {end.step} of {end.steps} {took}{export}"
    if end.phase == "Failed":
        reason = f" ({end.reason})" if end.reason else ""
        return f"Failed{reason} at step {end.step} of {end.steps}, {took}" + (
            f": {end.message}" if end.message != told else ""
        )
    saved = f"checkpoint at step {end.checkpoint_step}" if end.checkpoint_step is not None else "no checkpoint"
    return f"Stopped at step {end.step} of {end.steps}, {took}; {saved}. To resume, run the same command again."
