"""The exit report: why this pod's trainer exited.

All ranks of a pod share one termination log. When one rank fails, the others fail a moment later with network errors
("connection closed by peer"). So reports are written under a lock with two rules: a cause replaces its consequences,
and of equal reports the first stays. A rank with a network error waits a moment for another rank to report the cause.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import re
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from hftitan_api.wire import TERMINATION_LOG_LIMIT, ExitReason, ExitReport
from hftitan_trainer.process.errors import TrainerError

ECHO_WAIT_SECONDS = 2.0
"""How long a rank with a network error waits for another rank of its pod to report the cause."""

_PRECEDENCE: dict[ExitReason, int] = {
    "NetworkError": 0,
    "Preempted": 1,
    "InternalError": 1,
    "StorageError": 2,
    "OutOfMemory": 2,
    "NonFiniteLoss": 2,
    "UserError": 3,
    "Completed": 4,
}
_STORAGE_ERRNOS = {errno.ENOSPC, errno.EIO, errno.EDQUOT, errno.EROFS, errno.ESTALE, errno.EFBIG}
_NETWORK_TYPES = {
    "DistNetworkError",
    "DistStoreError",
    "DistBackendError",
    "ConnectError",
    "ConnectTimeout",
    "ReadTimeout",
    "RemoteProtocolError",
    "OfflineModeIsEnabled",
}
_NETWORK_TEXTS = re.compile(
    r"gloo|NCCL|Connection (closed|reset|refused)|Broken pipe|Timed out waiting|ProcessGroup|TCPStore|Socket Timeout",
    re.IGNORECASE,
)
_SECRET_NAMES = re.compile(r"TOKEN|SECRET|PASSWORD|PASSWD|API_?KEY|CREDENTIAL", re.IGNORECASE)
_SECRET_TEXTS = re.compile(r"\bhf_[A-Za-z0-9]{20,}|(?<=://)[^/\s:@]+:[^/\s@]+(?=@)")
REDACTED = "[redacted]"


def redact(text: str, env: Mapping[str, str] | None = None) -> str:
    """Return `text` without values of variables that are named like secrets, Hugging Face tokens and URL passwords."""
    env = os.environ if env is None else env
    for name, value in env.items():
        if len(value) >= 8 and _SECRET_NAMES.search(name):
            text = text.replace(value, REDACTED)
    return _SECRET_TEXTS.sub(REDACTED, text)


def _chain(error: BaseException) -> Iterator[BaseException]:
    """Yield the error, the errors it wraps (DCP keeps those of every rank in `failures`) and its causes."""
    seen: set[int] = set()
    queue: list[BaseException] = [error]
    while queue:
        current = queue.pop(0)
        if id(current) in seen:
            continue
        seen.add(id(current))
        yield current
        failures = getattr(current, "failures", None)
        if isinstance(failures, dict):
            for failure in failures.values():
                inner = failure[0] if isinstance(failure, tuple) else failure
                if isinstance(inner, BaseException):
                    queue.append(inner)
        queue.extend(e for e in (current.__cause__, current.__context__) if e is not None)


def _reason(error: BaseException) -> ExitReason | None:
    """Return the reason of a single error, without its causes; None if unknown."""
    name, text = type(error).__name__, str(error)
    if isinstance(error, MemoryError) or name in ("OutOfMemoryError", "AcceleratorOutOfMemoryError"):
        return "OutOfMemory"
    if "Loss is not finite" in text:
        return "NonFiniteLoss"
    if isinstance(error, (ConnectionError, TimeoutError)) or name in _NETWORK_TYPES:
        return "NetworkError"
    if isinstance(error, OSError) and error.errno in _STORAGE_ERRNOS:
        return "StorageError"
    if isinstance(error, RuntimeError) and _NETWORK_TEXTS.search(text):
        return "NetworkError"
    return None


def classify(error: BaseException, step: int = 0) -> tuple[ExitReason, bool]:
    """Return (reason, retryable) of an exception.

    `step` is the newest step that this process finished. Out of memory is retryable only after a finished step: before
    one, the device is too small.
    """
    chain = list(_chain(error))
    for link in chain:
        if isinstance(link, TrainerError):
            return link.reason, link.retryable
    reason = next((r for r in map(_reason, chain) if r is not None), "InternalError")
    if reason == "OutOfMemory":
        return reason, step > 0
    return reason, reason not in ("UserError", "NonFiniteLoss")


def describe(error: BaseException) -> str:
    """Return the error's text, with its type unless it is a TrainerError."""
    chain = list(_chain(error))
    for link in chain:
        if isinstance(link, TrainerError):
            return str(link)
    inner = next((link for link in chain if _reason(link) is not None), error)
    text = str(inner).strip() or "no message"
    return f"{type(inner).__name__}: {text}"


def encode(report: ExitReport, limit: int = TERMINATION_LOG_LIMIT) -> bytes:
    """Return the report as JSON of at most `limit` bytes. A long message is shortened in the middle."""
    message, keep = report.message, 3000
    while True:
        if len(message) > keep:
            head = keep * 2 // 3
            message = f"{report.message[:head]} ... {report.message[len(report.message) - (keep - head - 5) :]}"
        document = report.model_copy(update={"message": message}).to_dict()
        data = json.dumps(document, ensure_ascii=False, separators=(",", ":")).encode("utf-8", "replace")
        if len(data) <= limit or keep <= 16:
            return data[:limit]
        keep = keep * 3 // 4


def parse(data: bytes) -> ExitReport | None:
    """Return the report in a termination log; None if there is none."""
    try:
        return ExitReport.model_validate_json(data)
    except ValueError:
        return None


class Reporter:
    """This rank's access to the pod's termination log; without a path every call does nothing."""

    def __init__(self, path: Path | None) -> None:
        self.path = path

    def clear_older(self, than: float) -> None:
        """Delete a report older than the Unix time `than`: it is from before an in-place restart.

        torchrun's restart count does not show such restarts: when a process of another pod dies, torchrun restarts this
        pod's workers as a membership change, and their count stays 0.
        """
        if self.path is not None and self.path.exists() and self.path.stat().st_mtime < than:
            os.truncate(self.path, 0)

    def read(self) -> ExitReport | None:
        try:
            return parse(self.path.read_bytes()) if self.path is not None else None
        except OSError:
            return None

    def write(self, report: ExitReport) -> bool:
        """Write the report unless the log has one of equal or higher precedence. Return whether it was written."""
        if self.path is None:
            return False
        report = report.model_copy(update={"message": redact(report.message)})
        # Lock the file itself: in a pod it is a mount, and its folder may be read-only.
        descriptor = os.open(self.path, os.O_RDWR | os.O_CREAT, 0o644)
        with os.fdopen(descriptor, "r+b") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            there = parse(file.read())
            if there is not None and _PRECEDENCE[there.reason] >= _PRECEDENCE[report.reason]:
                return False
            file.seek(0)
            file.truncate()
            file.write(encode(report))
            file.flush()
            os.fsync(file.fileno())
        return True

    def write_failure(
        self,
        error: BaseException,
        report: ExitReport,
        *,
        over: Callable[[], bool] = lambda: False,
        wait: float = ECHO_WAIT_SECONDS,
    ) -> ExitReport:
        """Set reason, retryable and message of `report` from the error, write it, and return it.

        For a network error, first wait up to `wait` seconds for another rank to report the cause. Stop waiting when
        `over()` is true: the pod is being stopped, so a cause would already be reported.
        """
        reason, retryable = classify(error, report.step)
        report = report.model_copy(
            update={"reason": reason, "retryable": retryable, "message": describe(error)[:20_000]}
        )
        if reason == "NetworkError":
            deadline = time.monotonic() + wait
            while self.read() is None and not over() and time.monotonic() < deadline:
                time.sleep(0.05)
        self.write(report)
        return report
