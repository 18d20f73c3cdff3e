"""Computes the status from an observation: conditions, pod counts, progress, checkpoint, goodput. No decisions."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, Literal

from hftitan_api.mesh import MeshPlan
from hftitan_api.models import CheckpointStatus, Condition, HFTitanJob, JobStatus, PodCounts, ProgressStatus
from hftitan_api.wire import Progress
from hftitan_operator.core import clock, reasons
from hftitan_operator.core.lifecycle.classify import ended, outcome
from hftitan_operator.core.state import PodView

Truth = Literal["True", "False", "Unknown"]
MESSAGE_LIMIT = 4096
"""Maximum length of a message in the status; a pod's message may be long."""
EVENT_LIMIT = 1024
"""Maximum length of an event's message; the API server rejects longer ones."""
SAVE_EVENT_SECONDS = 600
"""Minimum time between CheckpointSaved events: a job may save every minute, and events are kept for an hour."""

_INITIAL: tuple[tuple[str, Truth, str, str], ...] = (
    (reasons.ACCEPTED, "Unknown", reasons.NOT_STARTED, ""),
    (reasons.PODS_CREATED, "False", reasons.NOT_STARTED, ""),
    (reasons.RUNNING, "False", reasons.NOT_STARTED, ""),
    (reasons.SUSPENDED, "False", reasons.NOT_SUSPENDED, ""),
    (reasons.SUCCEEDED, "False", reasons.NOT_FINISHED, ""),
    (reasons.FAILED, "False", reasons.NOT_FINISHED, ""),
)


def updated(status: JobStatus, **changes: Any) -> JobStatus:
    """Return a copy with other values; the original does not change."""
    return status.model_copy(update=changes)


def condition(status: JobStatus, kind: str) -> Condition | None:
    return next((c for c in status.conditions if c.type == kind), None)


def is_true(status: JobStatus, kind: str) -> bool:
    found = condition(status, kind)
    return found is not None and found.status == "True"


def with_condition(
    status: JobStatus, kind: str, truth: Truth, reason: str, message: str, *, generation: int, now: float
) -> JobStatus:
    """Return the status with one condition set. lastTransitionTime changes only with the condition's `status`."""
    old = condition(status, kind)
    changed = old is None or old.status != truth
    new = Condition(
        type=kind,
        status=truth,
        observed_generation=generation,
        last_transition_time=clock.rfc3339(now) if changed or old is None else old.last_transition_time,
        reason=reason,
        message=message[:MESSAGE_LIMIT],
    )
    if old is None:
        return updated(status, conditions=[*status.conditions, new])
    return updated(status, conditions=[new if c.type == kind else c for c in status.conditions])


def first_seen(job: HFTitanJob, now: float) -> JobStatus:
    """Return the status with all conditions present and the current generation."""
    status, generation = job.status, job.metadata.generation
    for kind, truth, reason, message in _INITIAL:
        if condition(status, kind) is None:
            status = with_condition(status, kind, truth, reason, message, generation=generation, now=now)
    if any(c.observed_generation != generation for c in status.conditions):
        conditions = [c.model_copy(update={"observed_generation": generation}) for c in status.conditions]
        status = updated(status, conditions=conditions)
    return updated(status, observed_generation=generation)


def counts(pods: Iterable[PodView]) -> PodCounts:
    pods = list(pods)
    return PodCounts(
        active=sum(not ended(pod) for pod in pods),
        ready=sum(pod.ready and not ended(pod) for pod in pods),
        succeeded=sum(outcome(pod) == "Succeeded" for pod in pods),
        failed=sum(outcome(pod) == "Failed" for pod in pods),
    )


def active_seconds(status: JobStatus, at: float) -> float:
    """Return the seconds up to `at` (Unix time) in which the job was not suspended, for activeDeadlineSeconds and
    goodput."""
    since = clock.maybe_unix(status.active_since)
    return status.active_seconds + (max(0.0, at - since) if since is not None else 0.0)


def stopped_clock(status: JobStatus, now: float) -> JobStatus:
    """Return the status with the active time stopped, for a suspended or finished job."""
    if status.active_since is None:
        return status
    return updated(status, active_seconds=round(active_seconds(status, now), 1), active_since=None)


def newest_step(status: JobStatus, pods: Sequence[PodView], progress: Progress | None) -> int:
    """Return the newest step that the attempt finished, from progress, exit reports and earlier passes."""
    steps = [pod.report.step for pod in pods if pod.report is not None]
    if progress is not None:
        steps.append(progress.step)
    if status.progress is not None and status.attempt_start_time is not None:
        moved = clock.maybe_unix(status.progress.updated)
        if moved is not None and moved >= clock.unix(status.attempt_start_time):
            steps.append(status.progress.step)
    return max(steps, default=0)


def with_observation(
    status: JobStatus,
    pods: Sequence[PodView],
    progress: Progress | None,
    plan: MeshPlan,
    departed: PodView | None = None,
) -> JobStatus:
    """Return the status with observed mesh, pod counts, progress, checkpoint and results of the current attempt.

    `departed` is a deleted pod of the attempt: only its exit report counts.
    """
    status = updated(status, mesh=plan.summary, world_size=plan.world_size, pods=counts(pods))
    reports = [pod.report for pod in (*pods, departed) if pod is not None and pod.report is not None]
    # A report is newer than the last poll of /progress; a short job may end before the first poll.
    last = [r.progress for r in reports if r.progress is not None and r.progress.attempt == status.attempt]
    latest = max((p for p in (progress, *last) if p is not None), key=lambda p: (p.step, p.updated), default=None)
    if latest is not None:
        status = _with_progress(status, latest)
    for report in reports:
        newest = status.checkpoint.step if status.checkpoint else -1
        if report.checkpoint_step is not None and report.checkpoint_step > newest:
            status = updated(status, checkpoint=CheckpointStatus(step=report.checkpoint_step))
        if report.export_path:
            status = updated(status, export_path=report.export_path)
        if report.model_revision:
            status = updated(status, model_revision=report.model_revision)
        shown = status.progress or ProgressStatus(steps=report.step)
        if report.reason == "Completed":
            step = max(report.step, shown.step)  # a report of another node has no progress
            status = updated(status, progress=shown.model_copy(update={"step": step, "eta": None}))
    return status


def needs_event(before: CheckpointStatus | None, after: CheckpointStatus | None, resumed_from: int) -> bool:
    """Return whether a checkpoint gets an event: the first one, then one in each ten-minute slot of the clock.

    The result depends only on the old and the new status, so no status gets two events. The checkpoint from which the
    attempt resumed gets none: an earlier attempt saved it.
    """
    if after is None or after.step <= max(resumed_from, before.step if before else 0):
        return False
    return before is None or _slot(after) not in (None, _slot(before))


def _slot(checkpoint: CheckpointStatus) -> float | None:
    at = clock.maybe_unix(checkpoint.time)
    return None if at is None else at // SAVE_EVENT_SECONDS


def _with_progress(status: JobStatus, progress: Progress) -> JobStatus:
    shown = ProgressStatus(
        step=progress.step,
        steps=progress.steps,
        loss=_rounded(progress.loss),
        tokens_per_second=_rounded(progress.tokens_per_second),
        mfu=_rounded(progress.mfu),
        grad_norm=_rounded(progress.grad_norm),
        eta=None if progress.eta_seconds is None else clock.duration(progress.eta_seconds),
        updated=clock.rfc3339(progress.updated),
    )
    status = updated(status, goodput=_goodput(status, progress), progress=shown)
    if progress.checkpoint_step is not None:
        time = None if progress.checkpoint_time is None else clock.rfc3339(progress.checkpoint_time)
        status = updated(status, checkpoint=CheckpointStatus(step=progress.checkpoint_step, time=time))
    if progress.export_path:
        status = updated(status, export_path=progress.export_path)
    if progress.model_revision:
        status = updated(status, model_revision=progress.model_revision)
    return status


def _rounded(value: float | None) -> float | None:
    """Return the value with five significant digits, for readers of `kubectl get`. /progress has all digits."""
    return None if value is None else float(f"{value:.5g}")


def _goodput(status: JobStatus, progress: Progress) -> float | None:
    """Return newest step x seconds per step / active seconds at that step.

    A repeated step counts once, so restarts, starts and saves lower the goodput. None if the job did not start from
    step 0: its active time does not include the steps of an earlier job. Measured at the newest step, not now, so that
    the status does not change while no step finishes.
    """
    if status.goodput is None and progress.resumed_from:
        return None
    if progress.step_seconds is None or status.active_since is None:
        return status.goodput
    active = active_seconds(status, progress.updated)
    if active <= 0:
        return status.goodput
    return round(min(1.0, progress.step * progress.step_seconds / active), 3)
