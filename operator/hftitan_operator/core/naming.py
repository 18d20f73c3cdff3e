"""Names and labels of what belongs to a job: functions of the job alone, so that any pass finds them again."""

from __future__ import annotations

import re

GROUP_LABEL_PREFIX = "hftitan.io/"
LABEL_JOB = "hftitan.io/job"
LABEL_ATTEMPT = "hftitan.io/attempt"
LABEL_NODE_INDEX = "hftitan.io/node-index"
MANAGED_BY = "hftitan-operator"

LABEL_LIMIT = 63
"""Of a pod's host name and of a label's value (RFC 1123)."""
JOB_NAME_LIMIT = 50
"""`<job>-<attempt>-<index>` stays within 63 characters up to attempt 999,999 and pod 99,999."""

RENDEZVOUS_PORT = 29400
CONFIG_KEY = "trainer.json"

_JOB_NAME = re.compile(r"[a-z]([-a-z0-9]*[a-z0-9])?")


def job_name_problem(name: str) -> str | None:
    """What is wrong with a job's name, or None. Its Service needs a DNS-1035 label: stricter than an object's name."""
    if len(name) > JOB_NAME_LIMIT:
        return f"{len(name)} characters; pods are named <job>-<attempt>-<index>, so use at most {JOB_NAME_LIMIT}"
    if not _JOB_NAME.fullmatch(name):
        return f"{name!r} is no DNS label; use lower-case letters, digits and '-', starting with a letter"
    return None


def pod_name(job: str, attempt: int, index: int) -> str:
    """Also the pod's host name. The attempt is part of it: a name is never used for two pods."""
    return f"{job}-{attempt}-{index}"


def service_name(job: str) -> str:
    return job


def config_name(job: str) -> str:
    return f"{job}-config"


def host_fqdn(job: str, namespace: str, attempt: int, index: int) -> str:
    """The DNS name of one pod under the job's headless Service; resolves inside the cluster whatever its domain."""
    return f"{pod_name(job, attempt, index)}.{service_name(job)}.{namespace}.svc"


def rendezvous_endpoint(job: str, namespace: str, attempt: int) -> str:
    return f"{host_fqdn(job, namespace, attempt, 0)}:{RENDEZVOUS_PORT}"


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
