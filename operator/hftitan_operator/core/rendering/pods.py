"""Renders the pods of an attempt: one container each, compliant with Pod Security `restricted`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from hftitan_api.mesh import MeshPlan
from hftitan_api.models import HFTitanJob
from hftitan_api.pod import TRAINER_IMAGE
from hftitan_operator.core import naming
from hftitan_operator.core.rendering import podcheck, quantity, scheduling, sizing, torchrun
from hftitan_operator.core.rendering.podcheck import (
    CACHE_DIR,
    CONFIG_DIR,
    OUTPUT_DIR,
    SHM_DIR,
    TERMINATION_LOG,
    TMP_DIR,
)
from hftitan_operator.core.rendering.torchrun import AGENT
from hftitan_operator.core.state import Manifest

RUN_AS = 1000
"""User and group of the trainer image."""
NODE_LOSS_SECONDS = 30
"""How long a pod stays on an unresponsive node; Kubernetes' default is five minutes."""


def pods(job: HFTitanJob, plan: MeshPlan, attempt: int, indices: Sequence[int]) -> list[Manifest]:
    """Return the pods with these indices. Each pod is one node of the gang and runs torchrun, which starts the trainer.

    The parts that do not depend on the index are shared objects: a job may have thousands of pods. Raises SpecError if
    `spec.pod` has conflicts.
    """
    for problem in podcheck.problems(job.spec) if indices else ():
        raise problem
    wanted = job.spec.pod
    shm = sizing.shm(wanted, plan.degrees)
    resources = sizing.resources(wanted, plan.degrees, shm)
    threads = sizing.threads_per_rank(resources["requests"], plan.degrees)
    container = _container(job, resources)
    nodes = plan.degrees.nodes
    added = scheduling.pod_additions(job, attempt, nodes)
    spec = {**_pod_spec(job, plan, attempt, shm), **added.spec}
    annotations = {**wanted.annotations, **added.annotations}
    made = []
    host = naming.pod_name(job.metadata.name, attempt, 0, nodes)
    for index in indices:
        name = naming.pod_name(job.metadata.name, attempt, index, nodes)
        labels = {**wanted.labels, **naming.pod_labels(job.metadata.name, attempt, index), **added.labels}
        own = {
            "args": torchrun.arguments(job, plan, index),
            "env": torchrun.environment(job, name, host, attempt, index, threads),
        }
        pod = {
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": naming.metadata(job, name, labels, annotations),
            "spec": {**spec, "hostname": name, "containers": [{**container, **own}]},
        }
        made.append(pod)
    return made


def _container(job: HFTitanJob, resources: dict[str, Any]) -> dict[str, Any]:
    """Return the container without arguments and environment."""
    wanted = job.spec.pod
    container: dict[str, Any] = {
        "name": "trainer",
        "image": wanted.image or TRAINER_IMAGE,
        "command": [AGENT],
        "args": [],
        "env": [],
        "ports": [
            {"name": "metrics", "containerPort": job.spec.monitoring.port, "protocol": "TCP"},
            {"name": "rendezvous", "containerPort": naming.RENDEZVOUS_PORT, "protocol": "TCP"},
        ],
        # Readiness only: a liveness probe would kill the trainer during a long step.
        "readinessProbe": {
            "httpGet": {"path": "/healthz", "port": "metrics", "scheme": "HTTP"},
            "periodSeconds": 10,
            "timeoutSeconds": 5,
            "failureThreshold": 3,
        },
        "resources": resources,
        "volumeMounts": _mounts(job),
        "terminationMessagePath": TERMINATION_LOG,
        "terminationMessagePolicy": "File",
        "securityContext": {
            "allowPrivilegeEscalation": False,
            "capabilities": {"drop": ["ALL"]},
            "privileged": False,
            "readOnlyRootFilesystem": True,
        },
    }
    if wanted.image_pull_policy:
        container["imagePullPolicy"] = wanted.image_pull_policy
    return container


def _pod_spec(job: HFTitanJob, plan: MeshPlan, attempt: int, shm: int) -> dict[str, Any]:
    """Return the pod spec without host name and container."""
    return {
        "restartPolicy": "Never",
        "hostname": "",
        "subdomain": naming.service_name(job.metadata.name),
        "automountServiceAccountToken": False,
        "enableServiceLinks": False,
        "terminationGracePeriodSeconds": sizing.grace_seconds(job.spec.checkpoint),
        "securityContext": {
            "runAsNonRoot": True,
            "runAsUser": RUN_AS,
            "runAsGroup": RUN_AS,
            "fsGroup": RUN_AS,
            # A checkpoint volume may hold a million files; changing the group of each at every start would be slow.
            "fsGroupChangePolicy": "OnRootMismatch",
            "seccompProfile": {"type": "RuntimeDefault"},
        },
        "containers": [],
        "volumes": _volumes(job, shm),
        "tolerations": _tolerations(job, gpu=plan.degrees.device == "gpu"),
        **_placement(job, attempt),
    }


def _mounts(job: HFTitanJob) -> list[dict[str, Any]]:
    output: dict[str, Any] = {"name": "output", "mountPath": OUTPUT_DIR}
    if job.spec.checkpoint.volume or job.spec.checkpoint.folder:
        output["subPath"] = naming.output_folder(job)
    ours = [
        {"name": "config", "mountPath": CONFIG_DIR, "readOnly": True},
        output,
        {"name": "cache", "mountPath": CACHE_DIR},
        {"name": "shm", "mountPath": SHM_DIR},
        {"name": "tmp", "mountPath": TMP_DIR},
    ]
    return ours + [mount.to_dict() for mount in job.spec.pod.volume_mounts]


def _volumes(job: HFTitanJob, shm: int) -> list[dict[str, Any]]:
    ours: list[dict[str, Any]] = [
        {
            "name": "config",
            "configMap": {
                "name": naming.config_name(job.metadata.name),
                "items": [{"key": naming.CONFIG_KEY, "path": naming.CONFIG_KEY}],
            },
        },
        {"name": "output", **_claim_or_scratch(job.spec.checkpoint.volume)},
        {"name": "cache", **_claim_or_scratch(job.spec.pod.cache_volume)},
        {"name": "shm", "emptyDir": {"medium": "Memory", "sizeLimit": quantity.mebibytes(shm)}},
        {"name": "tmp", "emptyDir": {}},
    ]
    return ours + [volume.to_dict() for volume in job.spec.pod.volumes]


def _claim_or_scratch(claim: str | None) -> dict[str, Any]:
    return {"persistentVolumeClaim": {"claimName": claim}} if claim else {"emptyDir": {}}


def _tolerations(job: HFTitanJob, *, gpu: bool) -> list[dict[str, Any]]:
    theirs = [toleration.to_dict() for toleration in job.spec.pod.tolerations]
    keys = {toleration.get("key") for toleration in theirs}
    ours: list[dict[str, Any]] = [
        {"key": key, "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": NODE_LOSS_SECONDS}
        for key in ("node.kubernetes.io/not-ready", "node.kubernetes.io/unreachable")
        if key not in keys
    ]
    if gpu and job.spec.pod.gpu_resource not in keys:
        ours.append({"key": job.spec.pod.gpu_resource, "operator": "Exists", "effect": "NoSchedule"})
    return ours + theirs


def _placement(job: HFTitanJob, attempt: int) -> dict[str, Any]:
    """Return the optional placement fields that are set."""
    wanted = job.spec.pod.to_dict()
    term = scheduling.together(job, attempt)
    if term is not None:
        of_pods = wanted.setdefault("affinity", {}).setdefault("podAffinity", {})
        of_pods.setdefault("requiredDuringSchedulingIgnoredDuringExecution", []).append(term)
    chosen = {key: wanted[key] for key in ("nodeSelector", "affinity", "runtimeClassName") if wanted.get(key)}
    if job.spec.pod.image_pull_secrets:
        chosen["imagePullSecrets"] = [{"name": name} for name in job.spec.pod.image_pull_secrets]
    if job.spec.scheduling.priority_class:
        chosen["priorityClassName"] = job.spec.scheduling.priority_class
    return chosen
