"""metrics.jsonl: one JSON object per line, written by rank 0, kept across crashes and attempts.

Every line has `kind`, `attempt` and `time` (Unix seconds); `kind: step` lines have the keys of wire.Progress and more.
After a resume, the steps since the checkpoint appear again under the new attempt. Only the last line of a step counts.
"""

from __future__ import annotations

import json
import logging
import math
import os
import time
from pathlib import Path
from typing import Any

logger = logging.getLogger(__name__)

FILE_NAME = "metrics.jsonl"


class Journal:
    """Appends whole lines. If the disk is full or gone, logs one warning and writes no more; training continues."""

    def __init__(self, path: Path, attempt: int) -> None:
        self.path = path
        self._attempt = attempt
        self._descriptor: int | None = None
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)
            self._drop_torn_line(self._descriptor)
        except OSError as error:
            self._give_up(error)

    @staticmethod
    def _drop_torn_line(descriptor: int) -> None:
        """Remove an incomplete line that a crash left at the end."""
        size = os.fstat(descriptor).st_size
        end = size
        while end > 0:
            start = max(0, end - 4096)
            found = os.pread(descriptor, end - start, start).rfind(b"\n")
            if found >= 0:
                end = start + found + 1
                break
            end = start
        if end < size:
            os.ftruncate(descriptor, end)

    def write(self, kind: str, **values: Any) -> None:
        """Append one line. Omits values that are None; numbers that are not finite become null."""
        if self._descriptor is None:
            return
        entry: dict[str, Any] = {"kind": kind, "attempt": self._attempt, "time": round(time.time(), 3)}
        entry.update({key: _plain(value) for key, value in values.items() if value is not None})
        line = json.dumps(entry, separators=(",", ":"), allow_nan=False).encode() + b"\n"
        try:
            # One write: a reader sees the whole line or nothing, and a crash damages at most this line.
            if os.write(self._descriptor, line) != len(line):
                self._drop_torn_line(self._descriptor)
        except OSError as error:
            self._give_up(error)

    def close(self) -> None:
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None

    def _give_up(self, error: OSError) -> None:
        logger.warning("stopped writing %s: %s", self.path, error.strerror or error)
        self.close()


def _plain(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, dict):
        return {key: _plain(inner) for key, inner in value.items()}
    return value
