"""The inputs and outputs of the core: plain immutable values that all cluster adapters use."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

from hftitan_api.models import HFTitanJob, JobStatus
from hftitan_api.wire import ExitReport, Progress

Manifest = dict[str, Any]
"""A Kubernetes object as plain JSON values."""

PodPhase = Literal["Pending", "Running", "Succeeded", "Failed", "Unknown"]


@dataclass(frozen=True, slots=True)
class PodView:
    """The compact projection of one pod of the job: about 1 KiB; a typed pod takes 37 KiB."""

    name: str
    uid: str
    attempt: int
    index: int
    phase: PodPhase = "Pending"
    ready: bool = False
    deleting: bool = False
    """deletionTimestamp is set; the pod may still run."""
    deletion_deadline: float | None = None
    """Unix time at which the grace period ends."""
    node: str | None = None
    node_lost: bool = False
    """The node is not ready or was deleted: the pod cannot report its end."""
    node_gone: bool = False
    """The Node object was deleted: the pod never returns. A node that is not ready may recover."""
    address: str | None = None
    """The pod's IP address, once assigned."""
    created_at: float | None = None
    """Unix time at which the pod was created."""
    started_at: float | None = None
    """Unix time at which the container started."""
    exit_code: int | None = None
    """Of the trainer container, once it has ended for good: with the pod, or while only other containers run."""
    reason: str | None = None
    """Kubernetes' reason for the end or the wait: Evicted, Preempting, OOMKilled, ErrImagePull, Unschedulable, ..."""
    message: str | None = None
    """Kubernetes' or the runtime's message with the reason, in one line."""
    report: ExitReport | None = None
    """Parsed from the termination message."""
    unqueued: bool = False
    """The pod's labels name a Kueue queue, but Kueue does not manage the pod: it starts without admission."""
    disrupted: bool = False
    """Ended by preemption, eviction or drain (condition DisruptionTarget, or reason Evicted)."""
    rejected: bool = False
    """The kubelet did not admit the pod; none of its containers ran."""


@dataclass(frozen=True, slots=True)
class Observed:
    """Everything observed in one pass; the job itself has the status last written."""

    pods: tuple[PodView, ...] = ()
    service: bool = False
    """The headless Service exists."""
    config: bool = False
    """The ConfigMap with the TrainerSpec exists."""
    progress: Progress | None = None
    """The newest /progress of node 0; it may be of an earlier attempt."""
    unreachable: bool = False
    """Node 0 is ready, so its kubelet can reach it, but the operator cannot: its steps are unknown."""
    queue_message: str | None = None
    """Kueue's message why it has not admitted the current attempt."""
    departed: PodView | None = None
    """The last view of a deleted pod that left an exit report. Of several, the one with the newest checkpoint."""


# --- actions ------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Apply:
    """Create the object. If the owner already has an object of this name, do nothing."""

    manifest: Manifest


@dataclass(frozen=True, slots=True)
class Require:
    """Check that an object of another owner exists in the job's namespace."""

    api_version: str
    resource: str
    """Plural, as in API paths."""
    name: str


@dataclass(frozen=True, slots=True)
class DeletePodGroup:
    """Delete the PodGroup of an ended attempt, or Kueue's object for it, so that no scheduler waits for its pods.

    No UID precondition: the group's name contains the job's UID.
    """

    api_version: str
    name: str
    resource: str = "podgroups"


@dataclass(frozen=True, slots=True)
class DeletePod:
    name: str
    uid: str
    """Precondition: a pod with the same name but another UID is not deleted."""
    grace_seconds: int | None = None
    """None: the pod's own grace period; 0: force the deletion."""


@dataclass(frozen=True, slots=True)
class DeleteJob:
    """Delete the job after its TTL; the garbage collector deletes its objects."""


Action = Require | Apply | DeletePodGroup | DeletePod | DeleteJob


@dataclass(frozen=True, slots=True)
class Event:
    """A Kubernetes event, emitted after the status is written."""

    type: Literal["Normal", "Warning"]
    reason: str
    message: str


@dataclass(frozen=True, slots=True)
class Decision:
    """One step: do the actions in order, write the status if it differs, then emit the events."""

    actions: tuple[Action, ...] = ()
    status: JobStatus = field(default_factory=JobStatus)
    events: tuple[Event, ...] = ()
    recheck_after: float | None = None
    """Seconds until the decision may change without any other change; None: wait for a change."""


@dataclass(frozen=True, slots=True)
class Seen:
    """A job and its observed state."""

    job: HFTitanJob
    observed: Observed
    problems: tuple[str, ...] = ()
    """Parse errors of the spec, one for each field; only the identity and the status of `job` are then valid."""
