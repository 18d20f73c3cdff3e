"""Decides whether and when a gang may restart: the restart budget in its window, the no-progress limit, the backoff."""

from __future__ import annotations

from collections.abc import Sequence

from hftitan_api.models import RestartRecord, RunPolicySpec
from hftitan_operator.core import clock, reasons

HISTORY_LIMIT = 64
"""Maximum length of status.restartHistory; maxRestarts is at most one less."""
NO_PROGRESS_ATTEMPTS = 3
BACKOFF_SECONDS, BACKOFF_LIMIT_SECONDS = 10, 300


def remember(history: Sequence[RestartRecord], record: RestartRecord) -> list[RestartRecord]:
    """Return the history with one more record; it replaces an older record of the same attempt.

    Above the limit, the oldest record that does not count against maxRestarts is dropped first.
    """
    kept = [*(old for old in history if old.attempt != record.attempt), record]
    while len(kept) > HISTORY_LIMIT:
        oldest_uncounted = next((i for i, old in enumerate(kept) if not old.counted), 0)
        del kept[oldest_uncounted]
    return kept


def counted(history: Sequence[RestartRecord], policy: RunPolicySpec, now: float) -> int:
    """Return how many restarts inside the window count against maxRestarts."""
    window = policy.restart_window_seconds
    return sum(r.counted and (window == 0 or now - clock.unix(r.time) < window) for r in history)


def standstill(history: Sequence[RestartRecord], *, counted_only: bool) -> int:
    """Return how many of the last attempts in a row finished no new step: all, or only those that count."""
    best = count = 0
    for record in history:
        if record.step > best:
            best, count = record.step, 0
        elif record.counted or not counted_only:
            count += 1
    return count


def no_progress(history: Sequence[RestartRecord]) -> bool:
    return standstill(history, counted_only=True) >= NO_PROGRESS_ATTEMPTS


def not_before(history: Sequence[RestartRecord]) -> float:
    """Return the Unix time before which no new attempt starts.

    There is no pause after an attempt that made progress, and none after the first attempt without progress. From then
    on the pause doubles, up to five minutes. After an error of a node there is always a pause: the scheduler may choose
    the same node again, and its device plugin or driver needs time to start. Restarts that do not count against
    maxRestarts are limited in rate, not in number: a job of low priority may be preempted a hundred times.
    """
    if not history:
        return 0.0
    idle = standstill(history, counted_only=False)
    if history[-1].reason == reasons.NODE_ERROR:
        idle = max(idle, 1) + 1
    if idle < 2:
        return 0.0
    return clock.unix(history[-1].time) + min(BACKOFF_SECONDS * 2.0 ** (idle - 2), BACKOFF_LIMIT_SECONDS)
