"""Polls Kueue's Workload of every gang that waits in a queue, for Kueue's message.

Nothing changes in the pods while Kueue holds them, and Workloads have no label to watch them by.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Mapping
from typing import Any

from hftitan_api.models import HFTitanJob
from hftitan_operator.core.rendering.scheduling import KUEUE, KUEUE_WORKLOADS, group_name
from hftitan_operator.kube.cluster import KubeCluster
from hftitan_operator.kube.store import Key

log = logging.getLogger(__name__)

CYCLE_SECONDS = 1.0
REFRESH_SECONDS = 15.0
"""Time between two reads of one Workload: its message changes with the queue."""
RETRY_SECONDS = 3.0
"""The same, while there is no message."""
READS_PER_SECOND = 5
"""Maximum rate of reads; with more waiting jobs, each Workload is read less often."""
MESSAGE_LIMIT = 300


class KueuePoller:
    """Updates `cluster.queue_messages` and wakes a job when its message changes."""

    def __init__(self, cluster: KubeCluster, wake: Callable[[Key], None]) -> None:
        self._cluster, self._wake = cluster, wake
        self._due: dict[str, float] = {}
        """When to read each Workload again, by name."""

    async def run(self) -> None:
        while True:
            waiting, known = self._waiting(), self._cluster.queue_messages
            self._due = {name: due for name, due in self._due.items() if name in waiting}
            self._cluster.queue_messages = {name: known[name] for name in waiting if name in known}
            for name, key in waiting.items():
                # Kueue needs a moment to create the Workload and to look for room.
                if self._due.setdefault(name, time.monotonic() + CYCLE_SECONDS) <= time.monotonic():
                    pause = REFRESH_SECONDS if await self._read(name, key) else RETRY_SECONDS
                    self._due[name] = time.monotonic() + pause
                    await asyncio.sleep(1 / READS_PER_SECOND)
            await asyncio.sleep(CYCLE_SECONDS)

    def _waiting(self) -> dict[str, Key]:
        """Return the Workload's name and the key of each job whose pods Kueue holds."""
        found = {}
        for record in self._cluster.jobs.all():
            job = record.view.job
            if job.spec.scheduling.gang == "kueue" and job.status.phase == "Pending" and self._gated(record.key, job):
                found[group_name(job, job.status.attempt)] = record.key
        return found

    def _gated(self, key: Key, job: HFTitanJob) -> bool:
        pods = (pod.view for pod in self._cluster.pods.group(key) if pod.owner == job.metadata.uid)
        return any(pod.attempt == job.status.attempt and pod.reason == "SchedulingGated" for pod in pods)

    async def _read(self, name: str, key: Key) -> bool:
        """Return whether Kueue has a message."""
        path = f"/apis/{KUEUE.api_version}/namespaces/{key[0]}/{KUEUE_WORKLOADS}/{name}"
        try:
            why = reason(await self._cluster.api.request("GET", path))
        except OSError as error:  # not created yet, or no permission to read it
            log.debug("%s/%s: no message from Kueue: %s", *key, error)
            return False
        if why != self._cluster.queue_messages.get(name):
            self._cluster.queue_messages[name] = why
            self._wake(key)
        return why is not None


def reason(workload: Mapping[str, Any]) -> str | None:
    """Return Kueue's message why the Workload is not admitted, in one line; None if it has no message."""
    status = workload.get("status") or {}
    conditions = {condition.get("type"): condition for condition in status.get("conditions") or ()}
    reserved = conditions.get("QuotaReserved") or {}
    if reserved.get("status") == "True":
        checks = [check for check in status.get("admissionChecks") or () if check.get("state") != "Ready"]
        text = "; ".join(f"admission check {c.get('name')}: {c.get('message') or c.get('state')}" for c in checks)
    else:
        text = str(reserved.get("message") or "")
    line = " ".join(text.split())
    return (line if len(line) <= MESSAGE_LIMIT else f"{line[: MESSAGE_LIMIT - 1]}…") or None
