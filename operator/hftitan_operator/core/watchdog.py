"""Time limits of an attempt: a start or a step that takes too long, a pod that never starts."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from hftitan_api.mesh import MeshPlan
from hftitan_api.models import JobStatus, RunPolicySpec
from hftitan_api.wire import Progress
from hftitan_operator.core import classify, clock, reasons
from hftitan_operator.core.classify import Cause
from hftitan_operator.core.state import PodView

STUCK_DELETION_SECONDS = 30
"""After the end of a pod's grace period; from then on one that should be gone is taken as deleted."""


@dataclass(frozen=True, slots=True)
class Timer:
    """At `due` (Unix time) the attempt ends for this cause, unless something moves first."""

    due: float
    cause: Cause


def current(progress: Progress | None, attempt: int) -> Progress | None:
    """The progress when it is this attempt's; a document left over from another one says nothing about this."""
    return progress if progress is not None and progress.attempt == attempt else None


def stepping(progress: Progress | None) -> bool:
    """The first step is finished, so that from now on the steps are watched, not the start."""
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
    """All timers of an attempt. `progress` must be of this attempt or None.

    `blind`: node 0 is ready but we cannot reach it, so its steps are not judged: a NetworkPolicy must not end a healthy
    job. A trainer that hangs so badly that it answers nobody is not ready either.
    """
    for pod in pods:
        if pod.deletion_deadline is not None and not classify.finished(pod):
            yield Timer(pod.deletion_deadline + STUCK_DELETION_SECONDS, classify.missing(pod.name, pod.index))
        if pod.phase == "Pending" and pod.reason in reasons.MAY_START and pod.created_at is not None:
            said = f" ({pod.message})" if pod.message else ""
            message = (
                f"pod {pod.name} could not start for {clock.duration(policy.startup_timeout_seconds)}: "
                f"{pod.reason}{said}"
            )
            cause = Cause(0, pod.index, reasons.POD_CANNOT_START, message, fatal=True)
            yield Timer(pod.created_at + policy.startup_timeout_seconds, cause)
    started = clock.maybe_unix(status.attempt_start_time)
    if started is not None and not blind:
        yield _steps(policy, status, started, pods, progress, plan)


def _steps(
    policy: RunPolicySpec,
    status: JobStatus,
    started: float,
    pods: Sequence[PodView],
    progress: Progress | None,
    plan: MeshPlan,
) -> Timer:
    # What was seen in an earlier pass of this attempt still counts when /progress is silent now; what an earlier
    # attempt left does not, or a healthy restart would be killed for its predecessor's silence.
    seen = (clock.maybe_unix(status.progress.updated) if status.progress else None) or 0.0
    moved = max(started, progress.updated if progress else 0.0, seen)
    if stepping(progress) or (progress is None and seen > started and status.phase == "Running"):
        limit = policy.hang_timeout_seconds
        doing = "no progress report"
        if progress is not None:
            doing = f"{progress.phase} after step {progress.step}"
        message = f"no progress for {clock.duration(limit)} ({doing}{_silent(pods, plan)})"
        return Timer(moved + limit, Cause(0, 0, reasons.HUNG, message))
    # Counted anew from each phase (loading a large checkpoint, then the first step) and from each restart of the
    # workers in place: what moves is not dead.
    limit = policy.startup_timeout_seconds
    doing = progress.phase if progress is not None else "no progress report"
    message = f"no step finished within {clock.duration(limit)} ({doing}{_silent(pods, plan)})"
    return Timer(moved + limit, Cause(0, 0, reasons.STARTUP_TIMEOUT, message))


def _silent(pods: Sequence[PodView], plan: MeshPlan) -> str:
    """Names the pods that do not answer while others do, and where their first rank sits on the mesh."""
    silent = [pod for pod in pods if not pod.ready and not classify.finished(pod)]
    if not silent or len(silent) == len(pods):
        return ""
    first = silent[0]
    more = f" and {len(silent) - 1} more" if len(silent) > 1 else ""
    return f"; unresponsive: pod {first.name}, {classify.ranks_text(first.index, plan)}{more}"
