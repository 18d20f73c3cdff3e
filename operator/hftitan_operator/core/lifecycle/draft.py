"""A decision under construction: status, actions, events, wake-up times, and the few operations that change them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from hftitan_api.mesh import MeshPlan
from hftitan_api.models import HFTitanJob, JobStatus, Phase
from hftitan_api.wire import Progress
from hftitan_operator.core import clock, reasons
from hftitan_operator.core.lifecycle import status as st
from hftitan_operator.core.lifecycle import watchdog
from hftitan_operator.core.state import Action, Decision, Event, PodView


@dataclass
class Draft:
    """Collects a decision. The status is replaced, never changed in place, so the job passed in does not change."""

    job: HFTitanJob
    now: float
    status: JobStatus
    actions: list[Action] = field(default_factory=list)
    events: list[Event] = field(default_factory=list)
    wakes: list[float] = field(default_factory=list)
    """Unix times at which the decision may change without any other change."""

    def decision(self) -> Decision:
        wake = max(0.0, min(self.wakes) - self.now) if self.wakes else None
        return Decision(tuple(self.actions), self.status, tuple(self.events), wake)

    def set(self, **changes: object) -> None:
        self.status = st.updated(self.status, **changes)

    def condition(self, kind: str, truth: st.Truth, reason: str, message: str = "") -> None:
        generation = self.job.metadata.generation
        self.status = st.with_condition(self.status, kind, truth, reason, message, generation=generation, now=self.now)

    def phase(self, phase: Phase, message: str) -> None:
        self.set(phase=phase, message=message[: st.MESSAGE_LIMIT])

    def event(self, reason: str, message: str, *, warning: bool = False) -> None:
        """Emit an event of a transition. The status written with it prevents the next pass from emitting it again."""
        self.events.append(Event("Warning" if warning else "Normal", reason, message[: st.EVENT_LIMIT]))

    def observe(
        self, pods: Sequence[PodView], progress: Progress | None, plan: MeshPlan, departed: PodView | None = None
    ) -> None:
        """Write the state of the current attempt into the status. Emit an event for a new checkpoint, not too often."""
        before = self.status.checkpoint
        self.status = st.with_observation(self.status, pods, progress, plan, departed)
        after = self.status.checkpoint
        if progress is None or after is None or not watchdog.stepping(progress):
            return
        if st.needs_event(before, after, progress.resumed_from or 0):
            self.event(reasons.CHECKPOINT_SAVED, f"attempt {progress.attempt}: saved step {after.step}")

    def decide_again(self) -> None:
        """Request another pass at once, which acts on the status that this pass writes."""
        self.wakes = [self.now]

    def succeed(self, message: str) -> Decision:
        self.condition(reasons.SUCCEEDED, "True", reasons.COMPLETED, message)
        self.condition(reasons.RUNNING, "False", reasons.COMPLETED)
        self.event(reasons.SUCCEEDED, message)
        return self._end("Succeeded", message)

    def fail(self, reason: str, message: str) -> Decision:
        self.condition(reasons.FAILED, "True", reason, message)
        self.condition(reasons.RUNNING, "False", reason, message)
        self.event(reason, message, warning=True)
        return self._end("Failed", message)

    def reject(self, reason: str, message: str) -> Decision:
        """Fail the job because its spec is not accepted."""
        self.condition(reasons.ACCEPTED, "False", reason, message)
        return self.fail(reason, message)

    def _end(self, phase: Phase, message: str) -> Decision:
        self.status = st.stopped_clock(self.status, self.now)
        self.set(completion_time=clock.rfc3339(self.now))
        self.phase(phase, message)
        self.decide_again()
        return self.decision()
