"""Ends pods: those of a failed or suspended attempt and those of a finished job. Then deletes the job itself."""

from __future__ import annotations

from collections.abc import Iterable

from hftitan_api.models import HFTitanJob
from hftitan_operator.core import clock, sizing
from hftitan_operator.core import status as st
from hftitan_operator.core.classify import finished
from hftitan_operator.core.state import Action, Decision, DeleteJob, DeletePod, Observed, PodView


def drain(pods: Iterable[PodView], grace: int | None, now: float) -> tuple[list[Action], list[float]]:
    """Deletes what is neither finished nor being deleted; returns the actions and the Unix times to look again.

    A pod on a lost node never reports its end: it gets the short grace of a broken gang, whatever its own was, and when
    that is over it is forced (grace 0), in case the node is only cut off and its trainer is still writing. On a node
    that was deleted nothing runs: forced at once. A pod that takes long on a living node is waited for, since two
    attempts must not write one checkpoint.
    """
    actions: list[Action] = []
    wakes: list[float] = []
    for pod in pods:
        if finished(pod):
            continue
        if pod.node_gone:
            actions.append(DeletePod(pod.name, pod.uid, 0))
        elif not pod.deleting:
            actions.append(DeletePod(pod.name, pod.uid, grace))
        elif pod.node_lost:
            left = (pod.deletion_deadline or now) - now
            if left <= 0:
                actions.append(DeletePod(pod.name, pod.uid, 0))
            elif left > sizing.DRAIN_GRACE_SECONDS:
                # The API server counts the shorter grace from the first deletion, and only ever shortens it.
                actions.append(DeletePod(pod.name, pod.uid, sizing.DRAIN_GRACE_SECONDS))
                wakes.append(now + left - sizing.DRAIN_GRACE_SECONDS)
            else:
                wakes.append(now + left)
    return actions, wakes


def after_the_end(job: HFTitanJob, observed: Observed, now: float) -> Decision:
    """A finished job: pods by cleanPodPolicy, the job by its TTL. The verdict stands, whatever is seen or edited."""
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
        actions, forced = drain(observed.pods, sizing.DRAIN_GRACE_SECONDS, now)
        wakes += forced
    if policy.clean_pod_policy == "All":
        actions += [DeletePod(p.name, p.uid) for p in observed.pods if finished(p) and not p.deleting]
    mine = [pod for pod in observed.pods if pod.attempt == status.attempt]
    if status.pods is not None and st.counts(mine).active != status.pods.active:
        # How many still run is worth knowing; how many had succeeded or failed at the end is kept.
        status = st.updated(status, pods=status.pods.model_copy(update={"active": st.counts(mine).active, "ready": 0}))
    wake = max(0.0, min(wakes) - now) if wakes else None
    return Decision(tuple(actions), status, (), wake)
