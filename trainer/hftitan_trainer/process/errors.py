"""The trainer's exceptions, grouped by what to do about them.

`report.py` turns an exception into the ExitReport of `hftitan_api.wire`; `reason` is one of its ExitReasons. Anything
that is not a TrainerError is classified there by its type and text (out of memory, network, disk).
"""

from __future__ import annotations

from typing import ClassVar

from hftitan_api.wire import ExitReason


class TrainerError(Exception):
    """Base of the errors the trainer raises on purpose; `retryable` says whether a new attempt could help."""

    reason: ClassVar[ExitReason] = "InternalError"
    retryable: ClassVar[bool] = True


class UserError(TrainerError, ValueError):
    """The spec, the model or the data is wrong, and a retry would fail alike.

    `path` is the field to change (`spec.model.name`); `message` says what is wrong with it and how to mend it.
    """

    reason = "UserError"
    retryable = False

    def __init__(self, path: str, message: str) -> None:
        super().__init__(f"{path}: {message}")
        self.path = path
        self.message = message


class NonFiniteLossError(TrainerError):
    """The loss became NaN or infinite; the same checkpoint and data would lead there again."""

    reason = "NonFiniteLoss"
    retryable = False

    def __init__(self, step: int, loss: float) -> None:
        super().__init__(
            f"the loss is {loss} at step {step}; lower spec.optimizer.lr, lengthen spec.lrSchedule.warmupSteps, or "
            "look at the data of that step"
        )
        self.step = step


class StorageError(TrainerError):
    """Reading or writing a checkpoint or the export failed: disk full, volume gone."""

    reason = "StorageError"


class NetworkError(TrainerError):
    """The hub or another rank did not answer."""

    reason = "NetworkError"


class UpstreamError(TrainerError):
    """torchtitan or transformers left something undone that would train a wrong model; nothing was trained."""

    retryable = False
