"""Computes the next step of a job from the observed state alone.

    decide(job, observed, now) -> Decision(actions, status, events, recheck_after)

Pure and level-triggered. The life of a job:

    (new) -> Pending -> Starting -> Running -> Succeeded
                ^          |           |
                |          v           v
                +------ Restarting <---+---> Failed        any of them <-> Suspended

Written down first, acted on after. A verdict on an attempt (Restarting, Failed, Succeeded) is a status; pods are
deleted in later passes, which find the verdict. So a crash between any two of observe, act and write loses no reason
and runs nothing twice: either the verdict is there, or the evidence is. `recheck_after` 0 asks for that later pass;
with any other value the decision is a fixpoint: deciding again on the same observation changes nothing.

An attempt is a gang: its pods are created together, and none is ever replaced. The next attempt starts when every pod
of the old one is finished or gone. Its number follows from status and pods; the condition PodsCreated says that all its
pods have been seen, so that one that is missing was deleted and is not merely still to be created.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from hftitan_api import mesh
from hftitan_api.mesh import MeshPlan
from hftitan_api.models import TERMINAL, HFTitanJob, RestartRecord
from hftitan_api.wire import Progress
from hftitan_operator.core import (
    admission,
    budget,
    classify,
    clock,
    describe,
    drain,
    naming,
    reasons,
    scheduling,
    sizing,
    watchdog,
)
from hftitan_operator.core import gang as creation
from hftitan_operator.core import status as st
from hftitan_operator.core.classify import Cause, finished
from hftitan_operator.core.draft import Draft
from hftitan_operator.core.state import Decision, DeletePod, Observed, PodView


def decide(job: HFTitanJob, observed: Observed, now: float, problems: Sequence[str] = ()) -> Decision:
    """One step of the job. `now` is Unix time. Never raises for what a user wrote: that becomes the job's status.

    `problems`: why its spec could not even be read; the spec in `job` then means nothing.
    """
    if job.metadata.deletion_timestamp:
        return Decision(status=job.status)  # the garbage collector takes what the job owns
    if job.status.phase in TERMINAL:
        return drain.after_the_end(job, observed, now)
    status = st.first_seen(job, now)
    if problems:
        return Draft(job, now, status).reject(reasons.INVALID_SPEC, "; ".join(problems))
    try:
        plan = mesh.plan(job.spec)
        refusal = _refusal(job, plan)
    except mesh.SpecError:
        refusal = _refusal(job, None)
    if refusal:
        return Draft(job, now, status).reject(*refusal)
    try:
        return _Pass(job, now, status, observed=observed, plan=plan).run()
    except mesh.SpecError as problem:  # accepted by an operator that was less strict about pods than this one
        return Draft(job, now, status).reject(reasons.INVALID_SPEC, str(problem))


def _refusal(job: HFTitanJob, plan: MeshPlan | None) -> tuple[str, str] | None:
    """Reason and message when the job may not run (always, without a plan). What was accepted once is not judged again
    until it changes: a rule that a newer operator brings must not end a job that runs."""
    accepted = st.condition(job.status, reasons.ACCEPTED)
    if plan and accepted and accepted.status == "True" and accepted.observed_generation == job.metadata.generation:
        return None
    problems = admission.problems(job)
    if problems:
        return reasons.INVALID_SPEC, "; ".join(str(problem) for problem in problems)
    assert plan is not None
    before = job.status.mesh
    if job.status.attempt and before and before != plan.summary:
        return reasons.MESH_CHANGED, (
            f"spec.mesh: changed from {before} to {plan.summary} after pods were made for it; a job's mesh is fixed: "
            "make a new job that names the same checkpoint volume and folder"
        )
    return None


@dataclass(kw_only=True)
class _Pass(Draft):
    """A pass over an accepted job that is not finished."""

    observed: Observed
    plan: MeshPlan

    def run(self) -> Decision:
        policy = self.job.spec.run_policy
        self._accept()
        gang = self._gang()
        self.observe(gang, self._progress(), self.plan)
        if len(gang) == self._nodes and all(classify.completed(pod) for pod in gang):
            return self.succeed(describe.success(self.status, self.job.spec.training.steps))
        if policy.suspend:
            return self._suspend()
        self._activate()
        limit = policy.active_deadline_seconds
        if limit is not None:
            due = self.now + limit - st.active_seconds(self.status, self.now)
            if due <= self.now:
                field = "spec.runPolicy.activeDeadlineSeconds"
                return self.fail(reasons.DEADLINE_EXCEEDED, f"not finished within {clock.duration(limit)} ({field})")
            self.wakes.append(due)
        cause = self._cause(gang)
        if cause is not None:
            verdict = self._condemn(cause, gang)
            if verdict is not None:
                return verdict
        if self.status.phase == "Restarting" or self.status.attempt == 0:
            return self._restart(verdict_is_new=cause is not None)
        return self._keep(gang)

    @property
    def _nodes(self) -> int:
        return self.plan.degrees.nodes

    def _gang(self) -> list[PodView]:
        """The pods of the current attempt, by index."""
        mine = (p for p in self.observed.pods if p.attempt == self.status.attempt and 0 <= p.index < self._nodes)
        return sorted(mine, key=lambda pod: pod.index)

    def _progress(self) -> Progress | None:
        return watchdog.current(self.observed.progress, self.status.attempt)

    # --- before the attempt is looked at ----------------------------------------------------------------------

    def _accept(self) -> None:
        if not st.is_true(self.status, reasons.ACCEPTED):
            message = f"mesh {self.plan.summary}, world size {self.plan.world_size}"
            self.condition(reasons.ACCEPTED, "True", reasons.VALID, message)
            self.event(reasons.ACCEPTED, message)
        if self.status.phase is None:
            # Pods without a status (it was lost, say in a restored backup): go on with their newest attempt.
            self.phase("Pending", "accepted")
            self.set(attempt=max((pod.attempt for pod in self.observed.pods), default=0))

    def _activate(self) -> None:
        """The clock of the active time runs; a suspended job goes on with a new attempt, not charged."""
        if self.status.active_since is None:
            now = clock.rfc3339(self.now)
            self.set(active_since=now, start_time=self.status.start_time or now)
        if self.status.phase == "Suspended":
            message = f"resuming {describe.from_step(self.status)}"
            self.condition(reasons.SUSPENDED, "False", reasons.RESUMED)
            self.condition(reasons.RUNNING, "False", reasons.RESUMED)
            self.phase("Restarting", message)
            self.event(reasons.RESUMED, message)

    # --- the verdict on an attempt ----------------------------------------------------------------------------

    def _cause(self, gang: list[PodView]) -> Cause | None:
        """Why the current attempt is over, or None. Of one given up before, only what changes that verdict."""
        if self.status.attempt == 0:
            return None
        found = classify.first_cause(gang, self.plan)
        if self.status.phase == "Restarting":
            return self._corrected(found)
        causes = [found] if found else []
        if st.is_true(self.status, reasons.PODS_CREATED):
            seen = {pod.index for pod in gang}
            gone = next((i for i in range(self._nodes) if i not in seen), None)
            if gone is not None:
                name = naming.pod_name(self.job.metadata.name, self.status.attempt, gone, self._nodes)
                causes.append(classify.missing(name, gone))
        if causes:
            return min(causes)
        policy = self.job.spec.run_policy
        progress, blind = self._progress(), self.observed.unreachable
        for timer in watchdog.timers(policy, self.status, gang, progress, self.plan, blind=blind):
            if self.now >= timer.due:
                return timer.cause
            self.wakes.append(timer.due)
        return None

    def _corrected(self, found: Cause | None) -> Cause | None:
        """The first cause may show up after its consequences: the peers' network error, then the node that was lost."""
        if found is None or found.fatal:
            return found
        history = self.status.restart_history
        last = history[-1] if history else None
        if last is None or last.attempt != self.status.attempt or last.free:
            return None
        if found.reason in (reasons.EVICTED, reasons.NODE_LOST):
            freed = last.model_copy(update={"reason": found.reason, "free": True})
            self.set(restart_history=[*history[:-1], freed])
            self.condition(reasons.RUNNING, "False", found.reason, found.message)
            self.phase("Restarting", describe.restarting(self.status, found, 0, self.job.spec.run_policy))
        return None

    def _condemn(self, cause: Cause, gang: list[PodView]) -> Decision | None:
        """Give the attempt up. None when another one may follow, or the decision that fails the job."""
        policy = self.job.spec.run_policy
        record = RestartRecord(
            time=clock.rfc3339(self.now),
            attempt=self.status.attempt,
            reason=cause.reason,
            step=st.newest_step(self.status, gang, self._progress()),
            free=cause.free,
        )
        history = budget.remember(self.status.restart_history, record)
        self.set(restart_history=history)
        if cause.fatal:
            return self.fail(cause.reason, cause.message)
        if budget.no_progress(history):
            return self.fail(reasons.NO_PROGRESS, describe.no_progress(history, cause))
        used = budget.charged(history, policy, self.now)
        if not cause.free and used > policy.max_restarts:
            return self.fail(reasons.RESTARTS_EXHAUSTED, describe.exhausted(policy, cause))
        self.actions += scheduling.over(self.job, [self.status.attempt])
        message = describe.restarting(self.status, cause, used, policy)
        self.condition(reasons.RUNNING, "False", cause.reason, cause.message)
        self.phase("Restarting", message)
        self.event(cause.reason, message, warning=not cause.free)
        return None

    # --- what follows from it ---------------------------------------------------------------------------------

    def _restart(self, *, verdict_is_new: bool) -> Decision:
        """Wait until every pod is finished or gone, deleting those that are neither; then begin the next attempt."""
        number = self._next_attempt()
        old = [pod for pod in self.observed.pods if pod.attempt < number]
        if not all(finished(pod) for pod in old):
            if verdict_is_new:
                self.decide_again()
            else:
                self._drain(old, sizing.DRAIN_GRACE_SECONDS)
            return self.decision()
        wait_until = budget.not_before(self.status.restart_history)
        if wait_until > self.now:
            self.wakes.append(wait_until)
            return self.decision()
        self.actions += scheduling.over(self.job, range(self.status.attempt + 1, number))
        return self._begin(number)

    def _next_attempt(self) -> int:
        """One more; or, when an interrupted pass created that one and somebody deletes its pods, the one after."""
        spent = {pod.attempt for pod in self.observed.pods if pod.deleting}
        number = self.status.attempt + 1
        while number in spent:
            number += 1
        return number

    def _begin(self, attempt: int) -> Decision:
        history = self.status.restart_history
        restarted = bool(history) and history[-1].attempt == self.status.attempt
        message = describe.created(self.status, attempt, self._nodes)
        self.set(attempt=attempt, attempt_start_time=None, restarts=self.status.restarts + restarted)
        self.condition(reasons.PODS_CREATED, "False", reasons.CREATING)
        self.phase("Pending", message)
        self.event(reasons.ATTEMPT_CREATED, message)
        gang = self._gang()
        self.observe(gang, self._progress(), self.plan)
        if gang:
            # An interrupted pass created them already: they are judged before anything is created beside them.
            self.decide_again()
            return self.decision()
        return self._keep(gang)

    def _keep(self, gang: list[PodView]) -> Decision:
        """The attempt is alive: complete what is missing, and say how far it is."""
        created = st.is_true(self.status, reasons.PODS_CREATED)
        strays = [pod for pod in self.observed.pods if pod.attempt != self.status.attempt or pod.index >= self._nodes]
        self._drain(strays, sizing.DRAIN_GRACE_SECONDS)
        alone = all(finished(pod) for pod in strays)
        pods, there = alone and not created, {pod.index for pod in gang}
        actions, more = creation.missing(self.job, self.plan, self.status.attempt, self.observed, there, pods=pods)
        self.actions += actions
        if more:
            self.decide_again()
        # The last attempt's pods stay for `kubectl logs`; those before it go.
        self.actions += [
            DeletePod(pod.name, pod.uid)
            for pod in strays
            if finished(pod) and not pod.deleting and pod.attempt < self.status.attempt - 1
        ]
        if len(gang) == self._nodes:
            if not created:
                self.condition(reasons.PODS_CREATED, "True", reasons.CREATED, f"{self._nodes} of {self._nodes} pods")
                if any(pod.unqueued for pod in gang):
                    message = describe.unqueued(self.job.metadata.namespace, self.job.spec.scheduling.queue)
                    self.event(reasons.NOT_QUEUED, message, warning=True)
            self._describe(gang)
        return self.decision()

    def _describe(self, gang: list[PodView]) -> None:
        """Phase and message of a whole gang in which nothing has gone wrong."""
        attempt = f"attempt {self.status.attempt}"
        if self.status.attempt_start_time is None:
            waiting = describe.waiting(gang, scheduling.gatekeeper(self.job, self.status.attempt))
            if waiting:
                self.phase("Pending", f"{attempt}: {waiting}")
                return
            started = max((pod.started_at for pod in gang if pod.started_at is not None), default=self.now)
            message = f"{attempt}: all {self._nodes} pods run" if self._nodes > 1 else f"{attempt}: the pod runs"
            self.set(attempt_start_time=clock.rfc3339(min(started, self.now)))
            self.condition(reasons.RUNNING, "True", reasons.PODS_RUNNING, message)
            self.event(reasons.PODS_RUNNING, message)
            self.decide_again()  # the timers start with it
        progress = self._progress()
        if self.status.phase != "Running" and watchdog.stepping(progress):
            resumed = progress.resumed_from if progress else None
            since = f"from step {resumed}" if resumed else "from the beginning"
            self.event(reasons.TRAINING, f"{attempt}: training {since}")
            self.phase("Running", "")
        doing = describe.doing(self.status, gang, blind=self.observed.unreachable)
        self.phase("Running" if self.status.phase == "Running" else "Starting", f"{attempt}: {doing}")

    def _suspend(self) -> Decision:
        if self.status.phase != "Suspended":
            message = "suspended by spec.runPolicy.suspend"
            self._leave_the_queue()
            self.status = st.stopped_clock(self.status, self.now)
            self.condition(reasons.SUSPENDED, "True", reasons.BY_USER, message)
            self.condition(reasons.RUNNING, "False", reasons.SUSPENDED)
            self.event(reasons.SUSPENDED, message)
        self._drain(self.observed.pods, None)  # with the pods' own grace: the ranks save before they end
        live = sum(not finished(pod) for pod in self.observed.pods)
        self.phase("Suspended", describe.suspended(self.status, live))
        return self.decision()

    def fail(self, reason: str, message: str) -> Decision:
        self._leave_the_queue()
        return super().fail(reason, message)

    def _leave_the_queue(self) -> None:
        """No attempt waits for nodes any more; nor the next one, which a pass that was cut short may have begun."""
        attempts = {self.status.attempt, *(pod.attempt for pod in self.observed.pods)}
        self.actions += scheduling.over(self.job, sorted({*attempts, max(attempts) + 1}))

    def _drain(self, pods: Iterable[PodView], grace: int | None) -> None:
        actions, wakes = drain.drain(pods, grace, self.now)
        self.actions += actions
        self.wakes += wakes
