"""The contract between operator and trainer: what a pod receives, and what it leaves behind.

A pod gets one JSON document (`TrainerSpec`, by ConfigMap) and a few environment variables; it answers with
`/progress` on node 0 while it runs and with an `ExitReport` in its termination log when it ends. Paths travel in the
environment only, so that an adapter without mounts (the local one) can put folders in their place, and the document
is the same for every attempt.
"""

from __future__ import annotations

import math
from typing import Annotated, Literal

from pydantic import BeforeValidator, Field

from hftitan_api.base import Number, UnixTime
from hftitan_api.models import (
    ApiModel,
    CheckpointSpec,
    DatasetSpec,
    LRScheduleSpec,
    ModelSpec,
    MonitoringSpec,
    OptimizerSpec,
    TrainingSpec,
    ValidationSpec,
)

# Environment of a trainer container, beside torchrun's PET_* and the Hugging Face variables (HF_HOME, HF_TOKEN).
ENV_CONFIG = "HFTITAN_CONFIG"
"""Path of the TrainerSpec document."""
ENV_OUTPUT = "HFTITAN_OUTPUT"
"""Folder, shared by all pods: checkpoint/, export/ and metrics.jsonl."""
ENV_TERMINATION_LOG = "HFTITAN_TERMINATION_LOG"
"""File for the ExitReport; at most 4096 bytes are read."""
ENV_ATTEMPT = "HFTITAN_ATTEMPT"
"""Number of the attempt, from 1."""
ENV_NODE_INDEX = "HFTITAN_NODE_INDEX"
"""Index of the pod in its gang, from 0."""
ENV_POD_IP = "HFTITAN_POD_IP"
"""Address to serve /metrics and /progress on."""

TERMINATION_LOG_LIMIT = 4096


def _finite(value: object) -> object:
    return None if isinstance(value, float) and not math.isfinite(value) else value


# The image is the user's: whatever it says must fit into a status, or it is taken as not said.
Measure = Annotated[float | None, BeforeValidator(_finite)]
"""Not known where it is not finite (a loss may be), since JSON has no word for that."""
Seconds = Annotated[float | None, Field(ge=0, le=1e15), BeforeValidator(_finite)]
Text = Annotated[str, Field(max_length=1024)]


class MeshDegrees(ApiModel):
    """The mesh with every degree resolved: the product of the axes without ep is the world size."""

    nodes: int
    ranks_per_node: int
    dp_replicate: int
    dp_shard: int
    cp: int
    tp: int
    pp: int
    ep: int
    device: Literal["gpu", "cpu"]

    @property
    def world_size(self) -> int:
        return self.nodes * self.ranks_per_node

    @property
    def dp(self) -> int:
        """Data-parallel degree: how many ranks groups read different batches."""
        return self.dp_replicate * self.dp_shard


class TrainerSpec(ApiModel):
    """Everything a trainer needs to know, the same in every pod and attempt."""

    job_name: str
    job_namespace: str
    job_uid: str
    mesh: MeshDegrees
    model: ModelSpec
    dataset: DatasetSpec
    training: TrainingSpec
    optimizer: OptimizerSpec
    lr_schedule: LRScheduleSpec
    checkpoint: CheckpointSpec
    validation: ValidationSpec | None = None
    monitoring: MonitoringSpec
    hang_timeout_seconds: int = 1800
    startup_timeout_seconds: int = 1800


ExitReason = Literal[
    "Completed",  # all steps done
    "Preempted",  # SIGTERM: saved at an agreed step; free of charge
    "UserError",  # the spec, data or model is wrong; a retry would fail alike
    "OutOfMemory",  # of the device
    "NonFiniteLoss",  # NaN or infinite loss; a retry from the checkpoint would fail alike
    "StorageError",  # saving or loading failed: disk full, volume gone
    "NetworkError",  # a collective or the hub timed out
    "InternalError",  # anything else
]


class ExitReport(ApiModel):
    """Why a trainer ended; of several ranks that fail, the first cause is kept."""

    reason: ExitReason
    message: Annotated[str, Field(max_length=3000)] = ""
    step: Number = 0
    """Newest finished step."""
    retryable: bool
    rank: Number = 0
    """Global rank that reports."""
    checkpoint_step: Number | None = None
    """Newest checkpoint known complete."""
    export_path: Text | None = None
    """Where the HF folder was written, if it was."""
    model_revision: Text | None = None


TrainerPhase = Literal["starting", "loading", "training", "checkpointing", "validating", "exporting", "pushing", "done"]


class Progress(ApiModel):
    """The document at /progress on node 0."""

    attempt: Number
    phase: TrainerPhase
    step: Number = 0
    """Newest finished step."""
    steps: Number
    loss: Measure = None
    """Mean over all tokens of the newest step, also under pipeline parallelism."""
    grad_norm: Measure = None
    lr: Measure = None
    tokens_per_second: Measure = None
    """Over all ranks."""
    mfu: Measure = None
    """0 to 1; null where the device's peak is not known."""
    step_seconds: Seconds = None
    """Mean of this life's steps, so that steps x seconds is the time they took; without the first one, which compiles,
    as soon as there are others."""
    eta_seconds: Seconds = None
    tokens_seen: Annotated[int, Field(ge=0, le=2**53)] | None = None
    epoch: Measure = None
    """Passes over the data so far."""
    updated: UnixTime
    """Unix time at which step or phase last changed."""
    worker_restarts: Number = 0
    """In-place restarts by torchrun in this attempt."""
    validation_step: Number | None = None
    validation_loss: Measure = None
    """Of the newest validation, made after `validationStep`."""
    checkpoint_step: Number | None = None
    checkpoint_time: UnixTime | None = None
    export_path: Text | None = None
    model_revision: Text | None = None
    resumed_from: Number | None = None
    """Step of the checkpoint this attempt started from."""
