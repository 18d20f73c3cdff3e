"""The trainer's metrics as Prometheus families, from the table in hftitan_api.metric_names."""

from __future__ import annotations

import dataclasses
from bisect import bisect_left
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from itertools import accumulate
from typing import get_args

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric

from hftitan_api import metric_names as names
from hftitan_api.wire import MeshDegrees, Progress, TrainerPhase, TrainerSpec
from hftitan_trainer.process.environment import Environment
from hftitan_trainer.telemetry.observer import StepReport


@dataclasses.dataclass
class Histogram:
    """Observations counted by bucket."""

    metric: names.Metric
    total: float = 0.0
    counts: list[int] = dataclasses.field(default_factory=list)

    def __post_init__(self) -> None:
        self.counts = self.counts or [0] * (len(self.metric.buckets) + 1)

    @property
    def count(self) -> int:
        return sum(self.counts)

    def observe(self, value: float) -> None:
        self.counts[bisect_left(self.metric.buckets, value)] += 1
        self.total += value

    def copy(self) -> Histogram:
        return Histogram(self.metric, self.total, list(self.counts))

    def buckets(self) -> list[tuple[str, float]]:
        """Return cumulative buckets, ending in +Inf, as Prometheus requires."""
        bounds = [*map(str, self.metric.buckets), "+Inf"]
        return list(zip(bounds, map(float, accumulate(self.counts)), strict=True))


def families(
    spec: TrainerSpec,
    env: Environment,
    progress: Progress,
    report: StepReport | None,
    stages: Mapping[str, float],
    data_wait_seconds: float,
    validation_loss: float | None,
    histograms: Sequence[Histogram],
) -> Iterator[Metric]:
    """Yield every family that has a value.

    `stages`: seconds of each start-up stage. `data_wait_seconds`: of this process. `validation_loss`: may be NaN or
    infinite; `progress` then has None, since it becomes JSON.
    """
    common = (spec.job_namespace, spec.job_name, str(env.node_index))

    def family(metric: names.Metric, values: Mapping[tuple[str, ...], float]) -> Metric:
        kind = CounterMetricFamily if metric.type == "counter" else GaugeMetricFamily
        made = kind(metric.name.removesuffix("_total"), metric.help, labels=names.COMMON_LABELS + metric.labels)
        for labels, value in values.items():
            made.add_metric(common + labels, value)
        return made

    info = (spec.model.name, progress.model_revision or "", layout(spec.mesh), spec.mesh.device, _version())
    yield family(names.INFO, {info: 1})
    yield family(names.PHASE, {(phase,): float(phase == progress.phase) for phase in get_args(TrainerPhase)})
    yield family(names.STARTUP, {(stage,): seconds for stage, seconds in stages.items()})
    seen = report.data if report and report.data else None
    if seen is not None:
        yield family(names.DOCUMENTS_DROPPED, {("too_long",): seen.too_long, ("empty",): seen.empty})
    values = {
        names.EPOCH: seen and seen.epoch,
        names.DOCUMENTS: seen and seen.documents,
        names.DOCUMENTS_TRUNCATED: seen and seen.truncated,
        names.ATTEMPT: progress.attempt,
        names.WORKER_RESTARTS: progress.worker_restarts,
        names.RESUMED_STEP: progress.resumed_from or 0,
        names.STEP: progress.step,
        names.TARGET_STEPS: progress.steps,
        names.PROGRESS_TIME: progress.updated,
        names.LOSS: report and report.loss,
        names.LOSS_MAX: report and report.max_loss,
        names.VALIDATION_LOSS: validation_loss,
        names.VALIDATION_STEP: progress.validation_step,
        names.GRAD_NORM: report and report.grad_norm,
        names.LEARNING_RATE: progress.lr,
        names.TOKENS: progress.tokens_seen,
        names.TOKENS_PER_SECOND: progress.tokens_per_second,
        names.DEVICE_TOKENS_PER_SECOND: report and report.tokens_per_second / env.world_size,
        names.MFU: progress.mfu,
        names.DATA_WAIT: data_wait_seconds,
        names.ETA: progress.eta_seconds,
        names.MEMORY_PEAK: report and report.memory_bytes,
        names.CHECKPOINT_INTERVAL: spec.checkpoint.interval,
        names.CHECKPOINT_STEP: progress.checkpoint_step,
        names.CHECKPOINT_TIME: progress.checkpoint_time,
    }
    for metric, value in values.items():
        if value is not None:
            yield family(metric, {(): float(value)})
    for histogram in histograms:
        made = HistogramMetricFamily(histogram.metric.name, histogram.metric.help, labels=names.COMMON_LABELS)
        made.add_metric(common, buckets=histogram.buckets(), sum_value=histogram.total)
        yield made


def layout(mesh: MeshDegrees) -> str:
    """Return the mesh as text, for example `2x8: dp4 tp4`."""
    axes = {"dp": mesh.dp, "cp": mesh.cp, "tp": mesh.tp, "pp": mesh.pp, "ep": mesh.ep}
    degrees = " ".join(f"{axis}{degree}" for axis, degree in axes.items() if degree > 1)
    return f"{mesh.nodes}x{mesh.ranks_per_node}" + (f": {degrees}" if degrees else "")


@cache
def _version() -> str:
    try:
        return version("hftitan")
    except PackageNotFoundError:
        return "unknown"
