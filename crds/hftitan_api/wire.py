"""The contract between operator and trainer.

A pod receives one JSON document (`TrainerSpec`, in a ConfigMap) and a few environment variables. Node 0 serves
`/progress` while it runs. Each pod writes an `ExitReport` to its termination log when it ends. Paths are only in the
environment: the document is then the same for every attempt, and the local adapter can use folders instead of mounts.
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

# Environment of a trainer container, in addition to torchrun's PET_* and Hugging Face's HF_HOME and HF_TOKEN.
ENV_CONFIG = "HFTITAN_CONFIG"
"""Path of the TrainerSpec document."""
ENV_OUTPUT = "HFTITAN_OUTPUT"
"""Path of the folder that all pods share: checkpoint/, export/ and metrics.jsonl."""
ENV_TERMINATION_LOG = "HFTITAN_TERMINATION_LOG"
"""Path of the file for the ExitReport. The kubelet reads at most 4096 bytes of it."""
ENV_ATTEMPT = "HFTITAN_ATTEMPT"
"""Number of the attempt, from 1."""
ENV_NODE_INDEX = "HFTITAN_NODE_INDEX"
"""Index of the pod in its gang, from 0."""
ENV_POD_IP = "HFTITAN_POD_IP"
"""Address on which the pod serves /metrics and /progress."""

TERMINATION_LOG_LIMIT = 4096


def _finite(value: object) -> object:
    return None if isinstance(value, float) and not math.isfinite(value) else value


# Users can build their own image, so these values are not trusted. Every value must fit into a status.
Measure = Annotated[float | None, BeforeValidator(_finite)]
"""A number, or None if it is NaN or infinite (a loss may be), because JSON cannot represent those."""
Seconds = Annotated[float | None, Field(ge=0, le=1e15), BeforeValidator(_finite)]
Text = Annotated[str, Field(max_length=1024)]


class MeshDegrees(ApiModel):
    """The mesh with all degrees resolved. The product of the axes without ep is the world size."""

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
        """Data-parallel degree: the number of rank groups that read different batches."""
        return self.dp_replicate * self.dp_shard


class TrainerSpec(ApiModel):
    """The trainer's configuration. It is the same in every pod and attempt."""

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


TrainerPhase = Literal["starting", "loading", "training", "checkpointing", "validating", "exporting", "pushing", "done"]


class Progress(ApiModel):
    """The document at /progress on node 0."""

    attempt: Number
    phase: TrainerPhase
    step: Number = 0
    """Last finished step."""
    steps: Number
    """Number of steps of the job."""
    loss: Measure = None
    """Mean loss over all tokens of the last step, also with pipeline parallelism."""
    grad_norm: Measure = None
    """Norm of the gradient before clipping."""
    lr: Measure = None
    tokens_per_second: Measure = None
    """Throughput over all ranks."""
    mfu: Measure = None
    """Model FLOPs utilization, 0 to 1. None if the peak of the device is not known."""
    step_seconds: Seconds = None
    """Mean duration of the steps of this process, so that steps x seconds is the time they took. The first step, which
    compiles, is left out as soon as there are others."""
    eta_seconds: Seconds = None
    """Estimated seconds until the last step is done."""
    tokens_seen: Annotated[int, Field(ge=0, le=2**53)] | None = None
    """Tokens that the job trained on, over all ranks and attempts."""
    epoch: Measure = None
    """Number of passes over the data so far."""
    updated: UnixTime
    """When the step or the phase last changed."""
    worker_restarts: Number = 0
    """Restarts of the workers by torchrun, inside the pod, in this attempt."""
    validation_step: Number | None = None
    """Step after which the last validation ran."""
    validation_loss: Measure = None
    """Mean loss of the last validation."""
    checkpoint_step: Number | None = None
    checkpoint_time: UnixTime | None = None
    export_path: Text | None = None
    model_revision: Text | None = None
    resumed_from: Number | None = None
    """Step of the checkpoint from which this attempt resumed."""


ExitReason = Literal[
    "Completed",  # all steps done
    "Preempted",  # SIGTERM: all ranks saved an agreed step; does not count against maxRestarts
    "UserError",  # the spec, data or model is wrong; a retry would fail in the same way
    "OutOfMemory",  # the device has no memory left
    "NonFiniteLoss",  # NaN or infinite loss; a retry from the checkpoint would fail in the same way
    "StorageError",  # saving or loading failed: disk full, volume not available
    "NetworkError",  # a collective or the hub timed out
    "InternalError",  # anything else
]


class ExitReport(ApiModel):
    """Why a trainer ended. If several ranks fail, the report has the first cause."""

    reason: ExitReason
    message: Annotated[str, Field(max_length=3000)] = ""
    step: Number = 0
    """Last finished step."""
    retryable: bool
    """Whether a new attempt may succeed."""
    rank: Number = 0
    """Global rank with the reported cause."""
    checkpoint_step: Number | None = None
    """Step of the newest complete checkpoint."""
    export_path: Text | None = None
    """Path of the exported Hugging Face folder, if it was written."""
    model_revision: Text | None = None
    progress: Progress | None = None
    """The last progress, from the pod of node 0, without the fields that the report has itself."""
