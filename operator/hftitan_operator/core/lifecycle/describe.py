"""Messages for users: what a job waits for, why it restarted, how it ended."""

from __future__ import annotations

from collections.abc import Sequence

from hftitan_api.models import HFTitanJob, JobStatus, RestartRecord, RunPolicySpec
from hftitan_operator.core import clock, naming, reasons
from hftitan_operator.core.lifecycle import budget
from hftitan_operator.core.lifecycle import status as st
from hftitan_operator.core.lifecycle.classify import Cause, ended, finished
from hftitan_operator.core.rendering.podcheck import OUTPUT_DIR
from hftitan_operator.core.state import PodView

_ORDINARY_WAITS = frozenset({"ContainerCreating", "PodInitializing", "Pending", "Scheduled"})


def pods(count: int) -> str:
    return f"{count} pod" if count == 1 else f"{count} pods"


def from_step(status: JobStatus) -> str:
    """Name the step from which the next attempt resumes."""
    step = status.checkpoint.step if status.checkpoint else 0
    return f"from step {step}" if step else "from the beginning"


def restarting(status: JobStatus, cause: Cause, used: int, policy: RunPolicySpec) -> str:
    count = f"restart {used} of {policy.max_restarts}" if cause.counted else "does not count against maxRestarts"
    return f"attempt {status.attempt + 1}: restarting {from_step(status)} after {cause.message}; {count}"


def created(status: JobStatus, attempt: int, nodes: int) -> str:
    """Message for a new attempt; `status` is the status before it."""
    message = f"attempt {attempt}: created {pods(nodes)}"
    if status.attempt == 0:
        return message
    why = st.condition(status, reasons.RUNNING)
    after = f" after {why.message}" if why and why.message else ""
    return f"{message}, restarting {from_step(status)}{after}"


def waiting(gang: Sequence[PodView], gatekeeper: str | None = None) -> str | None:
    """Say what a complete gang waits for, or None if all pods run. `gatekeeper` names what holds gated pods."""
    pending = [pod for pod in gang if pod.phase != "Running" and not ended(pod)]
    if not pending:
        return None
    # Kubernetes' scheduler writes the cause to one pod of a gang, and only "pod group is ..." to the others.
    pending.sort(key=lambda pod: (pod.message or "").startswith("pod group"))
    troubled = next((pod for pod in pending if pod.reason and pod.reason not in _ORDINARY_WAITS), None)
    if troubled is None:
        return f"waiting for {len(pending)} of {pods(len(gang))} to start"
    if troubled.reason == "SchedulingGated" and gatekeeper:
        return f"waiting for {gatekeeper}"
    details = f": {troubled.message}" if troubled.message else ""
    if troubled.reason in ("Unschedulable", "SchedulingGated"):
        return f"pod {troubled.name} is not scheduled ({troubled.reason}){details}"
    return f"pod {troubled.name} waits ({troubled.reason}){details}"


def unqueued(namespace: str, queue: str | None) -> str:
    return (
        f"the pods do not wait in queue {queue}: Kueue does not manage pods in namespace {namespace}; check Kueue's "
        "pod integration and managedJobsNamespaceSelector"
    )


def doing(status: JobStatus, gang: Sequence[PodView], *, blind: bool) -> str:
    """Message for a gang whose pods all run. `blind`: the first pod is ready but the operator cannot reach it."""
    leaving = next((pod.name for pod in gang if pod.deleting and not finished(pod)), None)
    if leaving:
        return f"pod {leaving} is being deleted; waiting until it is gone"
    if blind:
        return (
            f"pod {gang[0].name} is ready, but the operator cannot reach its /progress: steps are not shown and hangs "
            "are not detected; check that the NetworkPolicy allows it"
        )
    return "training" if status.phase == "Running" else "starting the trainer"


def suspended(status: JobStatus, live: int) -> str:
    if live:
        return f"suspended; waiting for {pods(live)} to save and exit"
    return f"suspended; will resume {from_step(status)}"


def success(status: JobStatus, job: HFTitanJob) -> str:
    message, path = f"finished {job.spec.training.steps} steps", status.export_path
    if not path:
        return message
    volume, inside = job.spec.checkpoint.volume, path.removeprefix(f"{OUTPUT_DIR}/")
    if volume is None or inside == path:  # a local run, or scratch space
        return f"{message}; the model is in {path}"
    return f"{message}; the model is in {naming.output_folder(job)}/{inside} of claim {volume}"


def no_progress(history: Sequence[RestartRecord], cause: Cause) -> str:
    best = max(record.step for record in history)
    where = f"the newest is {best}" if best else "no step was finished"
    return (
        f"{budget.NO_PROGRESS_ATTEMPTS} attempts in a row finished no new step ({where}); last failure: {cause.message}"
    )


def exhausted(policy: RunPolicySpec, cause: Cause) -> str:
    most, window = policy.max_restarts, policy.restart_window_seconds
    if most == 0:
        return f"{cause.message}; spec.runPolicy.maxRestarts is 0"
    within = f" within {clock.duration(window)}" if window else ""
    return f"{cause.message}; all {most} restarts{within} are used (spec.runPolicy.maxRestarts)"
