"""From job, plan and attempt to the objects of the cluster: a headless Service, a ConfigMap, a pod for each node.

Deterministic; plain dicts; the input is never changed. Whoever runs the pods (a cluster, or this machine) runs these.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from hftitan_api.mesh import MeshPlan
from hftitan_api.models import API_VERSION, KIND, HFTitanJob, SecretKey
from hftitan_api.pod import TRAINER_IMAGE
from hftitan_api.wire import (
    ENV_ATTEMPT,
    ENV_CONFIG,
    ENV_NODE_INDEX,
    ENV_OUTPUT,
    ENV_POD_IP,
    ENV_TERMINATION_LOG,
    TrainerSpec,
)
from hftitan_operator.core import naming, podcheck, quantity, scheduling, sizing
from hftitan_operator.core.podcheck import CACHE_DIR, CONFIG_DIR, OUTPUT_DIR, SHM_DIR, TERMINATION_LOG, TMP_DIR
from hftitan_operator.core.state import Manifest

RUN_AS = 1000
"""User and group of the trainer image."""
NODE_LOSS_SECONDS = 30
"""How long a pod stays on a node that went silent, instead of Kubernetes' five minutes."""
RENDEZVOUS_SECONDS = 86_400
"""torchrun never gives up waiting for its peers: a pod may sit in a scheduler's queue for hours, and whether to wait
or to start anew is the operator's decision. A peer that dies breaks the connection at once."""
WORKER_RESTARTS = 3
"""In-place restarts by torchrun when a process dies: the pods, their images and caches stay. What no restart can mend
(the user's mistakes) the trainer ends itself, by stopping its own torchrun, so that it is not repeated."""
MONITOR_SECONDS = 0.5


@dataclass(frozen=True, slots=True)
class Rendered:
    """The objects of one attempt; Service and ConfigMap are the same for each."""

    service: Manifest
    config: Manifest
    pods: tuple[Manifest, ...]
    pod_group: Manifest | None = None
    """What spec.scheduling.gang reads of the attempt, if it is an object."""

    @property
    def objects(self) -> tuple[Manifest, ...]:
        """In the order to create them: a pod finds its group, its config and its name service."""
        group = () if self.pod_group is None else (self.pod_group,)
        return (*group, self.service, self.config, *self.pods)


def render(job: HFTitanJob, plan: MeshPlan, attempt: int) -> Rendered:
    """All objects of an attempt (from 1). Raises SpecError when `spec.pod` collides with what the operator sets."""
    made = tuple(pods(job, plan, attempt, range(plan.degrees.nodes)))
    return Rendered(service(job), config(job, plan), made, pod_group(job, plan, attempt))


def service(job: HFTitanJob) -> Manifest:
    """The headless Service that gives the pods their DNS names, before they are ready: rendezvous comes first."""
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": _metadata(job, naming.service_name(job.metadata.name), naming.job_labels(job.metadata.name)),
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
    """The ConfigMap with the TrainerSpec. Immutable: every attempt of a job reads the same document."""
    document = json.dumps(trainer_spec(job, plan).to_dict(), indent=2, sort_keys=True)
    return {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": _metadata(job, naming.config_name(job.metadata.name), naming.job_labels(job.metadata.name)),
        "immutable": True,
        "data": {naming.CONFIG_KEY: document + "\n"},
    }


def pod_group(job: HFTitanJob, plan: MeshPlan, attempt: int) -> Manifest | None:
    """The PodGroup of an attempt, where spec.scheduling.gang has one."""
    asked = scheduling.pod_group(job, plan.degrees.nodes)
    if asked is None:
        return None
    api_version, spec = asked
    labels = {**naming.job_labels(job.metadata.name), naming.LABEL_ATTEMPT: str(attempt)}
    metadata = _metadata(job, scheduling.group_name(job, attempt), labels)
    return {"apiVersion": api_version, "kind": scheduling.POD_GROUP, "metadata": metadata, "spec": spec}


def trainer_spec(job: HFTitanJob, plan: MeshPlan) -> TrainerSpec:
    """What the trainer reads, with the defaults that depend on the device or mesh filled in."""
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


def pods(job: HFTitanJob, plan: MeshPlan, attempt: int, indices: Sequence[int]) -> list[Manifest]:
    """Nodes of the gang: torchrun, set up by environment variables only, and the trainer below it.

    What does not depend on the index is made once and is the same object in all of them: a job may have thousands.
    Raises SpecError when it may not have those that are asked for.
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
        own = {"args": _arguments(job, plan, index), "env": _env(job, name, host, attempt, index, threads)}
        pod = {
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": _metadata(job, name, labels, annotations),
            "spec": {**spec, "hostname": name, "containers": [{**container, **own}]},
        }
        made.append(pod)
    return made


def _container(job: HFTitanJob, resources: dict[str, Any]) -> dict[str, Any]:
    """Without its arguments and environment."""
    wanted = job.spec.pod
    container: dict[str, Any] = {
        "name": "trainer",
        "image": wanted.image or TRAINER_IMAGE,
        "command": ["torchrun"],
        "args": [],
        "env": [],
        "ports": [
            {"name": "metrics", "containerPort": job.spec.monitoring.port, "protocol": "TCP"},
            {"name": "rendezvous", "containerPort": naming.RENDEZVOUS_PORT, "protocol": "TCP"},
        ],
        # Readiness only, and only for display: a probe that kills would end steps that are merely long.
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
    """Without host name and container."""
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
            # A checkpoint volume may hold a million files: do not walk them at every start.
            "fsGroupChangePolicy": "OnRootMismatch",
            "seccompProfile": {"type": "RuntimeDefault"},
        },
        "containers": [],
        "volumes": _volumes(job, shm),
        "tolerations": _tolerations(job, gpu=plan.degrees.device == "gpu"),
        **_placement(job, attempt),
    }


def _metadata(
    job: HFTitanJob, name: str, labels: dict[str, str], annotations: dict[str, str] | None = None
) -> dict[str, Any]:
    metadata: dict[str, Any] = {
        "name": name,
        "namespace": job.metadata.namespace,
        "labels": dict(sorted(labels.items())),
        # No finalizers anywhere: the garbage collector follows the owner, also when no operator runs.
        "ownerReferences": [
            {
                "apiVersion": API_VERSION,
                "kind": KIND,
                "name": job.metadata.name,
                "uid": job.metadata.uid,
                "controller": True,
                "blockOwnerDeletion": False,
            }
        ],
    }
    if annotations:
        metadata["annotations"] = dict(sorted(annotations.items()))
    return metadata


def _arguments(job: HFTitanJob, plan: MeshPlan, index: int) -> list[str]:
    """torchrun's. Not as PET_* variables: the API server tracks the owner of each field of each variable, and a list of
    words is one field to it; a pod costs it a tenth less."""
    conf = {
        # Given, not guessed: torchrun's guess compares host names and misreads those of pods (pytorch#73380).
        "is_host": "true" if index == 0 else "false",
        "join_timeout": str(RENDEZVOUS_SECONDS),
        "read_timeout": str(RENDEZVOUS_SECONDS),
    }
    # After SIGTERM torchrun would kill its workers at 30 s, in the middle of their last checkpoint.
    shutdown = sizing.grace_seconds(job.spec.checkpoint) - sizing.SHUTDOWN_MARGIN_SECONDS
    return [
        f"--nnodes={plan.degrees.nodes}",
        f"--nproc-per-node={plan.degrees.ranks_per_node}",
        "--rdzv-backend=c10d",
        f"--rdzv-conf={','.join(f'{key}={value}' for key, value in conf.items())}",
        f"--max-restarts={WORKER_RESTARTS}",
        f"--monitor-interval={MONITOR_SECONDS}",
        f"--shutdown-timeout={shutdown}",
        "-m",
        "hftitan_trainer",
    ]


def _env(job: HFTitanJob, name: str, host: str, attempt: int, index: int, threads: int) -> list[dict[str, Any]]:
    """`name`: of the pod; `host`: of the pod with the rendezvous."""
    meta, spec = job.metadata, job.spec
    fixed = {
        # torchrun reads every option from PET_<OPTION> (torch/distributed/argparse_util.py): these three, since a local
        # run puts addresses of its own in their place.
        "PET_RDZV_ENDPOINT": f"{naming.host_fqdn(host, meta.name, meta.namespace)}:{naming.RENDEZVOUS_PORT}",
        "PET_RDZV_ID": naming.rendezvous_id(meta.uid, attempt),
        # A name, not the address: in its order as text torchrun numbers the nodes, so that rank and index agree (and
        # stages of a pipeline are where `hftitan plan` says). Resolved for node 0 alone, as the endpoint is.
        "PET_LOCAL_ADDR": naming.host_fqdn(name, meta.name, meta.namespace),
        # torch 2.15 keeps one store over restarts in place, with the addresses of dead peers under the same keys: more
        # than half of such restarts hang or fail. With this each round of the rendezvous has a store of its own.
        "TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1",
        ENV_CONFIG: f"{CONFIG_DIR}/{naming.CONFIG_KEY}",
        ENV_OUTPUT: OUTPUT_DIR,
        ENV_TERMINATION_LOG: TERMINATION_LOG,
        ENV_ATTEMPT: str(attempt),
        ENV_NODE_INDEX: str(index),
    }
    theirs = {var.name for var in spec.pod.env}
    defaults = {
        "HF_HOME": CACHE_DIR,
        "HOME": TMP_DIR,  # the root file system is read-only, and compilers write below HOME
        "OMP_NUM_THREADS": str(threads),
        "PYTHONUNBUFFERED": "1",
    }
    env: list[dict[str, Any]] = [{"name": key, "value": value} for key, value in fixed.items()]
    env.append({"name": ENV_POD_IP, "valueFrom": {"fieldRef": {"fieldPath": "status.podIP"}}})
    env += [{"name": key, "value": value} for key, value in defaults.items() if key not in theirs]
    if spec.pod.hf_token_secret:
        env.append(_from_secret("HF_TOKEN", spec.pod.hf_token_secret))
    if spec.monitoring.wandb_secret:
        env.append(_from_secret("WANDB_API_KEY", spec.monitoring.wandb_secret))
    return env + [var.to_dict() for var in spec.pod.env]


def _from_secret(name: str, secret: SecretKey) -> dict[str, Any]:
    """By reference: the value is in no object that the operator writes or reads."""
    return {"name": name, "valueFrom": {"secretKeyRef": {"name": secret.name, "key": secret.key}}}


def _mounts(job: HFTitanJob) -> list[dict[str, Any]]:
    output: dict[str, Any] = {"name": "output", "mountPath": OUTPUT_DIR}
    if job.spec.checkpoint.volume or job.spec.checkpoint.folder:
        output["subPath"] = job.spec.checkpoint.folder or job.metadata.name
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
    """The optional fields, left out when unset."""
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
