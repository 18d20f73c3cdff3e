"""The interface through which the engine reports to the rest of the trainer and asks whether to stop. Imports no
torch."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from hftitan_api.wire import TrainerPhase


@dataclass(slots=True)
class DataSeen:
    """Consumed data, over all ranks and attempts."""

    epoch: float = 0.0
    """Passes over the data; of a stream, only complete ones."""
    documents: float = 0
    truncated: float = 0
    """Documents truncated to the length of a row (spec.dataset.longDocuments)."""
    too_long: float = 0
    """Documents dropped because of their length."""
    empty: float = 0
    """Documents dropped because they have nothing to learn."""


@dataclass(frozen=True, slots=True)
class StepReport:
    """One finished step; the same on every rank, except for the two times and the memory."""

    step: int
    steps: int
    loss: float
    """Mean over all tokens of the step, on every pipeline stage."""
    max_loss: float
    """Largest mean of a data-parallel rank."""
    grad_norm: float
    """Before clipping."""
    lr: float
    """Learning rate of this step."""
    tokens_per_second: float
    """Over all ranks."""
    tokens_seen: int
    """Over all ranks and steps, including earlier attempts."""
    step_seconds: float
    data_seconds: float
    """Part of step_seconds spent waiting for batches."""
    data: DataSeen | None = None
    mfu: float | None = None
    """0 to 1, bfloat16; None if the device's peak is unknown."""
    memory_bytes: int | None = None
    """Peak of the step on this rank's device; on CPUs the process's largest resident set."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """How training ended: all steps done, or stopped at an agreed step whose checkpoint is saved."""

    kind: Literal["completed", "stopped"]
    step: int


class Observer:
    """Does nothing; subclass it. The training thread calls every method on every rank."""

    def phase(self, name: TrainerPhase) -> None:
        """A new phase begins."""

    def step(self, report: StepReport) -> None:
        """A step is finished."""

    def resumed(self, step: int) -> None:
        """Training resumes from the checkpoint of `step`."""

    def validated(self, step: int, loss: float, tokens: int, seconds: float) -> None:
        """Validation after `step` is finished: the mean loss over `tokens` held-out tokens, the same on every rank."""

    def saved(self, step: int, seconds: float) -> None:
        """The checkpoint of `step` is written, or (async) staged; it took this rank `seconds`."""

    def exported(self, path: Path) -> None:
        """The Hugging Face folder is complete."""

    def stop_requested(self) -> bool:
        """Return whether this rank requests a stop. Called in every step; one rank's request stops all ranks at the
        same step."""
        return False
