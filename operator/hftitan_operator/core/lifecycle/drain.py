"""Deletes the pods of a failed or suspended attempt or of a finished job, and the job itself after its TTL."""

from __future__ import annotations

from collections.abc import Iterable

from hftitan_api.models import HFTitanJob
from hftitan_operator.core import clock
from hftitan_operator.core.lifecycle import status as st
from hftitan_operator.core.lifecycle.classify import ended, finished
from hftitan_operator.core.rendering import scheduling, sizing
from hftitan_operator.core.state import Action, Decision, DeleteJob, DeletePod, Observed, PodView


def drain(job: HFTitanJob, pods: Iterable[PodView], grace: int | None, now: float) -> tuple[list[Action], list[float]]:
    """Delete the pods that are neither finished nor being deleted. Return the actions and the Unix times to look again.

    A pod on an unresponsive node never reports its end. It gets the short grace period of a failed gang, because the
    node may only be disconnected and the trainer may still write. After that the deletion is forced (grace 0). Nothing
    runs on a deleted node: its pods are forced at once. On a responsive node the operator waits for the pod, however
    long it takes, since two attempts must not write to the same checkpoint. If only injected containers still run, they
    get the short grace period too.

    Kueue keeps the quota of a group, and its pods by a finalizer, until all of them have ended. Pods that never ran and
    pods on a lost node do not end, so the operator releases their group.
    """
    actions: list[Action] = []
    wakes: list[float] = []
    endless: set[int] = set()  # attempts with such pods

    def force(pod: PodView) -> None:
        actions.append(DeletePod(pod.name, pod.uid, 0))
        endless.add(pod.attempt)

    for pod in pods:
        if finished(pod):
            if pod.phase == "Pending":
                endless.add(pod.attempt)
            continue
        if pod.node_gone:
            force(pod)
        elif not pod.deleting:
            actions.append(DeletePod(pod.name, pod.uid, sizing.DRAIN_GRACE_SECONDS if ended(pod) else grace))
        elif ended(pod) and not pod.node_lost:
            if (pod.deletion_deadline or now) - now > sizing.DRAIN_GRACE_SECONDS:
                actions.append(DeletePod(pod.name, pod.uid, sizing.DRAIN_GRACE_SECONDS))
        elif pod.node_lost:
            left = (pod.deletion_deadline or now) - now
            if left <= 0:
                force(pod)
            elif left > sizing.DRAIN_GRACE_SECONDS:
                # The API server counts a shorter grace period from the first deletion, and never extends it.
                actions.append(DeletePod(pod.name, pod.uid, sizing.DRAIN_GRACE_SECONDS))
                wakes.append(now + left - sizing.DRAIN_GRACE_SECONDS)
            else:
                wakes.append(now + left)
    return [*actions, *scheduling.released(job, sorted(endless))], wakes


def after_the_end(job: HFTitanJob, observed: Observed, now: float) -> Decision:
    """Clean up a finished job: pods by cleanPodPolicy, the job by its TTL. Its phase does not change any more."""
    policy = job.spec.run_policy
    status = job.status
    ended = clock.maybe_unix(status.completion_time)
    wakes: list[float] = []
    if policy.ttl_seconds_after_finished is not None and ended is not None:
        due = ended + policy.ttl_seconds_after_finished
        if now >= due:
            return Decision((DeleteJob(),), status)
        wakes.append(due)
    actions: list[Action] = []
    if policy.clean_pod_policy != "None":
        actions, forced = drain(job, observed.pods, sizing.DRAIN_GRACE_SECONDS, now)
        wakes += forced
    if policy.clean_pod_policy == "All":
        actions += [DeletePod(p.name, p.uid) for p in observed.pods if finished(p) and not p.deleting]
    mine = [pod for pod in observed.pods if pod.attempt == status.attempt]
    if status.pods is not None and st.counts(mine).active != status.pods.active:
        # Only the number of running pods is updated; succeeded and failed stay as they were at the end.
        status = st.updated(status, pods=status.pods.model_copy(update={"active": st.counts(mine).active, "ready": 0}))
    wake = max(0.0, min(wakes) - now) if wakes else None
    return Decision(tuple(actions), status, (), wake)
