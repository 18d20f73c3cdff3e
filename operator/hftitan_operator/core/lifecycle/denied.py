"""Handles a decision whose objects the cluster rejected, or whose kinds it does not serve."""

from __future__ import annotations

from hftitan_api.models import HFTitanJob
from hftitan_operator.core import reasons
from hftitan_operator.core.lifecycle import status as st
from hftitan_operator.core.lifecycle.draft import Draft
from hftitan_operator.core.rendering import scheduling
from hftitan_operator.core.state import Decision

RECHECK_SECONDS = 10.0


def denied(job: HFTitanJob, decision: Decision, why: str, now: float) -> Decision:
    """Return the decision's status with the reason of the rejection, and no actions. The pass is retried later, because
    quotas change and names become available.

    `job` has the status that was last written. The event is emitted once for each message, not at every retry.
    """
    message = f"the cluster rejected an object of attempt {decision.status.attempt}: {why}"[: st.MESSAGE_LIMIT]
    draft = Draft(job, now, decision.status)
    before = st.condition(job.status, reasons.PODS_CREATED)
    draft.condition(reasons.PODS_CREATED, "False", reasons.DENIED, message)
    draft.phase("Pending", message)
    if before is None or before.message != message:
        draft.event(reasons.DENIED, message, warning=True)
    draft.wakes.append(now + RECHECK_SECONDS)
    return draft.decision()


def unserved(job: HFTitanJob, decision: Decision, why: str, now: float) -> Decision:
    """Reject a job whose gang scheduler's API the cluster does not serve. A job that already had pods waits instead,
    because the API may be missing only during an upgrade of the scheduler."""
    if job.status.attempt:
        return denied(job, decision, why, now)
    return Draft(job, now, st.first_seen(job, now)).reject(reasons.NO_GANG_SCHEDULER, scheduling.absent(job))
