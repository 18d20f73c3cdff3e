"""Names, labels and owners of a job's objects. They depend on the job alone, so every pass finds the objects again."""

from __future__ import annotations

import re
from typing import Any

from hftitan_api.models import API_VERSION, KIND, HFTitanJob

GROUP_LABEL_PREFIX = "hftitan.io/"
LABEL_JOB = "hftitan.io/job"
LABEL_ATTEMPT = "hftitan.io/attempt"
LABEL_NODE_INDEX = "hftitan.io/node-index"
MANAGED_BY = "hftitan-operator"

LABEL_LIMIT = 63
"""Of a pod's host name and of a label's value (RFC 1123)."""

RENDEZVOUS_PORT = 29400
CONFIG_KEY = "trainer.json"


def pod_name(job: str, attempt: int, index: int, nodes: int) -> str:
    """Also the pod's host name. The attempt is part of it, so that no name outlives its gang.

    With as many digits as the last of the `nodes` has: torchrun numbers them in the order of their names as text.
    """
    return f"{job}-{attempt}-{index:0{len(str(nodes - 1))}d}"


def service_name(job: str) -> str:
    return job


def config_name(job: str) -> str:
    return f"{job}-config"


def host_fqdn(pod: str, job: str, namespace: str) -> str:
    """The DNS name of a pod under the job's headless Service; resolves inside the cluster whatever its domain."""
    return f"{pod}.{service_name(job)}.{namespace}.svc"


def rendezvous_id(uid: str, attempt: int) -> str:
    """New for each attempt: torchrun closes an id for good, and a reused one is refused (pytorch#82160)."""
    return f"{uid}-{attempt}"


def job_labels(job: str) -> dict[str, str]:
    """Labels of every object of the job."""
    return {
        LABEL_JOB: job,
        "app.kubernetes.io/name": "hftitan",
        "app.kubernetes.io/instance": job,
        "app.kubernetes.io/component": "trainer",
        "app.kubernetes.io/managed-by": MANAGED_BY,
    }


def pod_labels(job: str, attempt: int, index: int) -> dict[str, str]:
    return {**job_labels(job), LABEL_ATTEMPT: str(attempt), LABEL_NODE_INDEX: str(index)}


def selector(job: str) -> dict[str, str]:
    """Finds the job's pods of every attempt."""
    return {LABEL_JOB: job}


def is_pod_of(name: str, job: str) -> bool:
    """Whether a pod of this name is the job's, of any attempt: `x-1-0` is of `x`, and `x-1-1-0` is of `x-1`."""
    return re.fullmatch(rf"{re.escape(job)}-[0-9]+-[0-9]+", name) is not None


def metadata(
    job: HFTitanJob, name: str, labels: dict[str, str], annotations: dict[str, str] | None = None
) -> dict[str, Any]:
    """Of an object that belongs to the job."""
    found: dict[str, Any] = {
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
        found["annotations"] = dict(sorted(annotations.items()))
    return found
