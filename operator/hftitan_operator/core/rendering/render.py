"""Renders the objects of an attempt: a headless Service, a ConfigMap, one pod per node, and optionally a PodGroup.

Rendering is deterministic, returns plain dicts and never changes its input. A cluster and `hftitan run` use the same
objects.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from hftitan_api.mesh import MeshPlan
from hftitan_api.models import HFTitanJob
from hftitan_api.wire import TrainerSpec
from hftitan_operator.core import naming
from hftitan_operator.core.rendering import scheduling
from hftitan_operator.core.rendering.pods import pods
from hftitan_operator.core.state import Manifest


@dataclass(frozen=True, slots=True)
class Rendered:
    """The objects of one attempt; Service and ConfigMap are the same for all attempts."""

    service: Manifest
    config: Manifest
    pods: tuple[Manifest, ...]
    pod_group: Manifest | None = None
    """The PodGroup, if the scheduler of spec.scheduling.gang uses one."""

    @property
    def objects(self) -> tuple[Manifest, ...]:
        """All objects in creation order: a pod needs its group, its config and its Service."""
        group = () if self.pod_group is None else (self.pod_group,)
        return (*group, self.service, self.config, *self.pods)


def render(job: HFTitanJob, plan: MeshPlan, attempt: int) -> Rendered:
    """Return all objects of an attempt (from 1). Raises SpecError if `spec.pod` has conflicts."""
    made = tuple(pods(job, plan, attempt, range(plan.degrees.nodes)))
    return Rendered(service(job), config(job, plan), made, pod_group(job, plan, attempt))


def service(job: HFTitanJob) -> Manifest:
    """Return the headless Service that gives pods DNS names, also before they are ready (for the rendezvous)."""
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": naming.metadata(job, naming.service_name(job.metadata.name), naming.job_labels(job.metadata.name)),
        "spec": {
            "clusterIP": "None",
            "publishNotReadyAddresses": True,
            "selector": naming.selector(job.metadata.name),
            "ports": [
                {"name": "metrics", "port": job.spec.monitoring.port, "targetPort": "metrics", "protocol": "TCP"},
                {
                    "name": "rendezvous",
                    "port": naming.RENDEZVOUS_PORT,
                    "targetPort": "rendezvous",
                    "protocol": "TCP",
                },
            ],
        },
    }


def config(job: HFTitanJob, plan: MeshPlan) -> Manifest:
    """Return the ConfigMap with the TrainerSpec. It is immutable, so all attempts of a job read the same document."""
    document = json.dumps(trainer_spec(job, plan).to_dict(), indent=2, sort_keys=True)
    return {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": naming.metadata(job, naming.config_name(job.metadata.name), naming.job_labels(job.metadata.name)),
        "immutable": True,
        "data": {naming.CONFIG_KEY: document + "\n"},
    }


def pod_group(job: HFTitanJob, plan: MeshPlan, attempt: int) -> Manifest | None:
    """Return the PodGroup of an attempt, or None if the scheduler of spec.scheduling.gang uses none."""
    asked = scheduling.pod_group(job, plan.degrees.nodes)
    if asked is None:
        return None
    api_version, spec = asked
    labels = {**naming.job_labels(job.metadata.name), naming.LABEL_ATTEMPT: str(attempt)}
    metadata = naming.metadata(job, scheduling.group_name(job, attempt), labels)
    return {"apiVersion": api_version, "kind": scheduling.POD_GROUP, "metadata": metadata, "spec": spec}


def trainer_spec(job: HFTitanJob, plan: MeshPlan) -> TrainerSpec:
    """Return the trainer's document, with the defaults that depend on the device or the mesh resolved."""
    spec, gpu = job.spec, plan.degrees.device == "gpu"
    resolved: dict[str, Any] = {}
    if spec.training.mixed_precision is None:
        resolved["mixed_precision"] = "bfloat16" if gpu else "float32"
    if spec.training.activation_checkpoint is None:
        resolved["activation_checkpoint"] = "selective" if gpu else "none"
    if spec.training.pipeline_schedule is None and plan.degrees.pp > 1:
        resolved["pipeline_schedule"] = "1F1B"
    return TrainerSpec(
        job_name=job.metadata.name,
        job_namespace=job.metadata.namespace,
        job_uid=job.metadata.uid,
        mesh=plan.degrees,
        model=spec.model,
        dataset=spec.dataset,
        training=spec.training.model_copy(update=resolved),
        optimizer=spec.optimizer,
        lr_schedule=spec.lr_schedule,
        checkpoint=spec.checkpoint,
        validation=spec.validation,
        monitoring=spec.monitoring,
        hang_timeout_seconds=spec.run_policy.hang_timeout_seconds,
        startup_timeout_seconds=spec.run_policy.startup_timeout_seconds,
    )
