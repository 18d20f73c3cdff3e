"""Projects large API objects to the small values that are kept. Pure functions."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from hftitan_api.load import parse_object
from hftitan_api.models import KIND, HFTitanJob, JobSpec, JobStatus, ObjectMeta
from hftitan_api.wire import ExitReport
from hftitan_operator.core import clock, scheduling
from hftitan_operator.core.naming import LABEL_ATTEMPT, LABEL_JOB, LABEL_NODE_INDEX
from hftitan_operator.core.state import PodView

Json = Mapping[str, Any]

MESSAGE_LIMIT = 1024
TRAINER = "trainer"
_DISRUPTIONS = frozenset({"Evicted", "Preempting", "NodeShutdown", "Shutdown", "Terminated"})
"""Words in status.reason of a pod that its node ended for reasons of its own."""


def owner_uid(obj: Json) -> str | None:
    """The uid of the HFTitanJob that controls the object."""
    for owner in obj["metadata"].get("ownerReferences") or ():
        if owner.get("kind") == KIND and owner.get("controller"):
            return str(owner["uid"])
    return None


def job_name(obj: Json) -> str | None:
    """The job an object belongs to, by its label."""
    name = (obj["metadata"].get("labels") or {}).get(LABEL_JOB)
    return None if name is None else str(name)


def pod_view(obj: Json) -> PodView | None:
    """The projection of a pod; None for one that carries our label but was not rendered by us."""
    metadata, status = obj["metadata"], obj.get("status") or {}
    labels = metadata.get("labels") or {}
    try:
        attempt, index = int(labels[LABEL_ATTEMPT]), int(labels[LABEL_NODE_INDEX])
    except (KeyError, ValueError):
        return None
    conditions = {c.get("type"): c for c in status.get("conditions") or ()}
    container: Json = next((c for c in status.get("containerStatuses") or () if c.get("name") == TRAINER), {})
    state = container.get("state") or {}
    ended, running = state.get("terminated") or {}, state.get("running") or {}
    reason, message = _why(status, conditions, state)
    disruption = _disruption(conditions)
    phase = status.get("phase", "Pending")
    return PodView(
        name=metadata["name"],
        uid=metadata["uid"],
        attempt=attempt,
        index=index,
        phase=phase if phase in ("Pending", "Running", "Succeeded", "Failed") else "Unknown",
        ready=conditions.get("Ready", {}).get("status") == "True",
        deleting="deletionTimestamp" in metadata,
        deletion_deadline=_time(metadata.get("deletionTimestamp")),
        node=(obj.get("spec") or {}).get("nodeName"),
        address=status.get("podIP"),
        created_at=_time(metadata.get("creationTimestamp")),
        started_at=_time(running.get("startedAt") or ended.get("startedAt")),
        exit_code=ended.get("exitCode"),
        reason=reason,
        message=message,
        report=exit_report(ended.get("message")),
        unqueued=scheduling.KUEUE_QUEUE in labels and labels.get(scheduling.KUEUE_MANAGED) != "true",
        disrupted=bool(disruption) or status.get("reason") in _DISRUPTIONS,
    )


def _why(status: Json, conditions: Mapping[Any, Any], state: Json) -> tuple[str | None, str | None]:
    """Kubernetes' word and sentence for an end or a wait: of the pod, its container, its scheduling, in this order."""
    if status.get("reason"):
        return status["reason"], _short(status.get("message"))
    disruption = _disruption(conditions)
    if disruption:
        return disruption.get("reason"), _short(disruption.get("message"))
    for kind in ("terminated", "waiting"):
        said = state.get(kind) or {}
        if said.get("reason"):
            # A terminated container's message is the exit report, kept apart.
            return said["reason"], _short(said.get("message")) if kind == "waiting" else None
    scheduled = conditions.get("PodScheduled", {})
    if scheduled.get("status") == "False":
        return scheduled.get("reason"), _short(scheduled.get("message"))
    return None, None


def _disruption(conditions: Mapping[Any, Any]) -> Json:
    """Why the cluster ended the pod: Kubernetes' own condition, or Kueue's, which it sets before it deletes the pod."""
    found = (conditions.get(kind, {}) for kind in ("DisruptionTarget", "TerminationTarget"))
    return next((condition for condition in found if condition.get("status") == "True"), {})


def exit_report(text: str | None) -> ExitReport | None:
    """The exit report in a termination message; None when it is anything else."""
    if not text:
        return None
    try:
        return ExitReport.model_validate_json(text)
    except ValueError:
        return None


def node_ready(obj: Json) -> bool:
    """False once the control plane says that the node does not answer; an unknown state of a new node is no loss."""
    conditions = (obj.get("status") or {}).get("conditions") or ()
    ready = next((c for c in conditions if c.get("type") == "Ready"), None)
    return ready is None or ready.get("status") == "True"


# --- jobs ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class JobView:
    """A job as the API server holds it: readable, or with the reasons why not."""

    job: HFTitanJob
    problems: tuple[str, ...] = ()
    """Why the spec cannot be read, field by field; `job` then has the right identity and status, and an empty spec."""
    stale_status: tuple[str, ...] = ()
    """Fields of a status that could not be read: to be removed when the next one is written."""


def job_view(obj: Json) -> JobView:
    """Reads whatever an API server may hold, also what was written past an older schema. Never raises."""
    try:
        status = JobStatus.model_validate(obj.get("status") or {}, strict=True, by_alias=True, by_name=False)
        stale: tuple[str, ...] = ()
    except ValueError:
        # Somebody damaged it. It is written anew from what is seen; what was in it goes.
        status, stale = JobStatus(), tuple(obj["status"]) if isinstance(obj["status"], Mapping) else ()
    read = parse_object({key: value for key, value in obj.items() if key != "status"})
    if read.job is not None:
        return JobView(read.job.model_copy(update={"status": status}), (), stale)
    identity = {k: v for k, v in obj["metadata"].items() if k not in ("labels", "annotations")}
    job = HFTitanJob(metadata=ObjectMeta.model_validate(identity), spec=_UNREADABLE, status=status)
    return JobView(job, tuple(str(problem) for problem in read.problems), stale)


_UNREADABLE = JobSpec.model_validate(
    {"model": {"name": "unreadable"}, "dataset": {"name": "unreadable"}, "training": {"steps": 1}}
)
"""Stands where a spec should be; no decision looks into it."""


def status_patch(old: Json, new: Json) -> dict[str, Any]:
    """A merge patch (RFC 7396) from one status to the other: lists as a whole, null for what goes."""
    patch: dict[str, Any] = {key: None for key in old if key not in new}
    for key, value in new.items():
        before = old.get(key)
        if value == before:
            continue
        patch[key] = status_patch(before, value) if isinstance(value, dict) and isinstance(before, dict) else value
    return patch


def _time(text: str | None) -> float | None:
    return clock.maybe_unix(text)


def _short(text: str | None) -> str | None:
    return text if text is None or len(text) <= MESSAGE_LIMIT else text[: MESSAGE_LIMIT - 1] + "…"
