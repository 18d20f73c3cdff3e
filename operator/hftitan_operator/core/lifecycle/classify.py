"""Classifies why an attempt ended: the cause of each pod's end, and the first cause of several failures.

When one pod of a gang fails, the collectives of its peers fail too, and the peers report NetworkError or InternalError.
So the cause that explains the others is chosen, not the cause that is observed first.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from hftitan_api.mesh import MeshPlan
from hftitan_operator.core import reasons
from hftitan_operator.core.lifecycle.starts import field_at_fault
from hftitan_operator.core.state import PodView

WORDS_START, WORDS_END = 100, 300
"""Characters of Kubernetes' message in a cause: events have 1024 for the whole message."""

# A smaller number explains the larger ones.
_FATAL, _DISRUPTED, _STOPPED, _EXHAUSTED, _CRASHED, _DELETED, _ERROR, _CONSEQUENCE = range(8)
_ORDER = {
    "OutOfMemory": _EXHAUSTED,
    "StorageError": _EXHAUSTED,
    "InternalError": _ERROR,
    "NetworkError": _CONSEQUENCE,
}


@dataclass(frozen=True, slots=True, order=True)
class Cause:
    """Why an attempt ended. Sorts by explanatory order, then by pod index."""

    order: int
    index: int
    reason: str
    message: str
    """Must fit after "after": "... after pod x-1-1 was killed (exit 137)"."""
    counted: bool = True
    """The restart counts against maxRestarts; False if the job did not cause the failure."""
    fatal: bool = False
    """A retry would fail in the same way, so the job fails at once."""


def finished(pod: PodView) -> bool:
    """Return whether the pod does not run and never will: it ended, or was deleted before it was bound to a node.

    The API server does not bind a pod that is being deleted. A finalizer (Kueue adds one to pods) may keep the object.
    """
    return pod.phase in ("Succeeded", "Failed") or (pod.phase == "Pending" and pod.deleting and pod.node is None)


def outcome(pod: PodView) -> Literal["Succeeded", "Failed"] | None:
    """Return how the trainer's container ended, or None if it has not.

    The pod's phase also depends on containers that others inject: one may run forever, or fail after the trainer.
    """
    code = pod.exit_code
    if code is None:
        return pod.phase if pod.phase == "Succeeded" or pod.phase == "Failed" else None
    reported = pod.report is not None and pod.report.reason == "Completed"
    return "Succeeded" if code == 0 and (pod.phase != "Failed" or reported) else "Failed"


def ended(pod: PodView) -> bool:
    """Return whether the trainer does not run and never will. Other containers may still keep the pod on its node."""
    return outcome(pod) is not None or finished(pod)


def completed(pod: PodView) -> bool:
    """Return whether the pod completed its work. After SIGTERM a pod may exit with 0 and report Preempted."""
    return outcome(pod) == "Succeeded" and (pod.report is None or pod.report.reason == "Completed")


def first_cause(pods: Iterable[PodView], plan: MeshPlan) -> Cause | None:
    """Return the cause that explains the others among the pods of one attempt; None if no pod has failed."""
    return min((cause for pod in pods if (cause := of_pod(pod, plan))), default=None)


def missing(name: str, index: int) -> Cause:
    """Return the cause for a deleted pod. Not counted: Kueue preempts by deletion, and a user deletes on purpose."""
    return Cause(_DELETED, index, reasons.POD_DELETED, f"pod {name} was deleted", counted=False)


def of_pod(pod: PodView, plan: MeshPlan) -> Cause | None:
    """Return why one pod failed, or None if it has not failed."""
    if completed(pod):
        return None
    if not ended(pod):
        return _of_unfinished(pod, plan)
    report = pod.report
    if report is not None and not report.retryable and report.reason not in ("Completed", "Preempted"):
        return Cause(_FATAL, pod.index, report.reason, _reported(pod, plan), fatal=True)
    if pod.node_lost or pod.reason == reasons.NODE_LOST:
        return _lost(pod, plan)
    if pod.disrupted:
        return Cause(_DISRUPTED, pod.index, reasons.EVICTED, _disrupted(pod), counted=False)
    if report is not None and report.reason == "Preempted":
        message = f"pod {pod.name} received SIGTERM and saved step {report.checkpoint_step}"
        if report.checkpoint_step is None:
            message = f"pod {pod.name} received SIGTERM"
        return Cause(_STOPPED, pod.index, reasons.PREEMPTED, message, counted=False)
    if pod.deleting:
        return missing(pod.name, pod.index)
    if pod.reason == reasons.OOM_KILLED:
        message = f"pod {pod.name} ran out of memory ({words(pod)}; spec.pod.resources.limits.memory is the limit)"
        return Cause(_EXHAUSTED, pod.index, reasons.OOM_KILLED, message)
    if report is not None and report.reason != "Completed":
        return Cause(_ORDER.get(report.reason, _ERROR), pod.index, report.reason, _reported(pod, plan))
    return _of_node(pod) or _of_exit_code(pod)


def _of_unfinished(pod: PodView, plan: MeshPlan) -> Cause | None:
    # The kubelet of an unresponsive node may recover, until the control plane deletes the pod.
    if pod.node_gone or (pod.node_lost and pod.deleting):
        return _lost(pod, plan)
    if pod.phase == "Pending" and pod.reason in reasons.NEVER_STARTS:
        message = f"pod {pod.name} can never start: {pod.reason}{_because(pod)}; correct spec.pod.image"
        return Cause(_FATAL, pod.index, reasons.INVALID_IMAGE, message, fatal=True)
    return None


def _of_node(pod: PodView) -> Cause | None:
    """Return the cause of a pod whose node did not admit it, did not start its container, or lost track of it."""
    why = words(pod)
    if pod.rejected:
        message = f"node {pod.node} rejected pod {pod.name} ({why})"
        return _start_error(pod, message) if pod.reason in reasons.UNSUPPORTED else node_error(pod, message)
    if pod.reason in reasons.START_ERRORS:
        field = field_at_fault(pod.message)
        if field is not None:
            return _start_error(pod, f"pod {pod.name} could not start ({why}); check {field}")
        return node_error(pod, f"node {pod.node} could not start pod {pod.name} ({why})")
    if pod.reason in reasons.CONTAINER_LOST and pod.exit_code is not None:
        return node_error(pod, f"node {pod.node} lost the container of pod {pod.name} ({why})")
    return None


def node_error(pod: PodView, message: str) -> Cause:
    return Cause(_DISRUPTED, pod.index, reasons.NODE_ERROR, message, counted=False)


def _start_error(pod: PodView, message: str) -> Cause:
    return Cause(_CRASHED, pod.index, reasons.START_ERROR, message)


def _of_exit_code(pod: PodView) -> Cause:
    code, why = pod.exit_code, words(pod)
    if code is not None and code > 128:
        message = f"pod {pod.name} was killed (exit {code}{why and f'; {why}'})"
        return Cause(_CRASHED, pod.index, reasons.KILLED, message)
    how = "without an exit code" if code is None else f"with code {code}"
    message = f"pod {pod.name} exited {how} and left no exit report{why and f' ({why})'}"
    return Cause(_CRASHED, pod.index, reasons.NO_REPORT, message)


def _lost(pod: PodView, plan: MeshPlan) -> Cause:
    how = "deleted" if pod.node_gone else "lost"
    message = f"node {pod.node} of pod {pod.name} was {how}, and with it {ranks_text(pod.index, plan)}"
    return Cause(_DISRUPTED, pod.index, reasons.NODE_LOST, message, counted=False)


def _disrupted(pod: PodView) -> str:
    how = {"Preempting": "preempted", "PreemptionByScheduler": "preempted"}.get(pod.reason or "", "evicted")
    return f"pod {pod.name} was {how}{_because(pod)}"


def _because(pod: PodView) -> str:
    return f" ({_trimmed(pod.message)})" if pod.message else ""


def words(pod: PodView) -> str:
    """Return Kubernetes' reason and message for the end of a pod. Containers without a special reason have Error."""
    reason = None if pod.reason in ("Error", "Completed") else pod.reason
    return ": ".join(part for part in (reason, _trimmed(pod.message or "")) if part)


def _trimmed(text: str) -> str:
    """Shorten a long text in its middle. Runtimes wrap an error many times, and the cause comes last."""
    return text if len(text) <= WORDS_START + WORDS_END else f"{text[:WORDS_START]} ... {text[len(text) - WORDS_END :]}"


def _reported(pod: PodView, plan: MeshPlan) -> str:
    assert pod.report is not None
    details = f": {pod.report.message}" if pod.report.message else ""
    return f"pod {pod.name} ended with {pod.report.reason} on {rank_text(pod.report.rank, plan)}{details}"


def ranks_text(index: int, plan: MeshPlan) -> str:
    """Name the ranks of one pod: `rank 1 (dp_shard 1)`, `8 ranks from rank 8 (dp_shard 1, tp 0)`."""
    per_node = plan.degrees.ranks_per_node
    first = rank_text(index * per_node, plan)
    return first if per_node == 1 else f"{per_node} ranks from {first}"


def rank_text(rank: int, plan: MeshPlan) -> str:
    """Name a global rank with its coordinates on the axes in use: `rank 13 (dp_shard 1, tp 5)`."""
    if not 0 <= rank < plan.world_size:
        return f"rank {rank}"
    places = ", ".join(f"{axis} {at}" for axis, at in plan.coordinates(rank).items() if plan.degree(axis) > 1)
    return f"rank {rank} ({places})" if places else f"rank {rank}"
