"""Names, labels and owners of a job's objects. They depend only on the job, so every pass finds the same objects."""

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
"""Maximum length of a pod's host name and of a label value (RFC 1123)."""

RENDEZVOUS_PORT = 29400
CONFIG_KEY = "trainer.json"


def pod_name(job: str, attempt: int, index: int, nodes: int) -> str:
    """Return the pod's name, which is also its host name. It contains the attempt, so each attempt has its own names.

    The index is padded to the digits of the last index: torchrun sorts the nodes by their names as text.
    """
    return f"{job}-{attempt}-{index:0{len(str(nodes - 1))}d}"


def service_name(job: str) -> str:
    return job


def config_name(job: str) -> str:
    return f"{job}-config"


def host_fqdn(pod: str, job: str, namespace: str) -> str:
    """Return the pod's DNS name under the job's headless Service; it resolves in a cluster of any domain."""
    return f"{pod}.{service_name(job)}.{namespace}.svc"


def rendezvous_id(uid: str, attempt: int) -> str:
    """Return an id for one attempt. torchrun closes an id permanently and rejects its reuse (pytorch#82160)."""
    return f"{uid}-{attempt}"


def job_labels(job: str) -> dict[str, str]:
    """Return the labels of every object of the job."""
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
    """Return the selector of the job's pods, of all attempts."""
    return {LABEL_JOB: job}


def is_pod_of(name: str, job: str) -> bool:
    """Return whether the job has a pod of this name in any attempt: `x` has `x-1-0`, and `x-1` has `x-1-1-0`."""
    return re.fullmatch(rf"{re.escape(job)}-[0-9]+-[0-9]+", name) is not None


def metadata(
    job: HFTitanJob, name: str, labels: dict[str, str], annotations: dict[str, str] | None = None
) -> dict[str, Any]:
    """Return the metadata of an object that the job owns."""
    found: dict[str, Any] = {
        "name": name,
        "namespace": job.metadata.namespace,
        "labels": dict(sorted(labels.items())),
        # No finalizers: the garbage collector follows the owner reference, also while no operator runs.
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


def output_folder(job: HFTitanJob) -> str:
    """Return the folder in the checkpoint volume for checkpoint/ and export/."""
    return job.spec.checkpoint.folder or job.metadata.name
