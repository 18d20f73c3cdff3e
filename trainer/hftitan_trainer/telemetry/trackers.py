"""TensorBoard and Weights & Biases, written by rank 0. Both packages are dependencies of torchtitan.

Upstream's own loggers (components/metrics.py) start a new run with every attempt, separate pipeline stages by rank, and
count throughput per device. Here a job is one run: a new attempt continues it from the step where it resumes.
"""

from __future__ import annotations

import importlib.util
import logging
import os
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

from hftitan_api.wire import TrainerSpec
from hftitan_trainer.process.errors import UserError
from hftitan_trainer.process.report import redact
from hftitan_trainer.telemetry.observer import StepReport

logger = logging.getLogger(__name__)

FOLDER = "tensorboard"
_FINISH_SECONDS = 20.0
"""Longest wait for W&B's last uploads, since a pod must exit in time."""


class Tracker(Protocol):
    def log(self, step: int, values: Mapping[str, float]) -> None: ...

    def close(self) -> None: ...


class TensorBoard:
    """Event files in the output folder. Each attempt adds one, which hides older values from its first step on."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._writer: Any = None

    def log(self, step: int, values: Mapping[str, float]) -> None:
        if self._writer is None:
            from torch.utils.tensorboard import SummaryWriter

            self._writer = SummaryWriter(str(self._folder), purge_step=step)
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)

    def close(self) -> None:
        if self._writer is not None:
            self._writer.close()


class WandB:
    """A run of Weights & Biases with the job's uid as id. The package itself reads the key from WANDB_API_KEY."""

    def __init__(self, spec: TrainerSpec, folder: Path) -> None:
        import wandb

        self._run = wandb.init(
            project=os.environ.get("WANDB_PROJECT", "hftitan"),
            name=spec.job_name,
            id=spec.job_uid,
            resume="allow",
            dir=str(folder),
            config=spec.to_dict(),
            settings=wandb.Settings(console="off", silent=True, save_code=False, disable_git=True, x_disable_meta=True),
        )
        # W&B drops values for a step that it already has. With our own step axis, steps may repeat after a resume.
        self._run.define_metric("*", step_metric="step")

    def log(self, step: int, values: Mapping[str, float]) -> None:
        self._run.log({**values, "step": step})

    def close(self) -> None:
        finish = threading.Thread(target=self._run.finish, name="hftitan-wandb", daemon=True)
        finish.start()
        finish.join(_FINISH_SECONDS)


class Trackers:
    """The trackers that the job requests. A tracker that fails is logged once and removed; training continues."""

    def __init__(self, trackers: list[Tracker]) -> None:
        self._trackers = trackers

    @classmethod
    def open(cls, spec: TrainerSpec, output: Path) -> Trackers:
        trackers: list[Tracker] = []
        if spec.monitoring.tensorboard:
            trackers.append(TensorBoard(output / FOLDER))
        if spec.monitoring.wandb_secret is not None:
            try:
                output.mkdir(parents=True, exist_ok=True)
                trackers.append(WandB(spec, output))
            except Exception as error:  # wandb raises its own errors and those of its dependencies
                logger.warning(
                    "spec.monitoring.wandbSecret: W&B failed to start and gets no metrics: %s", _words(error)
                )
        return cls(trackers)

    def log(self, step: int, values: Mapping[str, float | None]) -> None:
        known = {name: value for name, value in values.items() if value is not None}
        for tracker in list(self._trackers):
            try:
                tracker.log(step, known)
            except Exception as error:
                logger.warning("stopped writing to %s: %s", type(tracker).__name__, _words(error))
                self._trackers.remove(tracker)

    def close(self) -> None:
        for tracker in self._trackers:
            try:
                tracker.close()
            except Exception as error:
                logger.warning("%s: the last values may be missing: %s", type(tracker).__name__, _words(error))
        self._trackers = []


def check_packages(spec: TrainerSpec) -> None:
    """Raise UserError if the package of a requested tracker is missing."""
    asked = {
        "tensorboard": ("spec.monitoring.tensorboard", spec.monitoring.tensorboard),
        "wandb": ("spec.monitoring.wandbSecret", spec.monitoring.wandb_secret is not None),
    }
    for package, (path, wanted) in asked.items():
        if wanted and importlib.util.find_spec(package) is None:
            raise UserError(path, f"the image has no Python package {package}; install it there, or remove the field")


def step_values(report: StepReport) -> dict[str, float | None]:
    """Return the values of a step by their names in both trackers."""
    return {
        "train/loss": report.loss,
        "train/loss_max": report.max_loss,
        "train/grad_norm": report.grad_norm,
        "train/lr": report.lr,
        "train/epoch": report.data.epoch if report.data else None,
        "train/tokens": report.tokens_seen,
        "speed/tokens_per_second": report.tokens_per_second,
        "speed/mfu": report.mfu,
        "speed/step_seconds": report.step_seconds,
        "speed/data_seconds": report.data_seconds,
        "memory/peak_bytes": report.memory_bytes,
    }


def _words(error: Exception) -> str:
    return redact(f"{type(error).__name__}: {error}")
