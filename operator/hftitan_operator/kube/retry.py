"""Pauses and log levels after repeated failures."""

from __future__ import annotations

import logging
import random

BACKOFF_SECONDS, BACKOFF_LIMIT_SECONDS = 0.1, 2.0
LONGEST_PAUSE = 5.0
"""Upper limit for a server's Retry-After: the server may recover sooner."""


def pause(error: Exception, failures: int) -> float:
    """Return the seconds to wait after `failures` in a row, the last one with `error`: Retry-After or a backoff."""
    wanted: float | None = getattr(error, "retry_after", None)
    return backoff(failures) if wanted is None else min(wanted, LONGEST_PAUSE)


def backoff(failures: int) -> float:
    """Return the seconds to wait after `failures` in a row: doubles up to two seconds, with jitter."""
    longest = min(BACKOFF_LIMIT_SECONDS, BACKOFF_SECONDS * 2.0 ** min(failures - 1, 10))
    return longest * random.uniform(0.5, 1.0)


def level(failures: int) -> int:
    """Return the log level for the last of `failures` in a row: warning for the 2nd, 4th, 8th, ..., else debug.

    Single failures are normal on a network.
    """
    return logging.WARNING if failures > 1 and failures & (failures - 1) == 0 else logging.DEBUG
