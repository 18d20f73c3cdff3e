"""The interface that every cluster adapter implements: four operations, no decisions."""

from __future__ import annotations

from typing import Protocol

from hftitan_api.models import HFTitanJob, JobStatus
from hftitan_operator.core.state import Action, Event, Seen


class Conflict(Exception):
    """The object was changed concurrently: observe and decide again."""


class Denied(Exception):
    """The cluster rejected an object: quota, admission, a name in use. The reason goes into the job's status."""


class Unserved(Denied):
    """The cluster does not serve this resource. Raised only if that is certain, not if a server does not answer."""


class ClusterPort(Protocol):
    """Stores jobs and runs pods. Every call may raise `Conflict`, or OSError for a fault that a retry may fix."""

    async def observe(self, namespace: str, name: str) -> Seen | None:
        """Return the job with all pods that have its label, of all attempts; None if the job is gone."""

    async def apply(self, job: HFTitanJob, action: Action) -> None:
        """Execute one action. Actions are idempotent and may run concurrently. May raise `Denied`, and `Unserved` for
        objects of spec.scheduling.gang."""

    async def write_status(self, job: HFTitanJob, status: JobStatus) -> None:
        """Replace the status of the observed job."""

    async def emit(self, job: HFTitanJob, event: Event) -> None:
        """Emit an event. A lost event is not an error."""
