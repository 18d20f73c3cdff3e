"""A model of a cluster in plain Python: it executes the core's actions and injects failures between them.

Time is a number. Every pass checks the invariants, so that a test only has to drive the model.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

from core_builders import T0, edited

from hftitan_api.models import TERMINAL, HFTitanJob
from hftitan_api.wire import ExitReport, Progress
from hftitan_operator.core import reasons
from hftitan_operator.core.lifecycle import status as st
from hftitan_operator.core.lifecycle.decide import decide
from hftitan_operator.core.rendering import sizing
from hftitan_operator.core.state import Apply, Decision, DeleteJob, DeletePod, DeletePodGroup, Observed, PodView

LIMIT = 12
ENDS = ("UserError", "NonFiniteLoss", "Preempted", "InternalError", "NetworkError", "OutOfMemory", None)


def live(pod: PodView) -> bool:
    """Return whether the pod runs or may start: a pod that is deleted before it has a node never starts."""
    return pod.phase not in ("Succeeded", "Failed") and not (pod.deleting and pod.node is None)


def unresponsive(pod: PodView) -> bool:
    return pod.node_lost or pod.node_gone


@dataclass
class Cluster:
    job: HFTitanJob
    now: float = T0
    pods: dict[str, PodView] = field(default_factory=dict)
    service: bool = False
    config: bool = False
    groups: set[str] = field(default_factory=set)
    """PodGroups, by name."""
    progress: Progress | None = None
    gone: bool = False
    uids: int = 0
    sealed: set[int] = field(default_factory=set)
    """Attempts whose status has the condition PodsCreated: their gangs were complete."""
    deleted: dict[str, float] = field(default_factory=dict)
    """Time of the first deletion of each pod, by UID."""
    log: list[str] = field(default_factory=list)

    # --- the operator -----------------------------------------------------------------------------------------

    def observe(self) -> Observed:
        return Observed(tuple(self.pods.values()), self.service, self.config, self.progress)

    def pass_(self, crash_after: int | None = None) -> Decision:
        """observe -> decide -> apply -> write status; the operator crashes after `crash_after` actions."""
        observed = self.observe()
        decision = decide(self.job, observed, self.now)
        self.check(decision, observed)
        self.log.append(
            f"{self.now - T0:.0f}: {decision.status.phase} {decision.status.message} {len(decision.actions)}"
        )
        for count, action in enumerate(decision.actions):
            if crash_after == count:
                return decision
            self.apply(action)
        if crash_after is None:
            self.write(decision)
        return decision

    def write(self, decision: Decision) -> None:
        before = self.job.status
        assert decision.status.attempt >= before.attempt, "attempts only increase"
        self.job = self.job.model_copy(update={"status": decision.status})
        if st.is_true(decision.status, reasons.PODS_CREATED):
            self.sealed.add(decision.status.attempt)

    def apply(self, action: Any) -> None:
        match action:
            case Apply(manifest={"kind": "Service"}):
                self.service = True
            case Apply(manifest={"kind": "ConfigMap"}):
                self.config = True
            case Apply(manifest={"kind": "PodGroup", "metadata": {"name": name}}):
                self.groups.add(name)
            case DeletePodGroup(name=name):
                self.groups.discard(name)
            case Apply(manifest={"kind": "Pod"} as manifest):
                self.create(manifest)
            case DeletePod(name=name, uid=uid, grace_seconds=grace):
                if name in self.pods and self.pods[name].uid == uid:
                    self.delete(name, grace)
            case DeleteJob():
                self.gone = True
            case _:
                raise AssertionError(action)

    def create(self, manifest: dict[str, Any]) -> None:
        name = manifest["metadata"]["name"]
        labels = manifest["metadata"]["labels"]
        attempt, index = int(labels["hftitan.io/attempt"]), int(labels["hftitan.io/node-index"])
        if name in self.pods:
            return
        assert self.service, "pods need their Service first"
        assert self.config, "pods need their ConfigMap first"
        group = manifest["metadata"].get("annotations", {}).get("scheduling.k8s.io/group-name")
        assert group is None or group in self.groups, "pods need their PodGroup first"
        assert not self.job.spec.run_policy.suspend, "pods are created for a suspended job"
        assert attempt not in self.sealed, f"pod {name} is created a second time"
        others = {p.name for p in self.pods.values() if live(p) and p.attempt != attempt}
        assert not others, f"{name} is created while {others} may still run"
        self.uids += 1
        self.pods[name] = PodView(name, f"u{self.uids}", attempt, index, created_at=self.now)

    def delete(self, name: str, grace: int | None = None, **changes: Any) -> None:
        pod = self.pods[name]
        if grace == 0 or not live(pod):
            assert grace != 0 or unresponsive(pod), "forced deletion on a responsive node"
            del self.pods[name]
            return
        seconds = sizing.grace_seconds(self.job.spec.checkpoint) if grace is None else grace
        # As in the API server: the grace period starts at the first deletion; a later deletion can only shorten it.
        deadline = self.deleted.setdefault(pod.uid, self.now) + seconds
        if pod.deletion_deadline is not None:
            deadline = min(deadline, pod.deletion_deadline)
        self.pods[name] = replace(pod, deleting=True, deletion_deadline=deadline, **changes)

    # --- invariants -------------------------------------------------------------------------------------------

    def check(self, decision: Decision, observed: Observed) -> None:
        before, after = self.job.status, decision.status
        if before.phase in TERMINAL:
            assert after.phase == before.phase
            assert after.completion_time == before.completion_time
            assert not any(isinstance(action, Apply) for action in decision.actions)
        assert len(after.restart_history) <= 64
        assert {c.type for c in after.conditions} == set(reasons.CONDITION_TYPES)
        assert (after.phase in TERMINAL) == (after.completion_time is not None)
        assert (after.active_since is None) == (after.phase in (*TERMINAL, "Suspended"))
        for number, state in ((reasons.SUCCEEDED, "Succeeded"), (reasons.FAILED, "Failed")):
            assert st.is_true(after, number) == (after.phase == state)
        assert st.is_true(after, reasons.SUSPENDED) == (after.phase == "Suspended") or after.phase in TERMINAL
        # recheck_after 0 means that more must be written. After a few passes the decision is a fixpoint.
        job, current = self.job, decision
        for _ in range(5):
            if current.recheck_after != 0:
                break
            job = job.model_copy(update={"status": current.status})
            current = decide(job, observed, self.now)
        else:
            raise AssertionError(f"not a fixpoint: {current}")
        job = job.model_copy(update={"status": current.status})
        again = decide(job, observed, self.now)
        assert again.status == current.status
        assert again.events == ()
        # PodGroups are deleted once, with the status change, as events are emitted once.
        lasting = tuple(action for action in current.actions if not isinstance(action, DeletePodGroup))
        assert again.actions == lasting
        assert again.recheck_after == current.recheck_after
        # Before recheck_after, the decision does not change with time.
        wait = 86_400.0 if current.recheck_after is None else max(0.0, current.recheck_after - 0.01)
        later = decide(job, observed, self.now + wait)
        assert (later.status, later.actions, later.events) == (current.status, lasting, ())

    # --- kubelets and the control plane -----------------------------------------------------------------------

    def pick(self, number: int, *, alive: bool = True) -> PodView | None:
        choice = sorted((p for p in self.pods.values() if live(p) or not alive), key=lambda p: p.name)
        return choice[number % len(choice)] if choice else None

    def change(self, pod: PodView, **changes: Any) -> None:
        self.pods[pod.name] = replace(pod, **changes)

    def end(self, pod: PodView, reported: str | None, code: int = 1, **changes: Any) -> None:
        """End the container, with an exit report if `reported` is its reason; remove a pod that is being deleted."""
        if unresponsive(pod) or not live(pod):
            return
        if pod.deleting:
            del self.pods[pod.name]
            return
        report = None
        if reported is not None:
            retryable = reported not in ("UserError", "NonFiniteLoss", "Completed")
            step = self.progress.step if self.progress else 0
            report = ExitReport(reason=reported, message="details", retryable=retryable, step=step)  # type: ignore[arg-type]
        phase = "Succeeded" if code == 0 else "Failed"
        self.change(pod, phase=phase, ready=False, exit_code=code, report=report, **changes)

    def kubelet(self) -> None:
        """Start created pods and end pods that are being deleted, except on an unresponsive node."""
        for pod in list(self.pods.values()):
            if pod.deleting and pod.node is None:
                del self.pods[pod.name]  # the finalizer is removed
            elif unresponsive(pod) or not live(pod):
                continue
            elif pod.deleting:
                del self.pods[pod.name]
            elif pod.phase == "Pending":
                self.change(pod, phase="Running", ready=True, started_at=self.now, reason=None, node=f"n{pod.index}")

    def train(self, steps: int) -> None:
        """Finish steps on node 0 of the newest attempt if the whole gang runs."""
        gang = [p for p in self.pods.values() if p.phase == "Running" and not unresponsive(p)]
        if len(gang) < self.job.spec.mesh.nodes:
            return
        attempt = gang[0].attempt
        mine = self.progress is not None and self.progress.attempt == attempt
        step = self.progress.step if mine and self.progress else 0
        self.progress = Progress(attempt=attempt, phase="training", step=step + steps, steps=10_000, updated=self.now)

    def finish(self) -> None:
        """Inject no more failures: complete running pods and call the operator until the job has ended."""
        for _ in range(60):
            for _ in range(LIMIT):
                decision = self.pass_()
                if decision.recheck_after != 0 or self.gone:
                    break
            if self.gone or (self.job.status.phase in TERMINAL and not any(live(p) for p in self.pods.values())):
                return
            if self.job.spec.run_policy.suspend and not any(live(p) for p in self.pods.values()):
                return
            self.kubelet()
            gang = [p for p in self.pods.values() if p.phase == "Running" and not p.deleting and not unresponsive(p)]
            if len(gang) == self.job.spec.mesh.nodes and self.job.status.attempt_start_time:
                for pod in gang:
                    self.end(pod, "Completed", 0)
            for pod in list(self.pods.values()):
                if pod.node_lost and not pod.deleting and live(pod):
                    self.delete(pod.name, 30, disrupted=True)  # the taint manager
            self.now += 35 if decision.recheck_after is None else max(1.0, min(35.0, decision.recheck_after))
        raise AssertionError("the job does not end:\n" + "\n".join(self.log[-40:]))


def play(world: Cluster, name: str, number: int) -> None:
    """Apply one operation by its name; `number` picks the pod or the amount."""
    pod = world.pick(number)
    match name:
        case "pass":
            world.pass_()
        case "crash":
            world.pass_(crash_after=number % 5)
        case "lost_write":
            world.pass_(crash_after=99)
        case "kubelet":
            world.kubelet()
        case "train":
            world.train(number)
        case "tick":
            world.now += number * 5
        case "long_tick":
            world.now += 2000
        case "complete":
            for running in [p for p in world.pods.values() if p.phase == "Running"]:
                world.end(running, "Completed", 0)
        case "suspend" | "resume":
            wanted = name == "suspend"
            if world.job.spec.run_policy.suspend != wanted:
                world.job = edited(world.job, runPolicy={"suspend": wanted})
        case "touch":
            world.job = edited(world.job, runPolicy={"hangTimeoutSeconds": 60 + number})
        case "drop_service":
            world.service = False
        case "drop_config":
            world.config = False
        case "stale_progress":
            if world.progress:
                world.progress = world.progress.model_copy(update={"updated": world.now - 10_000})
        case _ if pod is not None:
            break_pod(world, name, number)


def break_pod(world: Cluster, name: str, number: int) -> None:
    pod = world.pick(number)
    assert pod is not None
    match name:
        case "crash_pod":
            world.end(pod, None, 137)
        case "exit":
            world.end(pod, ENDS[number % len(ENDS)], number % 3)
        case "delete":
            world.delete(pod.name)
        case "vanish":
            del world.pods[pod.name]
        case "evict":
            world.end(pod, None, 143, disrupted=True, reason="Evicted")
        case "node_lost":
            if pod.phase == "Running":
                world.change(pod, node_lost=True, ready=False)
        case "node_back":
            if pod.node_lost and not pod.node_gone:
                world.change(pod, node_lost=False)
        case "node_gone":
            world.change(pod, node_lost=number % 3 > 0, node_gone=True, ready=False)
        case "bad_image":
            if pod.phase == "Pending":
                world.change(pod, reason="ImagePullBackOff" if number % 2 else "InvalidImageName")
