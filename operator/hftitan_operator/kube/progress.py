"""Polls node 0 of every running job for its progress, at a rate that scales to a thousand jobs."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

from hftitan_api.models import TERMINAL
from hftitan_api.wire import Progress
from hftitan_operator.core.lifecycle.watchdog import stepping
from hftitan_operator.kube.cluster import KubeCluster
from hftitan_operator.kube.store import JobRecord, Key
from hftitan_operator.net import fetch_progress

POLL_SECONDS = 2.0
JOBS_PER_SECOND = 100
"""Maximum polling rate; with more jobs, each job is polled less often."""
AT_ONCE = 64
WRITE_SECONDS = 5.0
"""Minimum time between two status writes of one job that only show a new step."""
WRITES_PER_SECOND = 20
"""Maximum rate of such writes over all jobs: with a thousand jobs, each shows a new step every fifty seconds."""
UNREACHABLE_AFTER = 5
"""Polls in a row without an answer."""


class ProgressPoller:
    """Updates `cluster.progress` and wakes a job when a change is worth a status write."""

    def __init__(self, cluster: KubeCluster, wake: Callable[[Key], None]) -> None:
        self._cluster, self._wake = cluster, wake
        self._reported: dict[str, tuple[float, Progress]] = {}
        """When each job was last woken and with which progress, by UID."""
        self._failures: dict[str, int] = {}
        """Polls in a row without an answer, by UID."""

    async def run(self) -> None:
        while True:
            began = time.monotonic()
            targets = self._targets()
            asked = {uid for uid, *_ in targets}
            self._reported = {uid: reported for uid, reported in self._reported.items() if uid in asked}
            self._failures = {uid: count for uid, count in self._failures.items() if uid in asked}
            gate = asyncio.Semaphore(AT_ONCE)
            pause = max(WRITE_SECONDS, len(targets) / WRITES_PER_SECOND)
            await asyncio.gather(*(self._ask(gate, pause, *target) for target in targets))
            spent = time.monotonic() - began
            await asyncio.sleep(max(POLL_SECONDS - spent, len(targets) / JOBS_PER_SECOND - spent, 0.1))

    def _targets(self) -> list[tuple[str, Key, str, int]]:
        """Return UID, key, address and port of each job whose first pod runs."""
        found = []
        for record in self._cluster.jobs.all():
            address = self._first_pod(record)
            if address is not None:
                job = record.view.job
                found.append((job.metadata.uid, record.key, address, job.spec.monitoring.port))
        return found

    def _first_pod(self, record: JobRecord) -> str | None:
        job = record.view.job
        if job.status.phase in TERMINAL or not job.status.attempt:
            return None
        for pod in self._cluster.pods.group(record.key):
            view = pod.view
            if (view.index, view.attempt, view.phase) == (0, job.status.attempt, "Running"):
                return view.address if pod.owner == job.metadata.uid else None
        return None

    async def _ask(self, gate: asyncio.Semaphore, pause: float, uid: str, key: Key, address: str, port: int) -> None:
        async with gate:
            new = await fetch_progress(address, port)
        if new is None:
            self._unanswered(uid, key)
            return
        if self._failures.pop(uid, 0) >= UNREACHABLE_AFTER:
            self._cluster.unreachable.discard(uid)
            self._wake(key)
        self._cluster.progress[uid] = new
        now = time.monotonic()
        at, old = self._reported.get(uid, (now, None))
        # Compare with the last reported progress, not with the last answer: the step at which a trainer hangs may
        # arrive during the pause and must still be reported.
        if old is None or matters(old, new) or (new != old and now - at >= pause):
            self._reported[uid] = (now, new)
            self._wake(key)

    def _unanswered(self, uid: str, key: Key) -> None:
        self._failures[uid] = self._failures.get(uid, 0) + 1
        if self._failures[uid] == UNREACHABLE_AFTER:
            self._cluster.unreachable.add(uid)
            self._wake(key)


def matters(old: Progress, new: Progress) -> bool:
    """Return whether more than the step changed: attempt, phase, first step, checkpoint or result."""
    fields = ("attempt", "phase", "checkpoint_step", "export_path", "resumed_from", "worker_restarts")
    return stepping(old) != stepping(new) or any(getattr(old, field) != getattr(new, field) for field in fields)
