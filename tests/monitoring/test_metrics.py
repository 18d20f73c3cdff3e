"""The operator and the trainer export exactly the metrics of metric_names, without promtool warnings."""

import pytest
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.parser import text_string_to_metric_families

from hftitan_api import metric_names as names
from hftitan_api.models import HFTitanJob
from hftitan_api.wire import TrainerSpec
from hftitan_operator.core.state import Event
from hftitan_operator.kube.metrics import JobsCollector, OperatorMetrics
from hftitan_trainer.process.environment import Environment
from hftitan_trainer.telemetry.observer import DataSeen, StepReport
from hftitan_trainer.telemetry.run_observer import RunObserver

FAILED = {
    "type": "Failed",
    "status": "True",
    "lastTransitionTime": "2026-11-25T00:00:00Z",
    "reason": "NonFiniteLoss",
    "message": "loss is nan at step 7",
}


def job(name, mesh=None, **status):
    return HFTitanJob.model_validate(
        {
            "metadata": {"name": name, "namespace": "team", "creationTimestamp": "1970-01-01T00:01:00Z"},
            "spec": {
                "model": {"name": "org/model"},
                "dataset": {"name": "org/data"},
                "mesh": mesh or {},
                "training": {"steps": 5},
            },
            "status": status,
        }
    )


JOBS = [
    job("new"),
    job("large", {"nodes": 2, "gpusPerNode": 8}, phase="Running", attempt=3, restarts=2, goodput=0.75,
        attemptStartTime="1970-01-01T00:02:00Z"),
    job("small", {"device": "cpu"}, phase="Running"),
    job("broken", phase="Failed", conditions=[FAILED], completionTime="1970-01-01T00:03:00Z"),
]  # fmt: skip


@pytest.fixture
def operator_metrics():
    """Metrics of an operator in which each kind of event has happened once."""
    metrics = OperatorMetrics("1.2.3")
    metrics.registry.register(JobsCollector(JOBS))
    metrics.request("GET", 200)
    metrics.failed(OSError("no answer"))
    metrics.pass_seconds.observe(0.02)
    metrics.told(Event("Normal", "AttemptCreated", "attempt 2"))
    record = {"time": "1970-01-01T00:02:00Z", "attempt": 1, "reason": "Evicted"}
    began, restarted = job("large", attempt=1), job("large", attempt=2, restarts=1, restartHistory=[record])
    metrics.wrote(began, restarted.status)
    # A new attempt without a new restart record: the job was suspended and resumed.
    metrics.wrote(restarted, job("large", attempt=3, restarts=1, restartHistory=[record]).status)
    return metrics


@pytest.fixture
def trainer_registry(tmp_path):
    """Registry of a trainer in which each kind of event has happened once."""
    degrees = dict.fromkeys(("nodes", "ranksPerNode", "dpReplicate", "dpShard", "cp", "tp", "pp", "ep"), 1)
    sections = {"optimizer": {}, "lrSchedule": {}, "checkpoint": {"interval": 7}, "monitoring": {}}
    spec = TrainerSpec.model_validate(
        {"jobName": "j", "jobNamespace": "n", "jobUid": "u", "mesh": {**degrees, "device": "cpu"}, **sections,
         "model": {"name": "a/b"}, "dataset": {"path": "/d"}, "training": {"steps": 10}}
    )  # fmt: skip
    env = Environment(
        config=tmp_path / "c", output=tmp_path, termination_log=None, attempt=1, node_index=0, pod_ip=None, rank=0,
        local_rank=0, world_size=1, worker_restarts=0,
    )  # fmt: skip
    observer = RunObserver(spec, env)
    report = StepReport(
        step=3, steps=10, loss=2.5, max_loss=2.75, grad_norm=1.5, lr=1e-4, tokens_per_second=400.0, tokens_seen=1200,
        step_seconds=2.0, data_seconds=0.5, mfu=0.4, memory_bytes=5, data=DataSeen(1.5, 30, 2, 3, 4),
    )  # fmt: skip
    observer.step(report)
    observer.validated(3, float("nan"), 100, 1.5)
    observer.saved(3, 0.25)
    observer.complete(3)
    registry = CollectorRegistry()
    registry.register(observer)
    return registry


def sample(registry, name, **labels):
    return registry.get_sample_value(name, labels)


def test_operator_exports_exactly_the_metrics_of_the_table(operator_metrics):
    table = {metric.name.removesuffix("_total"): metric for metric in names.OPERATOR}
    seen = [f for f in text_string_to_metric_families(operator_metrics.text().decode())
            if not f.name.startswith("process_")]  # fmt: skip
    assert {family.name for family in seen} == set(table)
    for family in seen:
        metric = table[family.name]
        assert (family.type, family.documentation) == (metric.type, metric.help)
        assert all(set(s.labels) - {"le"} == set(metric.labels) for s in family.samples)


def test_promtool_accepts_the_metrics_without_warnings(operator_metrics, trainer_registry, promtool):
    for text in (operator_metrics.text(), generate_latest(trainer_registry)):
        assert promtool("check", "metrics", text=text.decode()) == ""


def test_job_metrics_match_the_job_statuses(operator_metrics):
    registry = operator_metrics.registry
    phases = {"Pending": 1, "Running": 2, "Failed": 1}
    for phase in ("Pending", "Starting", "Running", "Restarting", "Suspended", "Succeeded", "Failed"):
        assert sample(registry, "hftitan_jobs", phase=phase) == phases.get(phase, 0)
    assert sample(registry, "hftitan_jobs_gpus", phase="Running") == 16, "a job on CPUs requests no GPU"
    large, broken = ({"job_namespace": "team", "job_name": name} for name in ("large", "broken"))
    assert sample(registry, "hftitan_job_phase", phase="Running", **large) == 1
    assert sample(registry, "hftitan_job_phase", phase="Failed", **large) is None
    assert sample(registry, "hftitan_job_restarts_total", **large) == 2
    assert sample(registry, "hftitan_job_goodput_ratio", **large) == 0.75
    assert sample(registry, "hftitan_job_created_timestamp_seconds", **large) == 60
    assert sample(registry, "hftitan_job_attempt_start_timestamp_seconds", **large) == 120
    assert sample(registry, "hftitan_job_end_timestamp_seconds", **large) is None
    assert sample(registry, "hftitan_job_end_timestamp_seconds", **broken) == 180
    assert sample(registry, "hftitan_job_failure_info", reason="NonFiniteLoss", **broken) == 1
    assert sample(registry, "hftitan_operator_restarts_total", reason="Evicted") == 1
    assert sample(registry, "hftitan_operator_restarts_total", reason="Hung") == 0, "increase() needs an initial 0"


def test_nan_validation_loss_is_exported(trainer_registry):
    labels = {"job_namespace": "n", "job_name": "j", "node_index": "0"}
    loss = sample(trainer_registry, "hftitan_validation_loss", **labels)
    assert loss is not None
    assert loss != loss, "NaN triggers the alert HFTitanLossNotFinite"
    assert sample(trainer_registry, "hftitan_validation_duration_seconds_sum", **labels) == 1.5
    assert sample(trainer_registry, "hftitan_checkpoint_interval_steps", **labels) == 7
