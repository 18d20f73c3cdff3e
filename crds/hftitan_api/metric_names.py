"""All metrics of trainer and operator: name, type, labels and help text.

Trainer and operator create their metrics from this table. Tests check dashboards and alert rules against it. Names
follow Prometheus: base units (seconds, bytes), `_total` for counters, `_ratio` for 0 to 1, `_info` for a constant 1
with information in its labels.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

PREFIX = "hftitan_"

MetricType = Literal["counter", "gauge", "histogram"]


@dataclass(frozen=True, slots=True)
class Metric:
    """One metric family as in a scrape. The name of a counter ends in `_total`."""

    name: str
    type: MetricType
    help: str
    labels: tuple[str, ...] = ()
    """Labels. Trainer metrics also have COMMON_LABELS."""
    buckets: tuple[float, ...] = ()
    """Upper bounds of a histogram's buckets."""

    @property
    def series(self) -> tuple[str, ...]:
        """The names of the family's series in PromQL."""
        return tuple(f"{self.name}_{part}" for part in ("bucket", "sum", "count")) if self.buckets else (self.name,)


COMMON_LABELS = ("job_namespace", "job_name", "node_index")
"""Labels of every trainer metric. Prometheus sets `job` and `namespace` from the scrape target."""

_STEP_BUCKETS = (0.05, 0.1, 0.25, 0.5, 1.0, 2.0, 4.0, 8.0, 15.0, 30.0, 60.0, 120.0, 300.0)
_SAVE_BUCKETS = (0.1, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0, 600.0, 1800.0)

INFO = Metric(
    "hftitan_trainer_info",
    "gauge",
    "Constant 1; labels: model, its revision, mesh, device, and version of the trainer.",
    ("model", "model_revision", "mesh", "device", "version"),
)
PHASE = Metric(
    "hftitan_trainer_phase", "gauge", "1 for the current phase of the trainer, 0 for the others.", ("phase",)
)
ATTEMPT = Metric("hftitan_attempt", "gauge", "Number of the attempt, from 1.")
WORKER_RESTARTS = Metric(
    "hftitan_worker_restarts", "gauge", "Restarts of the workers by torchrun, inside the pod, in this attempt."
)
STARTUP = Metric(
    "hftitan_startup_duration_seconds",
    "gauge",
    "Seconds from launch to first finished step, by stage: start, import, fetch, build, load, first_step.",
    ("stage",),
)
RESUMED_STEP = Metric("hftitan_resumed_step", "gauge", "Step of the checkpoint from which this attempt resumed, or 0.")

STEP = Metric("hftitan_step", "gauge", "Last finished optimizer step.")
TARGET_STEPS = Metric("hftitan_target_steps", "gauge", "Total optimizer steps of the job.")
PROGRESS_TIME = Metric(
    "hftitan_last_progress_timestamp_seconds", "gauge", "Unix time at which the step or the phase last changed."
)
LOSS = Metric("hftitan_loss", "gauge", "Mean loss over all tokens of the last step, over all ranks.")
LOSS_MAX = Metric("hftitan_loss_max", "gauge", "Largest mean loss of a data-parallel rank in the last step.")
VALIDATION_LOSS = Metric(
    "hftitan_validation_loss", "gauge", "Mean loss over all tokens of the last validation, over all ranks."
)
VALIDATION_STEP = Metric("hftitan_validation_step", "gauge", "Step after which the last validation ran.")
VALIDATION_DURATION = Metric(
    "hftitan_validation_duration_seconds",
    "histogram",
    "Seconds that a validation paused the training.",
    buckets=_SAVE_BUCKETS,
)
GRAD_NORM = Metric("hftitan_grad_norm", "gauge", "Norm of the gradient before clipping in the last step.")
LEARNING_RATE = Metric("hftitan_learning_rate", "gauge", "Learning rate of the last step.")
TOKENS = Metric("hftitan_tokens_total", "counter", "Tokens trained on by all ranks, including earlier attempts.")
TOKENS_PER_SECOND = Metric("hftitan_tokens_per_second", "gauge", "Tokens per second in the last step, over all ranks.")
DEVICE_TOKENS_PER_SECOND = Metric(
    "hftitan_device_tokens_per_second", "gauge", "Tokens per second per device in the last step."
)
MFU = Metric(
    "hftitan_mfu_ratio", "gauge", "Model FLOPs utilization, 0 to 1; absent if the peak of the device is not known."
)
EPOCH = Metric(
    "hftitan_epoch", "gauge", "Passes over the data so far, by all ranks together; whole passes for a stream."
)
DOCUMENTS = Metric("hftitan_documents_total", "counter", "Documents read by all ranks, including earlier attempts.")
DOCUMENTS_TRUNCATED = Metric(
    "hftitan_documents_truncated_total", "counter", "Documents truncated to seqLen (longDocuments: truncate)."
)
DOCUMENTS_DROPPED = Metric(
    "hftitan_documents_dropped_total",
    "counter",
    "Documents dropped: too_long (longDocuments: drop), or empty (no tokens to learn).",
    ("reason",),
)
STEP_DURATION = Metric(
    "hftitan_step_duration_seconds",
    "histogram",
    "Duration of a step in seconds, without checkpoints and validation.",
    buckets=_STEP_BUCKETS,
)
DATA_WAIT = Metric("hftitan_data_wait_seconds_total", "counter", "Seconds that this rank waited for batches.")
ETA = Metric("hftitan_eta_seconds", "gauge", "Estimated seconds until the last step is done.")
MEMORY_PEAK = Metric(
    "hftitan_memory_peak_bytes",
    "gauge",
    "Peak memory of local rank 0: reserved on its GPU, or resident on CPU meshes.",
)

CHECKPOINT_INTERVAL = Metric(
    "hftitan_checkpoint_interval_steps", "gauge", "Steps between checkpoints; 0: only at the end."
)
CHECKPOINT_STEP = Metric("hftitan_checkpoint_step", "gauge", "Step of the newest complete checkpoint.")
CHECKPOINT_TIME = Metric(
    "hftitan_checkpoint_timestamp_seconds", "gauge", "Unix time at which the newest checkpoint was complete."
)
CHECKPOINT_DURATION = Metric(
    "hftitan_checkpoint_save_duration_seconds",
    "histogram",
    "Seconds that a checkpoint paused the training.",
    buckets=_SAVE_BUCKETS,
)

TRAINER: tuple[Metric, ...] = (
    INFO,
    PHASE,
    ATTEMPT,
    WORKER_RESTARTS,
    STARTUP,
    RESUMED_STEP,
    STEP,
    TARGET_STEPS,
    PROGRESS_TIME,
    LOSS,
    LOSS_MAX,
    VALIDATION_LOSS,
    VALIDATION_STEP,
    VALIDATION_DURATION,
    GRAD_NORM,
    LEARNING_RATE,
    TOKENS,
    EPOCH,
    DOCUMENTS,
    DOCUMENTS_TRUNCATED,
    DOCUMENTS_DROPPED,
    TOKENS_PER_SECOND,
    DEVICE_TOKENS_PER_SECOND,
    MFU,
    STEP_DURATION,
    DATA_WAIT,
    ETA,
    MEMORY_PEAK,
    CHECKPOINT_INTERVAL,
    CHECKPOINT_STEP,
    CHECKPOINT_TIME,
    CHECKPOINT_DURATION,
)
"""The metrics at /metrics of a trainer pod."""

# --- operator -------------------------------------------------------------------------------------------------

OPERATOR_INFO = Metric("hftitan_operator_info", "gauge", "Constant 1; label: version of the operator.", ("version",))
OPERATOR_LEADER = Metric("hftitan_operator_leader", "gauge", "1 for the active replica (leader), 0 for others.")
JOBS = Metric("hftitan_jobs", "gauge", "Jobs by phase.", ("phase",))
GPUS = Metric("hftitan_jobs_gpus", "gauge", "GPUs requested by jobs, by phase.", ("phase",))
_JOB = ("job_namespace", "job_name")
JOB_PHASE = Metric(
    "hftitan_job_phase", "gauge", "1 for the current phase of a job; other phases are absent.", (*_JOB, "phase")
)
JOB_FAILURE = Metric(
    "hftitan_job_failure_info", "gauge", "Constant 1 for a failed job; label: reason.", (*_JOB, "reason")
)
JOB_CREATED = Metric("hftitan_job_created_timestamp_seconds", "gauge", "Unix time at which a job was created.", _JOB)
JOB_ATTEMPT_START = Metric(
    "hftitan_job_attempt_start_timestamp_seconds",
    "gauge",
    "Unix time at which all pods of a job's current attempt were running.",
    _JOB,
)
JOB_END = Metric("hftitan_job_end_timestamp_seconds", "gauge", "Unix time at which a job succeeded or failed.", _JOB)
JOB_GOODPUT = Metric(
    "hftitan_job_goodput_ratio",
    "gauge",
    "Fraction of a job's active time spent on steps that were kept, 0 to 1.",
    _JOB,
)
JOB_RESTARTS = Metric(
    "hftitan_job_restarts_total",
    "counter",
    "Restarts of a job, including those that do not count against maxRestarts.",
    _JOB,
)
RESTARTS = Metric("hftitan_operator_restarts_total", "counter", "Restarts of all jobs, by reason.", ("reason",))
JOB_EVENTS = Metric(
    "hftitan_operator_job_events_total", "counter", "Events of jobs, by type and reason.", ("type", "reason")
)
RECONCILE_DURATION = Metric(
    "hftitan_operator_reconcile_duration_seconds",
    "histogram",
    "Duration of one reconciliation of a job in seconds, including writes.",
    buckets=(0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0),
)
RECONCILE_ERRORS = Metric(
    "hftitan_operator_reconcile_errors_total",
    "counter",
    "Failed reconciliations, which are retried, by reason.",
    ("reason",),
)
QUEUE_DEPTH = Metric("hftitan_operator_queue_depth", "gauge", "Jobs that wait for reconciliation.")
API_REQUESTS = Metric(
    "hftitan_operator_api_requests_total",
    "counter",
    "Requests to the Kubernetes API, by method and status code; code 0: no response.",
    ("method", "code"),
)

OPERATOR: tuple[Metric, ...] = (
    OPERATOR_INFO,
    OPERATOR_LEADER,
    JOBS,
    GPUS,
    JOB_PHASE,
    JOB_FAILURE,
    JOB_CREATED,
    JOB_ATTEMPT_START,
    JOB_END,
    JOB_GOODPUT,
    JOB_RESTARTS,
    RESTARTS,
    JOB_EVENTS,
    RECONCILE_DURATION,
    RECONCILE_ERRORS,
    QUEUE_DEPTH,
    API_REQUESTS,
)
"""The metrics at /metrics of the operator, in addition to prometheus_client's `process_*`. Only the leader has metrics
of jobs, so that a sum over all replicas counts each job once."""

ALL: tuple[Metric, ...] = (*TRAINER, *OPERATOR)
