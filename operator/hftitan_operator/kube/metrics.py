"""The operator's metrics, named in hftitan_api.metric_names. Values from job statuses are read at each scrape."""

from __future__ import annotations

from collections import Counter as Tally
from collections.abc import Iterable
from typing import get_args

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    ProcessCollector,
    disable_created_metrics,
    generate_latest,
)
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.registry import Collector

from hftitan_api import metric_names as names
from hftitan_api.metric_names import Metric
from hftitan_api.models import HFTitanJob, JobStatus
from hftitan_api.wire import ExitReason
from hftitan_operator.core import clock, reasons
from hftitan_operator.core.lifecycle import status as st
from hftitan_operator.core.state import Event

PHASES = ("Pending", "Starting", "Running", "Restarting", "Suspended", "Succeeded", "Failed")


def _counter(metric: Metric, registry: CollectorRegistry) -> Counter:
    return Counter(metric.name.removesuffix("_total"), metric.help, metric.labels, registry=registry)


class OperatorMetrics:
    """Metrics of this process. A JobsCollector can be added to `registry`."""

    def __init__(self, version: str) -> None:
        disable_created_metrics()  # type: ignore[no-untyped-call]  # a second series for each metric, unused
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        info = Gauge(
            names.OPERATOR_INFO.name, names.OPERATOR_INFO.help, names.OPERATOR_INFO.labels, registry=self.registry
        )
        info.labels(version=version).set(1)
        self.leader = Gauge(names.OPERATOR_LEADER.name, names.OPERATOR_LEADER.help, registry=self.registry)
        self.queue_depth = Gauge(names.QUEUE_DEPTH.name, names.QUEUE_DEPTH.help, registry=self.registry)
        self.pass_seconds = Histogram(
            names.RECONCILE_DURATION.name,
            names.RECONCILE_DURATION.help,
            buckets=names.RECONCILE_DURATION.buckets,
            registry=self.registry,
        )
        self._errors = _counter(names.RECONCILE_ERRORS, self.registry)
        self._requests = _counter(names.API_REQUESTS, self.registry)
        self._events = _counter(names.JOB_EVENTS, self.registry)
        self._restarts = _counter(names.RESTARTS, self.registry)
        for reason in {*reasons.ATTEMPT_ENDS, *get_args(ExitReason)} - {"Completed"}:
            self._restarts.labels(reason=reason)  # start at 0: Prometheus sees no increase in a series that starts at 1

    def text(self) -> bytes:
        return generate_latest(self.registry)

    def request(self, method: str, status: int) -> None:
        self._requests.labels(method=method, code=str(status)).inc()

    def failed(self, error: Exception) -> None:
        self._errors.labels(reason=getattr(error, "reason", None) or type(error).__name__).inc()

    def told(self, event: Event) -> None:
        self._events.labels(type=event.type, reason=event.reason).inc()

    def wrote(self, job: HFTitanJob, status: JobStatus) -> None:
        """Count a restart. `job` has the status before the write; one write may end an attempt and start the next."""
        if status.restarts > job.status.restarts and status.restart_history:
            self._restarts.labels(reason=status.restart_history[-1].reason).inc()


class JobsCollector(Collector):
    """Collects metrics of all jobs from their last observed state, at each scrape."""

    def __init__(self, jobs: Iterable[HFTitanJob]) -> None:
        self._jobs = jobs

    def collect(self) -> Iterable[CounterMetricFamily | GaugeMetricFamily]:
        phases: Tally[str] = Tally(dict.fromkeys(PHASES, 0))
        gpus: Tally[str] = Tally(dict.fromkeys(PHASES, 0))
        families = {metric: _family(metric) for metric in OF_EACH_JOB}

        def add(metric: Metric, value: float | None, *labels: str) -> None:
            if value is not None:
                families[metric].add_metric([*own, *labels], value)

        for job in self._jobs:
            metadata, status, mesh = job.metadata, job.status, job.spec.mesh
            own = (metadata.namespace, metadata.name)
            phase: str = status.phase or "Pending"
            phases[phase] += 1
            gpus[phase] += mesh.nodes * mesh.gpus_per_node if mesh.device == "gpu" else 0
            add(names.JOB_PHASE, 1, phase)
            if phase == "Failed":
                failed = st.condition(status, reasons.FAILED)
                add(names.JOB_FAILURE, 1, failed.reason if failed else "")
            add(names.JOB_CREATED, clock.maybe_unix(metadata.creation_timestamp))
            add(names.JOB_ATTEMPT_START, clock.maybe_unix(status.attempt_start_time))
            add(names.JOB_END, clock.maybe_unix(status.completion_time))
            add(names.JOB_GOODPUT, status.goodput)
            add(names.JOB_RESTARTS, status.restarts)
        for metric, tally in ((names.JOBS, phases), (names.GPUS, gpus)):
            family = _family(metric)
            for name, count in tally.items():
                family.add_metric([name], count)
            yield family
        yield from families.values()


OF_EACH_JOB = (
    names.JOB_PHASE,
    names.JOB_FAILURE,
    names.JOB_CREATED,
    names.JOB_ATTEMPT_START,
    names.JOB_END,
    names.JOB_GOODPUT,
    names.JOB_RESTARTS,
)


def _family(metric: Metric) -> CounterMetricFamily | GaugeMetricFamily:
    kind = CounterMetricFamily if metric.type == "counter" else GaugeMetricFamily
    return kind(metric.name.removesuffix("_total"), metric.help, labels=metric.labels)
