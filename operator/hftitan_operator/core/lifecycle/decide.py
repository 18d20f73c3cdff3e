"""Computes the next step of a job from the observed state.

    decide(job, observed, now) -> Decision(actions, status, events, recheck_after)

Pure and level-triggered. The phases of a job:

    (new) -> Pending -> Starting -> Running -> Succeeded
                ^          |           |
                |          v           v
                +------ Restarting <---+---> Failed        any of them <-> Suspended

The status is written before it is acted on. The result of an attempt (Restarting, Failed, Succeeded) goes into the
status; later passes read it there and delete the pods. So the operator may crash between any two of observe, apply and
write without losing a reason or doing anything twice: either the status has the result, or the failed pods still exist.
`recheck_after` 0 requests that later pass. With any other value the decision is a fixpoint: deciding again on the same
observation changes nothing.

An attempt is a gang: its pods are created together and are never replaced. It ends with its trainers: an injected
container may keep a pod running. The next attempt starts when every pod of the old attempt is finished or gone. Its
number follows from the status and the pods. The condition PodsCreated means that all pods of the attempt have been
observed: a pod that is missing later was deleted.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from hftitan_api import mesh
from hftitan_api.mesh import MeshPlan
from hftitan_api.models import TERMINAL, HFTitanJob, RestartRecord
from hftitan_api.wire import Progress
from hftitan_operator.core import clock, naming, reasons
from hftitan_operator.core.lifecycle import budget, classify, describe, drain, watchdog
from hftitan_operator.core.lifecycle import status as st
from hftitan_operator.core.lifecycle.classify import Cause, finished
from hftitan_operator.core.lifecycle.draft import Draft
from hftitan_operator.core.rendering import admission, scheduling, sizing
from hftitan_operator.core.rendering import gang as creation
from hftitan_operator.core.state import Decision, DeletePod, Observed, PodView


def decide(job: HFTitanJob, observed: Observed, now: float, problems: Sequence[str] = ()) -> Decision:
    """Return the next step of the job. `now` is Unix time. User errors go into the job's status; they do not raise.

    `problems` are the errors of a spec that cannot be parsed; the spec in `job` is then a placeholder.
    """
    if job.metadata.deletion_timestamp:
        return Decision(status=job.status)  # the garbage collector deletes the job's objects
    if job.status.phase in TERMINAL:
        return drain.after_the_end(job, observed, now)
    status = st.first_seen(job, now)
    if problems:
        return Draft(job, now, status).reject(reasons.INVALID_SPEC, "; ".join(problems))
    try:
        plan = mesh.plan(job.spec)
        rejection = _rejection(job, plan)
    except mesh.SpecError:
        rejection = _rejection(job, None)
    if rejection:
        return Draft(job, now, status).reject(*rejection)
    try:
        return _Pass(job, now, status, observed=observed, plan=plan).run()
    except mesh.SpecError as problem:  # an older operator with fewer rules accepted it
        return Draft(job, now, status).reject(reasons.INVALID_SPEC, str(problem))


def _rejection(job: HFTitanJob, plan: MeshPlan | None) -> tuple[str, str] | None:
    """Return reason and message if the job must not run; always without a plan.

    An accepted spec is checked again only when it changes: a new rule of a newer operator must not end a running job.
    """
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
            f"spec.mesh: changed from {before} to {plan.summary} after pods were created; a job's mesh is immutable: "
            "create a new job with the same checkpoint volume and folder"
        )
    return None


@dataclass(kw_only=True)
class _Pass(Draft):
    """One pass over a valid job that is not finished."""

    observed: Observed
    plan: MeshPlan

    def run(self) -> Decision:
        policy = self.job.spec.run_policy
        self._accept()
        gang = self._gang()
        self.observe(gang, self._progress(), self.plan, self._departed())
        if len(gang) == self._nodes and all(classify.completed(pod) for pod in gang):
            return self.succeed(describe.success(self.status, self.job))
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
            failure = self._end_attempt(cause, gang)
            if failure is not None:
                return failure
        if self.status.phase == "Restarting" or self.status.attempt == 0:
            return self._restart(cause_is_new=cause is not None)
        return self._keep(gang)

    @property
    def _nodes(self) -> int:
        return self.plan.degrees.nodes

    def _gang(self) -> list[PodView]:
        """The pods of the current attempt, by index."""
        mine = (p for p in self.observed.pods if p.attempt == self.status.attempt and 0 <= p.index < self._nodes)
        return sorted(mine, key=lambda pod: pod.index)

    def _departed(self) -> PodView | None:
        """The deleted pod of the current attempt with the newest exit report."""
        pod = self.observed.departed
        return pod if pod is not None and pod.attempt == self.status.attempt else None

    def _progress(self) -> Progress | None:
        return watchdog.current(self.observed.progress, self.status.attempt)

    # --- acceptance and active time ---------------------------------------------------------------------------

    def _accept(self) -> None:
        if not st.is_true(self.status, reasons.ACCEPTED):
            message = f"mesh {self.plan.summary}, world size {self.plan.world_size}"
            self.condition(reasons.ACCEPTED, "True", reasons.VALID, message)
            self.event(reasons.ACCEPTED, message)
        if self.status.phase is None:
            # The status was lost, for example in a restored backup: resume with the newest attempt of the pods.
            self.phase("Pending", "accepted")
            self.set(attempt=max((pod.attempt for pod in self.observed.pods), default=0))

    def _activate(self) -> None:
        """Start the active time. A suspended job resumes with a new attempt that does not count as a restart."""
        if self.status.active_since is None:
            now = clock.rfc3339(self.now)
            self.set(active_since=now, start_time=self.status.start_time or now)
        if self.status.phase == "Suspended":
            message = f"resuming {describe.from_step(self.status)}"
            self.condition(reasons.SUSPENDED, "False", reasons.RESUMED)
            self.condition(reasons.RUNNING, "False", reasons.RESUMED)
            self.phase("Restarting", message)
            self.event(reasons.RESUMED, message)

    # --- the end of an attempt --------------------------------------------------------------------------------

    def _cause(self, gang: list[PodView]) -> Cause | None:
        """Return why the current attempt has ended, or None. While restarting, only a cause that ends the job."""
        if self.status.attempt == 0:
            return None
        found = classify.first_cause(gang, self.plan)
        if self.status.phase == "Restarting":
            return self._corrected(found)
        causes = [found] if found else []
        if st.is_true(self.status, reasons.PODS_CREATED):
            seen = {pod.index for pod in gang}
            gone = [index for index in range(self._nodes) if index not in seen]
            if gone:
                causes.append(self._of_deleted(gone))
        if causes:
            return min(causes)
        policy = self.job.spec.run_policy
        progress, blind = self._progress(), self.observed.unreachable
        for timer in watchdog.timers(policy, self.status, gang, progress, self.plan, blind=blind):
            if self.now >= timer.due:
                return timer.cause
            self.wakes.append(timer.due)
        return None

    def _of_deleted(self, gone: Sequence[int]) -> Cause:
        """Return the cause for deleted pods: what the last state of one of them shows, for example a preemption."""
        departed = self._departed()
        if departed is not None and departed.index in gone:
            found = classify.of_pod(departed, self.plan)
            if found is not None:
                return found
        name = naming.pod_name(self.job.metadata.name, self.status.attempt, gone[0], self._nodes)
        return classify.missing(name, gone[0])

    def _corrected(self, found: Cause | None) -> Cause | None:
        """Correct the record when the first cause is found late: first a peer's network error, then the lost node.

        Return a cause that ends the job, or None.
        """
        if found is None or found.fatal:
            return found
        history = self.status.restart_history
        last = history[-1] if history else None
        if last is None or last.attempt != self.status.attempt or not last.counted:
            return None
        if found.reason in (reasons.EVICTED, reasons.NODE_LOST, reasons.NODE_ERROR):
            corrected = last.model_copy(update={"reason": found.reason, "counted": False})
            self.set(restart_history=[*history[:-1], corrected])
            self.condition(reasons.RUNNING, "False", found.reason, found.message)
            self.phase("Restarting", describe.restarting(self.status, found, 0, self.job.spec.run_policy))
        return None

    def _end_attempt(self, cause: Cause, gang: list[PodView]) -> Decision | None:
        """Record the end of the attempt. Return the decision that fails the job, or None if it may restart."""
        policy = self.job.spec.run_policy
        record = RestartRecord(
            time=clock.rfc3339(self.now),
            attempt=self.status.attempt,
            reason=cause.reason,
            step=st.newest_step(self.status, gang, self._progress()),
            counted=cause.counted,
        )
        history = budget.remember(self.status.restart_history, record)
        self.set(restart_history=history)
        if cause.fatal:
            return self.fail(cause.reason, cause.message)
        if budget.no_progress(history):
            return self.fail(reasons.NO_PROGRESS, describe.no_progress(history, cause))
        used = budget.counted(history, policy, self.now)
        if cause.counted and used > policy.max_restarts:
            return self.fail(reasons.RESTARTS_EXHAUSTED, describe.exhausted(policy, cause))
        self.actions += scheduling.over(self.job, [self.status.attempt])
        message = describe.restarting(self.status, cause, used, policy)
        self.condition(reasons.RUNNING, "False", cause.reason, cause.message)
        self.phase("Restarting", message)
        self.event(cause.reason, message, warning=cause.counted)
        return None

    # --- restart, create, describe, suspend -------------------------------------------------------------------

    def _restart(self, *, cause_is_new: bool) -> Decision:
        """Delete the pods that still run and wait until every pod is finished or gone; then start the next attempt."""
        number = self._next_attempt()
        old = [pod for pod in self.observed.pods if pod.attempt < number]
        if not all(finished(pod) for pod in old):
            if cause_is_new:
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
        """Return the number of the next attempt. Skip attempts with pods that are being deleted: a pass that did not
        write its status may have created them."""
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
            # A pass that did not write its status created them: decide on them before creating more.
            self.decide_again()
            return self.decision()
        return self._keep(gang)

    def _keep(self, gang: list[PodView]) -> Decision:
        """Create missing objects of the running attempt, delete stray pods, and describe its state."""
        created = st.is_true(self.status, reasons.PODS_CREATED)
        strays = [pod for pod in self.observed.pods if pod.attempt != self.status.attempt or pod.index >= self._nodes]
        self._drain(strays, sizing.DRAIN_GRACE_SECONDS)
        pods = not created and all(finished(pod) for pod in strays)
        existing = {pod.index for pod in gang}
        actions, more = creation.missing(self.job, self.plan, self.status.attempt, self.observed, existing, pods=pods)
        self.actions += actions
        if more:
            self.decide_again()
        # Pods of the previous attempt are kept for `kubectl logs`; older ones are deleted.
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
        """Set phase and message of a complete gang without failures."""
        attempt = f"attempt {self.status.attempt}"
        if self.status.attempt_start_time is None:
            gatekeeper = scheduling.gatekeeper(self.job, self.status.attempt, self.observed.queue_message)
            waiting = describe.waiting(gang, gatekeeper)
            if waiting:
                self.phase("Pending", f"{attempt}: {waiting}")
                return
            started = max((pod.started_at for pod in gang if pod.started_at is not None), default=self.now)
            message = f"{attempt}: all {self._nodes} pods run" if self._nodes > 1 else f"{attempt}: the pod runs"
            self.set(attempt_start_time=clock.rfc3339(min(started, self.now)))
            self.condition(reasons.RUNNING, "True", reasons.PODS_RUNNING, message)
            self.event(reasons.PODS_RUNNING, message)
            self.decide_again()  # starts the timers
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
            self._delete_pod_groups()
            self.status = st.stopped_clock(self.status, self.now)
            self.condition(reasons.SUSPENDED, "True", reasons.BY_USER, message)
            self.condition(reasons.RUNNING, "False", reasons.SUSPENDED)
            self.event(reasons.SUSPENDED, message)
        self._drain(self.observed.pods, None)  # with the pods' own grace period: the ranks save before they exit
        live = sum(not finished(pod) for pod in self.observed.pods)
        self.phase("Suspended", describe.suspended(self.status, live))
        return self.decision()

    def fail(self, reason: str, message: str) -> Decision:
        self._delete_pod_groups()
        return super().fail(reason, message)

    def _delete_pod_groups(self) -> None:
        """Delete the pod groups, also of the next attempt: a pass that did not write its status may have started it."""
        attempts = {self.status.attempt, *(pod.attempt for pod in self.observed.pods)}
        self.actions += scheduling.over(self.job, sorted({*attempts, max(attempts) + 1}))

    def _drain(self, pods: Iterable[PodView], grace: int | None) -> None:
        actions, wakes = drain.drain(self.job, pods, grace, self.now)
        self.actions += actions
        self.wakes += wakes
