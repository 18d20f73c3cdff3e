"""Computes the time limits of an attempt: for its start, for its steps, and for pods that do not start."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from hftitan_api.mesh import MeshPlan
from hftitan_api.models import JobStatus, RunPolicySpec
from hftitan_api.wire import Progress
from hftitan_operator.core import clock, reasons
from hftitan_operator.core.lifecycle import classify
from hftitan_operator.core.lifecycle.classify import Cause
from hftitan_operator.core.lifecycle.starts import field_at_fault
from hftitan_operator.core.state import PodView

STUCK_DELETION_SECONDS = 30
"""Time after the end of a pod's grace period at which a pod that still exists counts as deleted."""


@dataclass(frozen=True, slots=True)
class Timer:
    """A limit: at `due` (Unix time) the attempt ends with this cause."""

    due: float
    cause: Cause


def current(progress: Progress | None, attempt: int) -> Progress | None:
    """Return the progress if it is of this attempt, else None."""
    return progress if progress is not None and progress.attempt == attempt else None


def stepping(progress: Progress | None) -> bool:
    """Return whether the first step is finished: from then on the hang timeout applies, not the startup timeout."""
    if progress is None or progress.phase in ("starting", "loading"):
        return False
    return progress.phase != "training" or progress.step > (progress.resumed_from or 0)


def timers(
    policy: RunPolicySpec,
    status: JobStatus,
    pods: Sequence[PodView],
    progress: Progress | None,
    plan: MeshPlan,
    *,
    blind: bool = False,
) -> Iterator[Timer]:
    """Yield all timers of an attempt. `progress` must be of this attempt or None.

    `blind`: node 0 is ready but the operator cannot reach it, so no timer watches its steps: a NetworkPolicy must not
    end a healthy job. A trainer that does not answer the kubelet is not ready, and its timers run.
    """
    for pod in pods:
        if pod.deletion_deadline is not None and not classify.ended(pod):
            yield Timer(pod.deletion_deadline + STUCK_DELETION_SECONDS, classify.missing(pod.name, pod.index))
        if pod.phase == "Pending" and pod.reason in reasons.MAY_START and pod.created_at is not None:
            yield Timer(pod.created_at + policy.startup_timeout_seconds, _not_started(policy, pod))
    started = clock.maybe_unix(status.attempt_start_time)
    if started is not None and not blind:
        yield _steps(policy, status, started, pods, progress, plan)


def _not_started(policy: RunPolicySpec, pod: PodView) -> Cause:
    limit = clock.duration(policy.startup_timeout_seconds)
    if pod.reason in reasons.RUNTIME_ERRORS and field_at_fault(pod.message) is None:
        message = f"node {pod.node} could not start pod {pod.name} for {limit} ({classify.words(pod)})"
        return classify.node_error(pod, message)
    details = f" ({pod.message})" if pod.message else ""
    message = f"pod {pod.name} could not start for {limit}: {pod.reason}{details}"
    return Cause(0, pod.index, reasons.POD_CANNOT_START, message, fatal=True)


def _steps(
    policy: RunPolicySpec,
    status: JobStatus,
    started: float,
    pods: Sequence[PodView],
    progress: Progress | None,
    plan: MeshPlan,
) -> Timer:
    # Progress from an earlier pass of this attempt counts if /progress does not answer now. Progress of an earlier
    # attempt does not count: it would end a healthy restart.
    seen = (clock.maybe_unix(status.progress.updated) if status.progress else None) or 0.0
    moved = max(started, progress.updated if progress else 0.0, seen)
    if stepping(progress) or (progress is None and seen > started and status.phase == "Running"):
        limit = policy.hang_timeout_seconds
        doing = "no progress report"
        if progress is not None:
            doing = f"{progress.phase} after step {progress.step}"
        message = f"no progress for {clock.duration(limit)} ({doing}{_unresponsive(pods, plan)})"
        return Timer(moved + limit, Cause(0, 0, reasons.HUNG, message))
    # The limit starts again with each phase (loading a large checkpoint, then the first step) and with each in-place
    # restart of the workers, because these are signs of life.
    limit = policy.startup_timeout_seconds
    doing = progress.phase if progress is not None else "no progress report"
    message = f"no step finished within {clock.duration(limit)} ({doing}{_unresponsive(pods, plan)})"
    return Timer(moved + limit, Cause(0, 0, reasons.STARTUP_TIMEOUT, message))


def _unresponsive(pods: Sequence[PodView], plan: MeshPlan) -> str:
    """Name the pods that are not ready while others are, with the mesh coordinates of the first one's first rank."""
    unready = [pod for pod in pods if not pod.ready and not classify.ended(pod)]
    if not unready or len(unready) == len(pods):
        return ""
    first = unready[0]
    more = f" and {len(unready) - 1} more" if len(unready) > 1 else ""
    return f"; unresponsive: pod {first.name}, {classify.ranks_text(first.index, plan)}{more}"
