"""Every metric of the product: name, type, labels and help text in one table.

The trainer registers them from here, dashboards and alert rules are checked against it. Naming follows Prometheus:
base units (seconds, bytes), `_total` for counters, `_ratio` for 0 to 1, `_info` for a constant 1 whose labels speak.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

PREFIX = "hftitan_"

MetricType = Literal["counter", "gauge", "histogram"]


@dataclass(frozen=True, slots=True)
class Metric:
    """One family as a scrape shows it; a counter's name ends in `_total`."""

    name: str
    type: MetricType
    help: str
    labels: tuple[str, ...] = ()
    """Beside COMMON_LABELS, where it is a trainer's."""
    buckets: tuple[float, ...] = ()
    """Upper bounds of a histogram."""

    @property
    def series(self) -> tuple[str, ...]:
        """The names that PromQL knows."""
        return tuple(f"{self.name}_{part}" for part in ("bucket", "sum", "count")) if self.buckets else (self.name,)


COMMON_LABELS = ("job_namespace", "job_name", "node_index")
"""On every trainer metric. `job` and `namespace` are left to Prometheus, which sets them from the scrape target."""

_STEP_BUCKETS = (0.05, 0.1, 0.25, 0.5, 1.0, 2.0, 4.0, 8.0, 15.0, 30.0, 60.0, 120.0, 300.0)
_SAVE_BUCKETS = (0.1, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0, 600.0, 1800.0)

INFO = Metric(
    "hftitan_trainer_info",
    "gauge",
    "Constant 1; the labels name what is trained, how it is laid out, and with which versions.",
    ("model", "model_revision", "mesh", "device", "version"),
)
PHASE = Metric("hftitan_trainer_phase", "gauge", "1 for the phase the trainer is in, 0 for the others.", ("phase",))
ATTEMPT = Metric("hftitan_attempt", "gauge", "Number of the gang attempt, from 1.")
WORKER_RESTARTS = Metric(
    "hftitan_worker_restarts", "gauge", "In-place restarts of the workers by torchrun in this attempt."
)
STARTUP = Metric(
    "hftitan_startup_duration_seconds",
    "gauge",
    "Seconds from the launch to the first finished step, by stage: start, import, fetch, build, load, first_step.",
    ("stage",),
)
RESUMED_STEP = Metric("hftitan_resumed_step", "gauge", "Step of the checkpoint this attempt started from, or 0.")

STEP = Metric("hftitan_step", "gauge", "Newest finished optimizer step.")
TARGET_STEPS = Metric("hftitan_target_steps", "gauge", "Optimizer steps the job asks for.")
PROGRESS_TIME = Metric(
    "hftitan_last_progress_timestamp_seconds", "gauge", "Unix time at which the step or the phase last changed."
)
LOSS = Metric("hftitan_loss", "gauge", "Mean loss over all tokens of the newest step, over all ranks.")
LOSS_MAX = Metric("hftitan_loss_max", "gauge", "Largest mean loss of one data-parallel rank in the newest step.")
VALIDATION_LOSS = Metric(
    "hftitan_validation_loss", "gauge", "Mean loss over all tokens of the newest validation, over all ranks."
)
VALIDATION_STEP = Metric("hftitan_validation_step", "gauge", "Step after which the newest validation was made.")
VALIDATION_DURATION = Metric(
    "hftitan_validation_duration_seconds",
    "histogram",
    "Seconds the training stood still for a validation.",
    buckets=_SAVE_BUCKETS,
)
GRAD_NORM = Metric("hftitan_grad_norm", "gauge", "Norm of the gradient before clipping in the newest step.")
LEARNING_RATE = Metric("hftitan_learning_rate", "gauge", "Learning rate of the newest step.")
TOKENS = Metric("hftitan_tokens_total", "counter", "Tokens trained on by all ranks, earlier attempts included.")
TOKENS_PER_SECOND = Metric("hftitan_tokens_per_second", "gauge", "Throughput of the newest step over all ranks.")
DEVICE_TOKENS_PER_SECOND = Metric(
    "hftitan_device_tokens_per_second", "gauge", "Throughput of the newest step for each device."
)
MFU = Metric("hftitan_mfu_ratio", "gauge", "Model FLOPs utilisation, 0 to 1; absent where the peak is not known.")
EPOCH = Metric(
    "hftitan_epoch", "gauge", "Passes over the data so far, by all ranks together; of a stream, the whole ones."
)
DOCUMENTS = Metric("hftitan_documents_total", "counter", "Documents read by all ranks, earlier attempts included.")
DOCUMENTS_TRUNCATED = Metric(
    "hftitan_documents_truncated_total", "counter", "Documents of which only the beginning was taken (longDocuments)."
)
DOCUMENTS_DROPPED = Metric(
    "hftitan_documents_dropped_total",
    "counter",
    "Documents left out: too_long (longDocuments: drop), or empty of anything to learn.",
    ("reason",),
)
STEP_DURATION = Metric(
    "hftitan_step_duration_seconds",
    "histogram",
    "Duration of a step, without checkpoints and validation.",
    buckets=_STEP_BUCKETS,
)
DATA_WAIT = Metric("hftitan_data_wait_seconds_total", "counter", "Seconds this rank waited for batches.")
ETA = Metric("hftitan_eta_seconds", "gauge", "Estimated seconds until the last step.")
MEMORY_PEAK = Metric(
    "hftitan_memory_peak_bytes",
    "gauge",
    "Peak memory of local rank 0: reserved on its device, or resident where it trains on processors.",
)

CHECKPOINT_INTERVAL = Metric(
    "hftitan_checkpoint_interval_steps", "gauge", "Steps from one checkpoint to the next; 0: only at the end."
)
CHECKPOINT_STEP = Metric("hftitan_checkpoint_step", "gauge", "Step of the newest complete checkpoint.")
CHECKPOINT_TIME = Metric(
    "hftitan_checkpoint_timestamp_seconds", "gauge", "Unix time at which the newest checkpoint was complete."
)
CHECKPOINT_DURATION = Metric(
    "hftitan_checkpoint_save_duration_seconds",
    "histogram",
    "Seconds the training stood still for a checkpoint.",
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
"""What a trainer pod serves at /metrics."""

# --- the operator's own ---------------------------------------------------------------------------------------

OPERATOR_INFO = Metric("hftitan_operator_info", "gauge", "Constant 1; the label is the version.", ("version",))
OPERATOR_LEADER = Metric("hftitan_operator_leader", "gauge", "1 for the replica that acts, 0 for one that waits.")
JOBS = Metric("hftitan_jobs", "gauge", "Jobs by phase.", ("phase",))
GPUS = Metric("hftitan_jobs_gpus", "gauge", "GPUs that the jobs of a phase ask for.", ("phase",))
_JOB = ("job_namespace", "job_name")
JOB_PHASE = Metric("hftitan_job_phase", "gauge", "1 for the phase of a job; the others are absent.", (*_JOB, "phase"))
JOB_FAILURE = Metric(
    "hftitan_job_failure_info", "gauge", "Constant 1 for a job that failed; the label says why.", (*_JOB, "reason")
)
JOB_CREATED = Metric("hftitan_job_created_timestamp_seconds", "gauge", "Unix time at which a job was created.", _JOB)
JOB_ATTEMPT_START = Metric(
    "hftitan_job_attempt_start_timestamp_seconds", "gauge", "Unix time at which a job's newest attempt began.", _JOB
)
JOB_END = Metric("hftitan_job_end_timestamp_seconds", "gauge", "Unix time at which a job succeeded or failed.", _JOB)
JOB_GOODPUT = Metric(
    "hftitan_job_goodput_ratio",
    "gauge",
    "Share of a job's active time spent on steps that were kept, 0 to 1.",
    _JOB,
)
JOB_RESTARTS = Metric(
    "hftitan_job_restarts_total", "counter", "New attempts of a job so far, free ones included.", _JOB
)
RESTARTS = Metric("hftitan_operator_restarts_total", "counter", "New attempts of all jobs, by cause.", ("reason",))
JOB_EVENTS = Metric("hftitan_operator_job_events_total", "counter", "Events told of jobs.", ("type", "reason"))
RECONCILE_DURATION = Metric(
    "hftitan_operator_reconcile_duration_seconds",
    "histogram",
    "Duration of one pass over one job, its writes included.",
    buckets=(0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0),
)
RECONCILE_ERRORS = Metric(
    "hftitan_operator_reconcile_errors_total", "counter", "Passes that failed and are repeated.", ("reason",)
)
QUEUE_DEPTH = Metric("hftitan_operator_queue_depth", "gauge", "Jobs that wait to be looked at.")
API_REQUESTS = Metric(
    "hftitan_operator_api_requests_total",
    "counter",
    "Requests to the Kubernetes API by method and status code; code 0: no answer.",
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
"""What the operator serves at /metrics, beside prometheus_client's `process_*`. Those of jobs come from the leader
alone, so that a sum over all replicas counts each job once."""

ALL: tuple[Metric, ...] = (*TRAINER, *OPERATOR)
