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
    """The compact projection of one pod of the job (about 1 KiB, not the 37 KiB of a whole pod)."""

    name: str
    uid: str
    attempt: int
    index: int
    phase: PodPhase = "Pending"
    ready: bool = False
    deleting: bool = False
    """deletionTimestamp is set; the pod may still run."""
    deletion_deadline: float | None = None
    """Unix time at which its grace period is over."""
    node: str | None = None
    node_lost: bool = False
    """Its node is not ready, or gone: the pod does not report its own end."""
    node_gone: bool = False
    """Its Node object was deleted: nothing that ran there comes back, while a node that is not ready may."""
    address: str | None = None
    """Its IP address, once it has one."""
    created_at: float | None = None
    """Unix time at which the pod was created."""
    started_at: float | None = None
    """Unix time at which its container started."""
    exit_code: int | None = None
    """Of the trainer container, once terminated."""
    reason: str | None = None
    """Kubernetes' word for the end or the wait: Evicted, Preempting, OOMKilled, ErrImagePull, Unschedulable, ..."""
    message: str | None = None
    report: ExitReport | None = None
    """Parsed from the termination message."""
    unqueued: bool = False
    """Its labels give it to a queue of Kueue, which does not manage it: nobody holds it back."""
    disrupted: bool = False
    """Ended by preemption, eviction or drain (condition DisruptionTarget, or reason Evicted)."""


@dataclass(frozen=True, slots=True)
class Observed:
    """Everything seen in one pass; the job itself carries the status last written."""

    pods: tuple[PodView, ...] = ()
    service: bool = False
    """The headless Service exists."""
    config: bool = False
    """The ConfigMap with the TrainerSpec exists."""
    progress: Progress | None = None
    """Newest /progress of node 0, of whatever attempt it names."""
    unreachable: bool = False
    """Node 0 is ready, so that its kubelet can reach it, and we cannot: nothing is known of its steps."""


# --- actions ------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Apply:
    """Create the object; one that exists under this name and owner is left as it is."""

    manifest: Manifest


@dataclass(frozen=True, slots=True)
class Require:
    """Done when the cluster has this object of the job's namespace, which is somebody else's."""

    api_version: str
    resource: str
    """Plural, as in the API's paths."""
    name: str


@dataclass(frozen=True, slots=True)
class DeletePodGroup:
    """The attempt is over, and no scheduler shall wait for its pods. Its name has the job's uid in it."""

    api_version: str
    name: str


@dataclass(frozen=True, slots=True)
class DeletePod:
    name: str
    uid: str
    """Precondition: a pod of the same name but another uid is left alone."""
    grace_seconds: int | None = None
    """None: the pod's own grace period; 0: force."""


@dataclass(frozen=True, slots=True)
class DeleteJob:
    """The TTL is over: delete the job; the garbage collector takes what it owns."""


Action = Require | Apply | DeletePodGroup | DeletePod | DeleteJob


@dataclass(frozen=True, slots=True)
class Event:
    """A line for humans, written after the status."""

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
    """Seconds until time alone could change the decision; None: wait for a change."""


@dataclass(frozen=True, slots=True)
class Seen:
    """A job and what surrounds it, as one observation returns it."""

    job: HFTitanJob
    observed: Observed
    problems: tuple[str, ...] = ()
    """Why its spec cannot be read, field by field; `job` then has only its identity and status right."""
