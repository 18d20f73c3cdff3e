"""Gang schedulers: the objects, labels and annotations that make each of them place all pods of an attempt or none.

Kueue admits plain pods by their labels and annotations. Each of the others reads one object per attempt, a PodGroup of
its own kind. The PodGroup is created before the pods, and the pods reference it by name. Sources: Kueue 0.19.2,
Volcano 1.15.1, scheduler-plugins 0.34.7, KAI Scheduler 0.17.0 and Kubernetes 1.36 and 1.37.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from hftitan_api.models import HFTitanJob
from hftitan_operator.core import naming
from hftitan_operator.core.state import DeletePodGroup, Manifest, Require

POD_GROUP: Final = "PodGroup"
KUEUE_QUEUE: Final = "kueue.x-k8s.io/queue-name"
KUEUE_MANAGED: Final = "kueue.x-k8s.io/managed"
"""Kueue's webhook adds this label to the pods that it manages."""
KUEUE_WORKLOADS: Final = "workloads"
"""Kueue's own objects, one for each group."""
CONSTRAINTS: Final = "schedulingConstraints"
"""The field of Kubernetes' PodGroup for its topology."""
UID_CHARACTERS = 8
JOB_CHARACTERS = naming.LABEL_LIMIT - UID_CHARACTERS - len("--999999")
"""Characters of the job's name in a group's name, so that the group's name fits into a label value."""


@dataclass(frozen=True, slots=True)
class Scheduler:
    """A gang scheduler and its API."""

    name: str
    api_version: str
    resource: str
    """Plural; the cluster serves this resource if the scheduler is installed."""
    remedy: str
    """How to fix a missing scheduler."""
    scheduler_name: str | None = None
    """The pods' spec.schedulerName: the default name in the project's installation. None: Kubernetes' own scheduler."""
    older: tuple[str, ...] = ()
    """Other versions of the API, newest first, for clusters that do not serve `api_version`."""

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
    "enable one of them and the feature gate GenericWorkload in Kubernetes 1.36 or newer",
    older=("v1alpha3", "v1alpha2"),
)
SCHEDULERS: Final[Mapping[str, Scheduler]] = {
    "kueue": KUEUE,
    "volcano": VOLCANO,
    "coscheduling": COSCHEDULING,
    "kai": KAI,
    "kubernetes": KUBERNETES,
}
"""Keys are the values of spec.scheduling.gang."""


def group_name(job: HFTitanJob, attempt: int) -> str:
    """Return the name of the attempt's group, which fits into a label value.

    It contains the job's UID: a leftover group of an earlier job with the same name must not adopt the new pods.
    """
    name = job.metadata.name[:JOB_CHARACTERS].rstrip("-.")
    return f"{name}-{job.metadata.uid[:UID_CHARACTERS]}-{attempt}"


@dataclass(frozen=True, slots=True)
class PodAdditions:
    """Labels, annotations and spec fields that the pods of an attempt need for their scheduler."""

    labels: Mapping[str, str] = field(default_factory=dict)
    annotations: Mapping[str, str] = field(default_factory=dict)
    spec: Mapping[str, Any] = field(default_factory=dict)


def required(job: HFTitanJob) -> Require | None:
    """Return the object that must exist before the pods are created: without Kueue, the pods would start at once."""
    wanted = job.spec.scheduling
    if wanted.gang != "kueue" or wanted.queue is None:
        return None
    return Require(KUEUE.api_version, KUEUE.resource, wanted.queue)


def pod_group(job: HFTitanJob, nodes: int) -> tuple[str, dict[str, Any]] | None:
    """Return API version and spec of the PodGroup of an attempt with `nodes` pods; None if the scheduler uses none."""
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
                # The gang cannot run with one pod less, so it is preempted as a whole and releases all its nodes.
                "disruptionMode": {"all": {}},
                **priority,
            }
            if wanted.topology_key:
                spec[CONSTRAINTS] = {"topology": [{"key": wanted.topology_key}]}
            return KUBERNETES.api_version, spec
        case _:
            return None


def versions(api_version: str) -> list[str]:
    """Return the API versions in which a PodGroup may be served, the rendered one first."""
    if api_version != KUBERNETES.api_version:
        return [api_version]
    return [api_version, *(f"{KUBERNETES.group}/{version}" for version in KUBERNETES.older)]


def in_version(group: Manifest, api_version: str) -> Manifest:
    """Return a rendered PodGroup in another version of its API. v1alpha2 (Kubernetes 1.36) has a string for the mode of
    disruption; all else is the same."""
    spec = group["spec"]
    if api_version.endswith("/v1alpha2") and "disruptionMode" in spec:
        spec = {**spec, "disruptionMode": "PodGroup"}
    return {**group, "apiVersion": api_version, "spec": spec}


def gatekeeper(job: HFTitanJob, attempt: int, why: str | None = None) -> str | None:
    """Return what removes the scheduling gate of the pods; must fit after `waiting for`. None without a gate.

    `why`: Kueue's message.
    """
    wanted = job.spec.scheduling
    if wanted.gang != "kueue":
        return None
    waits = f"Kueue to admit the workload {group_name(job, attempt)} from queue {wanted.queue}"
    return f"{waits}: {why}" if why else waits


def over(job: HFTitanJob, attempts: Iterable[int]) -> list[DeletePodGroup]:
    """Return the deletions of these attempts' PodGroups: without its pods, a PodGroup would wait forever."""
    group = pod_group(job, 1)
    return [DeletePodGroup(group[0], group_name(job, number)) for number in attempts if number] if group else []


def released(job: HFTitanJob, attempts: Iterable[int]) -> list[DeletePodGroup]:
    """Return the deletions of these attempts' Workloads: Kueue then releases their quota, and all of their pods."""
    if job.spec.scheduling.gang != "kueue":
        return []
    return [DeletePodGroup(KUEUE.api_version, group_name(job, number), KUEUE_WORKLOADS) for number in attempts]


def pod_additions(job: HFTitanJob, attempt: int, nodes: int) -> PodAdditions:
    """Return what each pod of the attempt needs for its scheduler."""
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
            # By default KAI creates a group for an unknown owner, and that group starts as soon as one pod fits.
            annotations = {"pod-group-name": group, "kai.scheduler/skip-podgrouper": "true"}
            labels = {"kai.scheduler/queue": wanted.queue} if wanted.queue else {}
            return PodAdditions(labels, annotations, spec)
        case "kubernetes":
            return PodAdditions(spec={**spec, "schedulingGroup": {"podGroupName": group}})
        case _:
            return PodAdditions(spec=spec)


def _kueue(job: HFTitanJob, group: str, nodes: int) -> tuple[dict[str, str], dict[str, str]]:
    """Return labels and annotations."""
    wanted = job.spec.scheduling
    labels = {"kueue.x-k8s.io/pod-group-name": group}
    if wanted.queue:
        labels[KUEUE_QUEUE] = wanted.queue
    annotations = {
        # With the feature gate WorkloadIdentifierAnnotations, Kueue reads the annotation first, then the label.
        "kueue.x-k8s.io/pod-group-name": group,
        "kueue.x-k8s.io/pod-group-total-count": str(nodes),
        # Pods of a group are never replaced: Kueue releases the quota and its finalizers when all pods have ended.
        "kueue.x-k8s.io/retriable-in-group": "false",
        "kueue.x-k8s.io/pod-group-pod-index-label": naming.LABEL_NODE_INDEX,
    }
    if wanted.topology_key:
        annotations["kueue.x-k8s.io/podset-required-topology"] = wanted.topology_key
    return labels, annotations


def together(job: HFTitanJob, attempt: int) -> dict[str, Any] | None:
    """Return a required pod affinity term that keeps an attempt within one value of topologyKey. None without a
    topologyKey, or if the scheduler handles the key itself.

    Volcano and KAI support topologies too, but as objects whose names cannot be derived from a node label.
    """
    wanted = job.spec.scheduling
    if wanted.topology_key is None or wanted.gang in ("kueue", "kubernetes"):
        return None
    labels = {naming.LABEL_JOB: job.metadata.name, naming.LABEL_ATTEMPT: str(attempt)}
    return {"topologyKey": wanted.topology_key, "labelSelector": {"matchLabels": labels}}


def absent(job: HFTitanJob) -> str:
    """Return the error message for a cluster that does not serve the API of the job's scheduler."""
    wanted = job.spec.scheduling.gang
    scheduler = SCHEDULERS[wanted]
    needed = " or ".join((scheduler.api_version, *scheduler.older))
    return (
        f"spec.scheduling.gang: {wanted} needs {scheduler.resource} of {needed}, which this cluster "
        f"does not have; {scheduler.remedy}, or use gang: none"
    )
