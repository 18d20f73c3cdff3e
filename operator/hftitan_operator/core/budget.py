"""Decides whether and when a gang may restart: the restart budget in its window, the no-progress limit, the backoff."""

from __future__ import annotations

from collections.abc import Sequence

from hftitan_api.models import RestartRecord, RunPolicySpec
from hftitan_operator.core import clock

HISTORY_LIMIT = 64
"""Of status.restartHistory; maxRestarts is at most one less."""
NO_PROGRESS_ATTEMPTS = 3
BACKOFF_SECONDS, BACKOFF_LIMIT_SECONDS = 10, 300


def remember(history: Sequence[RestartRecord], record: RestartRecord) -> list[RestartRecord]:
    """The history with one more record, or with that of its attempt replaced.

    Over the limit the oldest free one goes first: only the others are counted.
    """
    kept = [*(old for old in history if old.attempt != record.attempt), record]
    while len(kept) > HISTORY_LIMIT:
        oldest_free = next((i for i, old in enumerate(kept) if old.free), 0)
        del kept[oldest_free]
    return kept


def charged(history: Sequence[RestartRecord], policy: RunPolicySpec, now: float) -> int:
    """Restarts that count against maxRestarts now."""
    window = policy.restart_window_seconds
    return sum(not r.free and (window == 0 or now - clock.unix(r.time) < window) for r in history)


def standstill(history: Sequence[RestartRecord], *, free: bool) -> int:
    """Attempts in a row, up to the last, that did not move the newest finished step; with or without the free ones."""
    best = count = 0
    for record in history:
        if record.step > best:
            best, count = record.step, 0
        elif free or not record.free:
            count += 1
    return count


def no_progress(history: Sequence[RestartRecord]) -> bool:
    return standstill(history, free=False) >= NO_PROGRESS_ATTEMPTS


def not_before(history: Sequence[RestartRecord]) -> float:
    """Unix time before which no new attempt starts.

    None is lost after an attempt that moved on, nor the first time one did not. From then on the pause doubles up to
    five minutes: free restarts (say, somebody's script that deletes our pods) are bounded in rate, not in number,
    since a job of low priority may rightly be preempted a hundred times.
    """
    if not history:
        return 0.0
    idle = standstill(history, free=True)
    if idle < 2:
        return 0.0
    return clock.unix(history[-1].time) + min(BACKOFF_SECONDS * 2.0 ** (idle - 2), BACKOFF_LIMIT_SECONDS)
