"""Gang schedulers: the objects, labels and annotations with which each places all pods of an attempt or none.

Kueue admits plain pods by their labels and annotations. The others read one object for each attempt, a PodGroup of
their own kind, which is created before the pods and named by them. Read in the sources of Kueue 0.19.2, Volcano 1.15.1,
scheduler-plugins 0.34.7, KAI Scheduler 0.17.0 and Kubernetes 1.37.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from hftitan_api.models import HFTitanJob
from hftitan_operator.core import naming
from hftitan_operator.core.state import DeletePodGroup, Require

POD_GROUP: Final = "PodGroup"
KUEUE_QUEUE: Final = "kueue.x-k8s.io/queue-name"
KUEUE_MANAGED: Final = "kueue.x-k8s.io/managed"
"""Kueue's webhook puts it on the pods that it takes care of."""
UID_CHARACTERS = 8
JOB_CHARACTERS = naming.LABEL_LIMIT - UID_CHARACTERS - len("--999999")
"""What a label value leaves for the job's name in a group's."""


@dataclass(frozen=True, slots=True)
class Scheduler:
    """A gang scheduler, as a job finds it in a cluster."""

    name: str
    api_version: str
    resource: str
    """The cluster serves this when the scheduler is installed."""
    remedy: str
    """What to do when it is not."""
    scheduler_name: str | None = None
    """Of the pods' spec, as each project's own installation calls it; None: Kubernetes' own scheduler binds them."""

    @property
    def group(self) -> str:
        return self.api_version.partition("/")[0]


KUEUE = Scheduler("Kueue", "kueue.x-k8s.io/v1beta2", "localqueues", "install Kueue 0.15 or newer")
VOLCANO = Scheduler("Volcano", "scheduling.volcano.sh/v1beta1", "podgroups", "install Volcano", "volcano")
COSCHEDULING = Scheduler(
    "Coscheduling",
    "scheduling.x-k8s.io/v1alpha1",
    "podgroups",
    "install the scheduler-plugins chart",
    "scheduler-plugins-scheduler",
)
KAI = Scheduler(
    "KAI Scheduler",
    "scheduling.run.ai/v2alpha2",
    "podgroups",
    "install KAI Scheduler 0.15 or newer",
    "kai-scheduler",
)
KUBERNETES = Scheduler(
    "Kubernetes' own gang scheduling",
    "scheduling.k8s.io/v1beta1",
    "podgroups",
    "use Kubernetes 1.37 or newer with this API and the feature gate GenericWorkload enabled",
)
SCHEDULERS: Final[Mapping[str, Scheduler]] = {
    "kueue": KUEUE,
    "volcano": VOLCANO,
    "coscheduling": COSCHEDULING,
    "kai": KAI,
    "kubernetes": KUBERNETES,
}
"""By the value of spec.scheduling.gang."""


def group_name(job: HFTitanJob, attempt: int) -> str:
    """A group for each attempt, and none that a job of the same name had before: what is left of its groups would take
    the new pods for its own. Fits a label."""
    name = job.metadata.name[:JOB_CHARACTERS].rstrip("-.")
    return f"{name}-{job.metadata.uid[:UID_CHARACTERS]}-{attempt}"


@dataclass(frozen=True, slots=True)
class PodAdditions:
    """What the pods of an attempt carry for their scheduler."""

    labels: Mapping[str, str] = field(default_factory=dict)
    annotations: Mapping[str, str] = field(default_factory=dict)
    spec: Mapping[str, Any] = field(default_factory=dict)


def required(job: HFTitanJob) -> Require | None:
    """What must be there before the pods, beside an object of ours: without Kueue nobody would hold them back."""
    wanted = job.spec.scheduling
    if wanted.gang != "kueue" or wanted.queue is None:
        return None
    return Require(KUEUE.api_version, KUEUE.resource, wanted.queue)


def pod_group(job: HFTitanJob, nodes: int) -> tuple[str, dict[str, Any]] | None:
    """API version and spec of the PodGroup of an attempt with so many pods; None for those who read none."""
    wanted = job.spec.scheduling
    priority = {"priorityClassName": wanted.priority_class} if wanted.priority_class else {}
    queue = {"queue": wanted.queue} if wanted.queue else {}
    match wanted.gang:
        case "volcano":
            return VOLCANO.api_version, {"minMember": nodes, **queue, **priority}
        case "coscheduling":
            return COSCHEDULING.api_version, {"minMember": nodes}
        case "kai":
            return KAI.api_version, {"minMember": nodes, **queue, **priority}
        case "kubernetes":
            spec: dict[str, Any] = {
                "schedulingPolicy": {"gang": {"minCount": nodes}},
                # One pod less ends the gang: preempted as a whole it gives all of its nodes at once.
                "disruptionMode": {"all": {}},
                **priority,
            }
            if wanted.topology_key:
                spec["schedulingConstraints"] = {"topology": [{"key": wanted.topology_key}]}
            return KUBERNETES.api_version, spec
        case _:
            return None


def gatekeeper(job: HFTitanJob, attempt: int) -> str | None:
    """Who puts a gate on the pods of an attempt and takes it off, and where to look: `waiting for ...`."""
    wanted = job.spec.scheduling
    if wanted.gang != "kueue":
        return None
    return f"Kueue to admit the workload {group_name(job, attempt)} from queue {wanted.queue}"


def over(job: HFTitanJob, attempts: Iterable[int]) -> list[DeletePodGroup]:
    """Takes back what was asked of a scheduler for these attempts: without pods a PodGroup would wait for ever."""
    asked = pod_group(job, 1)
    return [DeletePodGroup(asked[0], group_name(job, number)) for number in attempts if number] if asked else []


def pod_additions(job: HFTitanJob, attempt: int, nodes: int) -> PodAdditions:
    """For the pods of an attempt, the same for each."""
    wanted, group = job.spec.scheduling, group_name(job, attempt)
    usual = SCHEDULERS[wanted.gang].scheduler_name if wanted.gang != "none" else None
    name = wanted.scheduler_name or usual
    spec = {"schedulerName": name} if name else {}
    match wanted.gang:
        case "kueue":
            return PodAdditions(*_kueue(job, group, nodes), spec)
        case "volcano":
            return PodAdditions(annotations={"scheduling.k8s.io/group-name": group}, spec=spec)
        case "coscheduling":
            return PodAdditions(labels={"scheduling.x-k8s.io/pod-group": group}, spec=spec)
        case "kai":
            # By itself KAI makes a group for an owner that it does not know, of which one pod is enough to start.
            annotations = {"pod-group-name": group, "kai.scheduler/skip-podgrouper": "true"}
            labels = {"kai.scheduler/queue": wanted.queue} if wanted.queue else {}
            return PodAdditions(labels, annotations, spec)
        case "kubernetes":
            return PodAdditions(spec={**spec, "schedulingGroup": {"podGroupName": group}})
        case _:
            return PodAdditions(spec=spec)


def _kueue(job: HFTitanJob, group: str, nodes: int) -> tuple[dict[str, str], dict[str, str]]:
    """Labels and annotations."""
    wanted = job.spec.scheduling
    labels = {"kueue.x-k8s.io/pod-group-name": group}
    if wanted.queue:
        labels[KUEUE_QUEUE] = wanted.queue
    annotations = {
        # Read from the annotation first with Kueue's feature gate WorkloadIdentifierAnnotations, else from the label.
        "kueue.x-k8s.io/pod-group-name": group,
        "kueue.x-k8s.io/pod-group-total-count": str(nodes),
        # No pod of a group is ever replaced: Kueue gives its quota, and its finalizers, back when all of them ended.
        "kueue.x-k8s.io/retriable-in-group": "false",
        "kueue.x-k8s.io/pod-group-pod-index-label": naming.LABEL_NODE_INDEX,
    }
    if wanted.topology_key:
        annotations["kueue.x-k8s.io/podset-required-topology"] = wanted.topology_key
    return labels, annotations


def together(job: HFTitanJob, attempt: int) -> dict[str, Any] | None:
    """A required pod affinity term that holds an attempt within one value of topologyKey; None where it is not asked
    for, or its scheduler takes the key itself.

    Volcano and KAI know topologies too, but as objects of their own whose names a node label does not tell.
    """
    wanted = job.spec.scheduling
    if wanted.topology_key is None or wanted.gang in ("kueue", "kubernetes"):
        return None
    labels = {naming.LABEL_JOB: job.metadata.name, naming.LABEL_ATTEMPT: str(attempt)}
    return {"topologyKey": wanted.topology_key, "labelSelector": {"matchLabels": labels}}


def absent(job: HFTitanJob) -> str:
    """Why a job cannot run where its scheduler's API is not served."""
    wanted = job.spec.scheduling.gang
    scheduler = SCHEDULERS[wanted]
    return (
        f"spec.scheduling.gang: {wanted} needs {scheduler.resource} of {scheduler.api_version}, which this cluster "
        f"does not have; {scheduler.remedy}, or use gang: none"
    )
