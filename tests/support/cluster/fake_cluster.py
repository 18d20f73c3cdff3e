"""An in-memory ClusterPort, for the contract suite and the tests of step()."""

from __future__ import annotations

import itertools

from hftitan_api.models import HFTitanJob, JobStatus
from hftitan_operator.core.naming import LABEL_ATTEMPT, LABEL_NODE_INDEX
from hftitan_operator.core.state import (
    Action,
    Apply,
    DeleteJob,
    DeletePod,
    DeletePodGroup,
    Event,
    Observed,
    PodView,
    Seen,
)
from hftitan_operator.port import Conflict


class FakeCluster:
    def __init__(self, job: HFTitanJob) -> None:
        metadata = job.metadata.model_copy(update={"uid": job.metadata.uid or "job-uid"})
        self.job: HFTitanJob | None = job.model_copy(update={"metadata": metadata})
        self.pods: dict[str, PodView] = {}
        self.objects: set[str] = set()
        self.events: list[Event] = []
        self._uids = itertools.count(1)

    def edit(self, job: HFTitanJob) -> None:
        """Replace the spec, as a user would."""
        assert self.job is not None
        metadata = self.job.metadata.model_copy(update={"generation": self.job.metadata.generation + 1})
        self.job = self.job.model_copy(update={"spec": job.spec, "metadata": metadata})

    async def observe(self, namespace: str, name: str) -> Seen | None:
        if self.job is None or (namespace, name) != (self.job.metadata.namespace, self.job.metadata.name):
            return None
        observed = Observed(tuple(self.pods.values()), "Service" in self.objects, "ConfigMap" in self.objects)
        return Seen(self.job, observed)

    async def apply(self, job: HFTitanJob, action: Action) -> None:
        match action:
            case Apply({"kind": "Pod", "metadata": metadata}):
                labels = metadata["labels"]
                attempt, index = int(labels[LABEL_ATTEMPT]), int(labels[LABEL_NODE_INDEX])
                name = metadata["name"]
                self.pods.setdefault(name, PodView(name, f"pod-{next(self._uids)}", attempt, index))
            case Apply(manifest):
                self.objects.add(manifest["kind"])
            case DeletePod(name, uid, _):
                if name in self.pods and self.pods[name].uid == uid:
                    del self.pods[name]
            case DeletePodGroup():
                self.objects.discard("PodGroup")
            case DeleteJob():
                self.job, self.pods = None, {}

    async def write_status(self, job: HFTitanJob, status: JobStatus) -> None:
        if self.job is None or self.job.metadata.generation != job.metadata.generation:
            raise Conflict("changed")
        self.job = self.job.model_copy(update={"status": status})

    async def emit(self, job: HFTitanJob, event: Event) -> None:
        self.events.append(event)
