"""Writes step reports to the log, metrics.jsonl, /progress and /metrics."""

from __future__ import annotations

import logging
import math
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from prometheus_client.core import Metric
from prometheus_client.registry import Collector

from hftitan_api import metric_names as names
from hftitan_api.wire import Progress, TrainerPhase, TrainerSpec
from hftitan_trainer.process.environment import Environment
from hftitan_trainer.telemetry.exposition import Histogram, families
from hftitan_trainer.telemetry.journal import Journal
from hftitan_trainer.telemetry.observer import DataSeen, Observer, StepReport
from hftitan_trainer.telemetry.trackers import Trackers, step_values

logger = logging.getLogger(__name__)

_SMOOTHING = 0.9
"""Weight of earlier steps in the mean step time, from which the ETA is computed."""


class RunObserver(Observer, Collector):
    """Keeps the newest values under a lock: the training thread writes, the server's threads read.

    Only rank 0 has a `journal`. `stopping` returns whether this rank requests a stop. `launched` is the age of the
    launch in seconds when this object is created.
    """

    def __init__(
        self,
        spec: TrainerSpec,
        env: Environment,
        *,
        journal: Journal | None = None,
        stopping: Callable[[], bool] = lambda: False,
        launched: float = 0.0,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._spec = spec
        self._env = env
        self._journal = journal
        self._stopping = stopping
        self._clock = clock
        self._lock = threading.Lock()
        self._phase: TrainerPhase = "starting"
        self._updated = clock()
        self._report: StepReport | None = None
        self._step = 0
        self._resumed_from: int | None = None
        self._checkpoint: tuple[int, float] | None = None
        self._validation: tuple[int, float] | None = None
        self.trackers = Trackers([])
        self._export_path: str | None = None
        self._model_revision: str | None = None
        self._mean_step_seconds: float | None = None
        self._first_step_seconds = 0.0
        self._data_seconds = 0.0
        self._stages: dict[str, float] = {"start": launched}
        self._stage_began = clock()
        self._step_durations = Histogram(names.STEP_DURATION)
        self._save_durations = Histogram(names.CHECKPOINT_DURATION)
        self._validation_durations = Histogram(names.VALIDATION_DURATION)

    # --- events -----------------------------------------------------------------------------------------------

    def stage(self, name: str) -> None:
        """Add the time since the last call to the start-up stage `name`."""
        now = self._clock()
        with self._lock:
            self._stages[name] = self._stages.get(name, 0.0) + now - self._stage_began
            self._stage_began = now

    def fetched(self, revision: str | None) -> None:
        """The model folder is available, at this commit."""
        with self._lock:
            self._model_revision = revision

    def phase(self, name: TrainerPhase) -> None:
        first_training = name == "training" and "load" not in self._stages
        with self._lock:
            self._phase = name
            self._updated = self._clock()
        if first_training:
            self.stage("load")

    def resumed(self, step: int) -> None:
        with self._lock:
            self._resumed_from = self._step = step
        self._note("resumed", step=step)
        if self._env.rank == 0:
            logger.info("resumed from the checkpoint of step %d", step)

    def step(self, report: StepReport) -> None:
        first = self._report is None
        if first:
            self._first_step_seconds = report.step_seconds
            self.stage("first_step")
        with self._lock:
            self._report = report
            self._step = report.step
            self._updated = self._clock()
            self._data_seconds += report.data_seconds
            self._step_durations.observe(report.step_seconds)
            # The first step compiles and allocates, so the mean restarts after it.
            past = (
                None if self._mean_step_seconds is None or self._step_durations.count == 2 else self._mean_step_seconds
            )
            new = report.step_seconds
            self._mean_step_seconds = new if past is None else _SMOOTHING * past + (1 - _SMOOTHING) * new
            eta = self._eta()
        self._note(
            "step",
            step=report.step,
            steps=report.steps,
            loss=report.loss,
            lossMax=report.max_loss,
            gradNorm=report.grad_norm,
            lr=report.lr,
            tokensPerSecond=report.tokens_per_second,
            deviceTokensPerSecond=report.tokens_per_second / self._env.world_size,
            mfu=report.mfu,
            stepSeconds=report.step_seconds,
            dataSeconds=report.data_seconds,
            etaSeconds=eta,
            tokensSeen=report.tokens_seen,
            **_data(report.data),
            memoryPeakBytes=report.memory_bytes,
        )
        self.trackers.log(report.step, step_values(report))
        if self._env.rank == 0:
            logger.info("%s", step_line(report, eta))
            if first:
                logger.info("seconds to the first step: %s", stages_line(self._stages))
        if first:
            self._note("startup", seconds={key: round(value, 3) for key, value in self._stages.items()})

    def validated(self, step: int, loss: float, tokens: int, seconds: float) -> None:
        with self._lock:
            self._validation = (step, loss)
            self._validation_durations.observe(seconds)
        self.trackers.log(step, {"validation/loss": loss, "speed/validation_seconds": seconds})
        self._note("validation", step=step, loss=loss, tokens=tokens, seconds=round(seconds, 3))
        if self._env.rank == 0:
            logger.info("validation at step %d: loss %.5f over %d tokens, %.1f s", step, loss, tokens, seconds)

    def saved(self, step: int, seconds: float) -> None:
        with self._lock:
            self._save_durations.observe(seconds)
        self.trackers.log(step, {"speed/checkpoint_seconds": seconds})
        self._note("checkpoint", step=step, seconds=round(seconds, 3))
        if self._env.rank == 0:
            logger.info("checkpoint of step %d: %.1f s", step, seconds)

    def complete(self, step: int) -> None:
        """The checkpoint of `step` is complete. The thread that completed it calls this."""
        with self._lock:
            self._checkpoint = (step, self._clock())

    def exported(self, path: Path) -> None:
        with self._lock:
            self._export_path = str(path)
        self._note("export", path=str(path))
        if self._env.rank == 0:
            logger.info("exported the model to %s", path)

    def pushed(self, url: str) -> None:
        """The export is on the hub, as this commit. Only the rank that pushed calls this."""
        self._note("push", url=url)
        logger.info("pushed the export to the hub: %s", url)

    def stop_requested(self) -> bool:
        return self._stopping()

    def ended(self, reason: str, message: str = "") -> None:
        """Write this process's last line to metrics.jsonl."""
        self.trackers.close()
        self._note("end", reason=reason, step=self.newest_step, message=message or None)

    # --- state ------------------------------------------------------------------------------------------------

    @property
    def newest_step(self) -> int:
        """Newest finished step of this process, or the step that it resumed from."""
        return self._step

    @property
    def checkpoint_step(self) -> int | None:
        return self._checkpoint[0] if self._checkpoint else None

    @property
    def export_path(self) -> str | None:
        return self._export_path

    @property
    def model_revision(self) -> str | None:
        return self._model_revision

    def progress(self) -> Progress:
        """Return the document for /progress."""
        with self._lock:
            report, checkpoint, validation = self._report, self._checkpoint, self._validation
            return Progress(
                attempt=self._env.attempt,
                phase=self._phase,
                step=self._step,
                steps=self._spec.training.steps,
                loss=_finite(report.loss) if report else None,
                grad_norm=_finite(report.grad_norm) if report else None,
                lr=report.lr if report else None,
                tokens_per_second=report.tokens_per_second if report else None,
                mfu=report.mfu if report else None,
                step_seconds=self._mean_of_all(),
                eta_seconds=self._eta(),
                tokens_seen=report.tokens_seen if report else None,
                epoch=report.data.epoch if report and report.data else None,
                updated=self._updated,
                worker_restarts=self._env.worker_restarts,
                validation_step=validation[0] if validation else None,
                validation_loss=_finite(validation[1]) if validation else None,
                checkpoint_step=checkpoint[0] if checkpoint else None,
                checkpoint_time=checkpoint[1] if checkpoint else None,
                export_path=self._export_path,
                model_revision=self._model_revision,
                resumed_from=self._resumed_from,
            )

    def collect(self) -> Iterator[Metric]:
        """Yield the families of metric_names that have a value, for prometheus_client."""
        progress = self.progress()
        with self._lock:
            report, stages, waited = self._report, dict(self._stages), self._data_seconds
            loss = self._validation[1] if self._validation else None
            histograms = [h.copy() for h in (self._step_durations, self._save_durations, self._validation_durations)]
        return families(self._spec, self._env, progress, report, stages, waited, loss, histograms)

    # --- internals --------------------------------------------------------------------------------------------

    def _eta(self) -> float | None:
        if self._phase == "done":
            return 0.0
        if self._mean_step_seconds is None:
            return None
        return self._mean_step_seconds * max(0, self._spec.training.steps - self._step)

    def _mean_of_all(self) -> float | None:
        count, total = self._step_durations.count, self._step_durations.total
        if count < 2:
            return total if count else None
        return (total - self._first_step_seconds) / (count - 1)

    def _note(self, kind: str, **values: Any) -> None:
        if self._journal is not None:
            self._journal.write(kind, **values)


def _data(seen: DataSeen | None) -> dict[str, Any]:
    """Return the fields for metrics.jsonl. Numbers of truncated and dropped documents appear only if they are not
    zero."""
    if seen is None:
        return {}
    counts = {"documentsTruncated": seen.truncated, "documentsTooLong": seen.too_long, "documentsEmpty": seen.empty}
    left_out = {key: int(value) for key, value in counts.items() if value}
    return {"epoch": round(seen.epoch, 6), "documents": int(seen.documents), **left_out}


def step_line(report: StepReport, eta: float | None) -> str:
    """Return the log line of a step."""
    parts = [
        f"step {report.step}/{report.steps}",
        f"loss {report.loss:.5f}",
        f"grad norm {report.grad_norm:.4f}",
        f"lr {report.lr:.3g}",
        f"{report.tokens_per_second:,.0f} tok/s",
        f"{report.step_seconds:.2f} s",
    ]
    if report.data_seconds > 0.1 * report.step_seconds:
        parts.append(f"data {report.data_seconds:.2f} s")
    if report.mfu is not None:
        parts.append(f"mfu {report.mfu:.1%}")
    if report.memory_bytes:
        parts.append(f"{report.memory_bytes / 2**30:.1f} GiB")
    if eta is not None:
        parts.append(f"eta {duration(eta)}")
    return "  ".join(parts)


def stages_line(stages: dict[str, float]) -> str:
    """Return the start-up stages in order, and their sum, as text."""
    return (
        ", ".join(f"{name} {seconds:.1f}" for name, seconds in stages.items()) + f", total {sum(stages.values()):.1f}"
    )


def duration(seconds: float) -> str:
    """Return a duration as text, for example `1h12m`, `3m05s`, `8s`."""
    whole = int(seconds + 0.5)
    if whole >= 3600:
        return f"{whole // 3600}h{whole % 3600 // 60:02d}m"
    return f"{whole // 60}m{whole % 60:02d}s" if whole >= 60 else f"{whole}s"


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
