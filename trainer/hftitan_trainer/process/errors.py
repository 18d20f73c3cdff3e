"""The trainer's exceptions, by exit reason and whether a retry can help.

`report.py` converts an exception to the ExitReport of `hftitan_api.wire`; `reason` is one of its ExitReasons. It
classifies other exceptions by type and text (out of memory, network, disk).
"""

from __future__ import annotations

from typing import ClassVar

from hftitan_api.wire import ExitReason


class TrainerError(Exception):
    """Base class of the trainer's own errors; `retryable` is whether a new attempt could help."""

    reason: ClassVar[ExitReason] = "InternalError"
    retryable: ClassVar[bool] = True


class UserError(TrainerError, ValueError):
    """The spec, the model or the data is wrong, and a retry would fail the same way.

    `path` is the field to change (`spec.model.name`); `message` states the problem and the fix.
    """

    reason = "UserError"
    retryable = False

    def __init__(self, path: str, message: str) -> None:
        super().__init__(f"{path}: {message}")
        self.path = path
        self.message = message


class NonFiniteLossError(TrainerError):
    """The loss is NaN or infinite; the same checkpoint and data would lead to it again."""

    reason = "NonFiniteLoss"
    retryable = False

    def __init__(self, step: int, loss: float) -> None:
        super().__init__(
            f"the loss is {loss} at step {step}; lower spec.optimizer.lr, raise spec.lrSchedule.warmupSteps, or "
            "check the data of that step"
        )
        self.step = step


class StorageError(TrainerError):
    """Reading or writing a checkpoint or the export failed: the disk is full, or the volume is not available."""

    reason = "StorageError"


class NetworkError(TrainerError):
    """The hub or another rank did not answer."""

    reason = "NetworkError"


class UpstreamError(TrainerError):
    """torchtitan or transformers would train a wrong model. Raised before training."""

    retryable = False
