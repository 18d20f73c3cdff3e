"""Projects large API objects to the small values that the stores keep. Pure functions."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from hftitan_api.load import parse_object
from hftitan_api.models import KIND, HFTitanJob, JobSpec, JobStatus, ObjectMeta
from hftitan_api.wire import ExitReport
from hftitan_operator.core import clock
from hftitan_operator.core.naming import LABEL_ATTEMPT, LABEL_JOB, LABEL_NODE_INDEX
from hftitan_operator.core.rendering import scheduling
from hftitan_operator.core.state import PodView

Json = Mapping[str, Any]

MESSAGE_LIMIT = 1024
TRAINER = "trainer"
_DISRUPTIONS = frozenset({"Evicted", "Preempting", "NodeShutdown", "Shutdown", "Terminated"})
"""Values of a pod's status.reason if its node ended it for reasons unrelated to the job."""
_NOT_AT_ADMISSION = frozenset({"DeadlineExceeded", *_DISRUPTIONS})
"""Values of a pod's status.reason that are set later, or that have a better name."""


def owner_uid(obj: Json) -> str | None:
    """Return the UID of the HFTitanJob that controls the object."""
    for owner in obj["metadata"].get("ownerReferences") or ():
        if owner.get("kind") == KIND and owner.get("controller"):
            return str(owner["uid"])
    return None


def job_name(obj: Json) -> str | None:
    """Return the name of the job in the object's label."""
    name = (obj["metadata"].get("labels") or {}).get(LABEL_JOB)
    return None if name is None else str(name)


def pod_view(obj: Json) -> PodView | None:
    """Return the projection of a pod; None for a pod that has the job label but was not rendered by the operator."""
    metadata, status = obj["metadata"], obj.get("status") or {}
    labels = metadata.get("labels") or {}
    try:
        attempt, index = int(labels[LABEL_ATTEMPT]), int(labels[LABEL_NODE_INDEX])
    except (KeyError, ValueError):
        return None
    conditions = {c.get("type"): c for c in status.get("conditions") or ()}
    states = {c.get("name"): c.get("state") or {} for c in status.get("containerStatuses") or ()}
    trainer = states.pop(TRAINER, {})
    ended, running = trainer.get("terminated") or {}, trainer.get("running") or {}
    phase = status.get("phase", "Pending")
    if phase == "Pending" and running:
        phase = "Running"  # an injected container waits, for example for its image
    # If the trainer is the last container to end, the pod's phase and reason follow a moment later, with the cause.
    final = phase in ("Succeeded", "Failed") or not all(other.get("terminated") for other in states.values())
    report = exit_report(ended.get("message"))
    reason, message = _why(status, conditions, trainer, report)
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
        exit_code=ended.get("exitCode") if final else None,
        reason=reason,
        message=message,
        report=report,
        unqueued=scheduling.KUEUE_QUEUE in labels and labels.get(scheduling.KUEUE_MANAGED) != "true",
        disrupted=bool(_disruption(conditions)) or status.get("reason") in _DISRUPTIONS,
        rejected=_rejected(status),
    )


def _rejected(status: Json) -> bool:
    """Return whether the kubelet failed the pod before any container ran (rejectPod in pkg/kubelet/kubelet.go)."""
    containers = [*(status.get("initContainerStatuses") or ()), *(status.get("containerStatuses") or ())]
    ran = any(not (c.get("state") or {}).keys() <= {"waiting"} for c in containers)
    return status.get("phase") == "Failed" and status.get("reason") not in (None, *_NOT_AT_ADMISSION) and not ran


def _why(
    status: Json, conditions: Mapping[Any, Any], trainer: Json, report: ExitReport | None
) -> tuple[str | None, str | None]:
    """Return reason and message why a pod ended or waits: of the pod, the state of its trainer, or its scheduling.

    The message of a terminated container is the exit report, or what the runtime or another program wrote.
    """
    if status.get("reason"):
        return status["reason"], _short(status.get("message"))
    disruption = _disruption(conditions)
    if disruption:
        return disruption.get("reason"), _short(disruption.get("message"))
    ended, waiting = trainer.get("terminated") or {}, trainer.get("waiting") or {}
    if ended:
        return ended.get("reason"), None if report else _short(ended.get("message"))
    if status.get("phase") == "Failed":
        for container in status.get("initContainerStatuses") or ():
            failed = (container.get("state") or {}).get("terminated") or {}
            if failed.get("exitCode"):
                how = f"init container {container.get('name')} exited with code {failed['exitCode']}"
                return failed.get("reason"), _short(": ".join(filter(None, (how, failed.get("message")))))
    if waiting.get("reason"):
        return waiting["reason"], _short(waiting.get("message"))
    scheduled = conditions.get("PodScheduled", {})
    if scheduled.get("status") == "False":
        return scheduled.get("reason"), _short(scheduled.get("message"))
    return None, None


def _disruption(conditions: Mapping[Any, Any]) -> Json:
    """Return the condition with which the cluster ended the pod: Kubernetes' own, or Kueue's, set before a deletion."""
    found = (conditions.get(kind, {}) for kind in ("DisruptionTarget", "TerminationTarget"))
    return next((condition for condition in found if condition.get("status") == "True"), {})


def exit_report(text: str | None) -> ExitReport | None:
    """Return the exit report in a termination message; None for any other text."""
    if not text:
        return None
    try:
        return ExitReport.model_validate_json(text)
    except ValueError:
        return None


def node_ready(obj: Json) -> bool:
    """Return False if the control plane reports the node as not ready. A new node without the condition is ready."""
    conditions = (obj.get("status") or {}).get("conditions") or ()
    ready = next((c for c in conditions if c.get("type") == "Ready"), None)
    return ready is None or ready.get("status") == "True"


# --- jobs ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class JobView:
    """A parsed job, or the errors of a job that cannot be parsed."""

    job: HFTitanJob
    problems: tuple[str, ...] = ()
    """Parse errors of the spec, one for each field. `job` then has its identity, its status and a placeholder spec."""
    stale_status: tuple[str, ...] = ()
    """Fields of a status that cannot be parsed; the next status write removes them."""


def job_view(obj: Json) -> JobView:
    """Parse any stored job, also one that an older schema admitted. Never raises."""
    try:
        status = JobStatus.model_validate(obj.get("status") or {}, strict=True, by_alias=True, by_name=False)
        stale: tuple[str, ...] = ()
    except ValueError:
        # The status is damaged. It is discarded and written again from the observed state.
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
"""A placeholder spec; no decision reads it."""


def status_patch(old: Json, new: Json) -> dict[str, Any]:
    """Return a merge patch (RFC 7396) from the old to the new status: entire lists, null for removed fields."""
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
    """Return the text in one line of visible characters, because it may come from a container; None for no text.

    A long text is shortened in its middle: the cause of a runtime's error comes last.
    """
    if not text:
        return None
    line = "".join(character for character in " ".join(text.split()) if character.isprintable())
    half = MESSAGE_LIMIT // 2
    return line if len(line) <= MESSAGE_LIMIT else f"{line[:half]}…{line[1 - half :]}"
