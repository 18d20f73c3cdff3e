"""The interface that every cluster adapter implements: five operations, no decisions."""

from __future__ import annotations

from typing import Protocol

from hftitan_api.models import HFTitanJob, JobStatus
from hftitan_operator.core.state import Action, Event, Seen


class Conflict(Exception):
    """Somebody else changed the object meanwhile: observe again and decide anew."""


class Denied(Exception):
    """The cluster will not have an object as it is now: quota, admission, a name in use. Its owner must hear of it."""


class Unserved(Denied):
    """The cluster has no such resource at all. Said when it is certain, not when a server does not answer."""


class ClusterPort(Protocol):
    """Where jobs live and pods run. Every call may raise `Conflict`, or OSError for a fault worth a retry."""

    async def observe(self, namespace: str, name: str) -> Seen | None:
        """The job with all pods that carry its label, of every attempt; None when the job is gone."""

    async def apply(self, job: HFTitanJob, action: Action) -> None:
        """Carry out one action. Repeating it changes nothing. Several may be under way at once. May raise `Denied`,
        and `Unserved` for what spec.scheduling.gang asks for."""

    async def write_status(self, job: HFTitanJob, status: JobStatus) -> None:
        """Replace the status of the job as observed."""

    async def emit(self, job: HFTitanJob, event: Event) -> None:
        """Tell a human. A lost event is no error."""
