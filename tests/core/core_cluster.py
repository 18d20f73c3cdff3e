"""A model of a cluster in plain Python: it runs the core's actions, and breaks whatever can break in between.

Time is a number. Every pass checks what must hold at any moment, so that a test only has to drive it.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

from core_builders import T0

from hftitan_api.models import TERMINAL, HFTitanJob
from hftitan_api.wire import ExitReport, Progress
from hftitan_operator.core import reasons, sizing
from hftitan_operator.core import status as st
from hftitan_operator.core.decide import decide
from hftitan_operator.core.state import Apply, Decision, DeleteJob, DeletePod, DeletePodGroup, Observed, PodView

LIMIT = 12


def live(pod: PodView) -> bool:
    """It runs, or may come to run: one that is deleted before it has a node gets none any more."""
    return pod.phase not in ("Succeeded", "Failed") and not (pod.deleting and pod.node is None)


def silent(pod: PodView) -> bool:
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
    """Attempts whose gang was seen whole, and that this was written down."""
    deleted: dict[str, float] = field(default_factory=dict)
    """When each pod was first told to go."""
    log: list[str] = field(default_factory=list)

    # --- the operator -----------------------------------------------------------------------------------------

    def observe(self) -> Observed:
        return Observed(tuple(self.pods.values()), self.service, self.config, self.progress)

    def pass_(self, crash_after: int | None = None) -> Decision:
        """observe -> decide -> apply -> write_status; `crash_after` n actions the operator dies."""
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
        assert decision.status.attempt >= before.attempt, "attempts go up"
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
        assert not self.job.spec.run_policy.suspend, "no pods for a suspended job"
        assert attempt not in self.sealed, f"pod {name} is created a second time"
        others = {p.name for p in self.pods.values() if live(p) and p.attempt != attempt}
        assert not others, f"{name} is created while {others} may still run"
        self.uids += 1
        self.pods[name] = PodView(name, f"u{self.uids}", attempt, index, created_at=self.now)

    def delete(self, name: str, grace: int | None = None, **changes: Any) -> None:
        pod = self.pods[name]
        if grace == 0 or not live(pod):
            assert grace != 0 or silent(pod), "force only where nobody answers"
            del self.pods[name]
            return
        seconds = sizing.grace_seconds(self.job.spec.checkpoint) if grace is None else grace
        # As the API server: the first deletion starts the clock, a later one can only shorten the grace.
        deadline = self.deleted.setdefault(pod.uid, self.now) + seconds
        if pod.deletion_deadline is not None:
            deadline = min(deadline, pod.deletion_deadline)
        self.pods[name] = replace(pod, deleting=True, deletion_deadline=deadline, **changes)

    # --- what must always hold --------------------------------------------------------------------------------

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
        # With recheck_after 0 there is more to write down; it takes few passes, and the last one is a fixpoint.
        job, current = self.job, decision
        for _ in range(5):
            if current.recheck_after != 0:
                break
            job = job.model_copy(update={"status": current.status})
            current = decide(job, observed, self.now)
        else:
            raise AssertionError(f"still asks to be called again: {current}")
        job = job.model_copy(update={"status": current.status})
        again = decide(job, observed, self.now)
        assert again.status == current.status
        assert again.events == ()
        # Deleted with the status that says why, once, as events are told.
        lasting = tuple(action for action in current.actions if not isinstance(action, DeletePodGroup))
        assert again.actions == lasting
        assert again.recheck_after == current.recheck_after
        # Time alone changes nothing before recheck_after.
        wait = 86_400.0 if current.recheck_after is None else max(0.0, current.recheck_after - 0.01)
        later = decide(job, observed, self.now + wait)
        assert (later.status, later.actions, later.events) == (current.status, lasting, ())

    # --- the rest of the world --------------------------------------------------------------------------------

    def pick(self, number: int, *, alive: bool = True) -> PodView | None:
        choice = sorted((p for p in self.pods.values() if live(p) or not alive), key=lambda p: p.name)
        return choice[number % len(choice)] if choice else None

    def change(self, pod: PodView, **changes: Any) -> None:
        self.pods[pod.name] = replace(pod, **changes)

    def end(self, pod: PodView, said: str | None, code: int = 1, **changes: Any) -> None:
        """The container ends; a pod that was being deleted is gone with it."""
        if silent(pod) or not live(pod):
            return
        if pod.deleting:
            del self.pods[pod.name]
            return
        report = None
        if said is not None:
            retryable = said not in ("UserError", "NonFiniteLoss", "Completed")
            step = self.progress.step if self.progress else 0
            report = ExitReport(reason=said, message="said so", retryable=retryable, step=step)  # type: ignore[arg-type]
        phase = "Succeeded" if code == 0 else "Failed"
        self.change(pod, phase=phase, ready=False, exit_code=code, report=report, **changes)

    def kubelet(self) -> None:
        """Pods that were created start; those that are being deleted end, unless their node is silent."""
        for pod in list(self.pods.values()):
            if pod.deleting and pod.node is None:
                del self.pods[pod.name]  # at last: a finalizer had kept it
            elif silent(pod) or not live(pod):
                continue
            elif pod.deleting:
                del self.pods[pod.name]
            elif pod.phase == "Pending":
                self.change(pod, phase="Running", ready=True, started_at=self.now, reason=None, node=f"n{pod.index}")

    def train(self, steps: int) -> None:
        """Node 0 of the newest attempt finishes steps, when the whole gang runs."""
        gang = [p for p in self.pods.values() if p.phase == "Running" and not silent(p)]
        if len(gang) < self.job.spec.mesh.nodes:
            return
        attempt = gang[0].attempt
        mine = self.progress is not None and self.progress.attempt == attempt
        step = self.progress.step if mine and self.progress else 0
        self.progress = Progress(attempt=attempt, phase="training", step=step + steps, steps=10_000, updated=self.now)

    def finish(self) -> None:
        """A friendly world from here on: what runs completes, the operator is called until it wants nothing more."""
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
            gang = [p for p in self.pods.values() if p.phase == "Running" and not p.deleting and not silent(p)]
            if len(gang) == self.job.spec.mesh.nodes and self.job.status.attempt_start_time:
                for pod in gang:
                    self.end(pod, "Completed", 0)
            for pod in list(self.pods.values()):
                if pod.node_lost and not pod.deleting and live(pod):
                    self.delete(pod.name, 30, disrupted=True)  # the taint manager
            self.now += 35 if decision.recheck_after is None else max(1.0, min(35.0, decision.recheck_after))
        raise AssertionError("no end:\n" + "\n".join(self.log[-40:]))
