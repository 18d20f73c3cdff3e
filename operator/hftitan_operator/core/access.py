"""The operator's permissions: one table, and the RBAC objects that grant exactly these.

Two modes: the whole cluster, or some namespaces, for tenants who may grant nothing outside their own.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from hftitan_api.models import GROUP, PLURAL
from hftitan_operator.core.scheduling import KUEUE, SCHEDULERS
from hftitan_operator.core.state import Manifest

Scope = Literal["jobs", "gangs", "cluster", "own"]
"""Where: every namespace with jobs to serve; the same, where spec.scheduling.gang is used; the cluster itself; the
operator's own namespace."""


@dataclass(frozen=True, slots=True)
class Access:
    """Verbs on one resource, and what they are for."""

    group: str
    resource: str
    verbs: tuple[str, ...]
    scope: Scope
    why: str


GANGS = (
    Access(KUEUE.group, KUEUE.resource, ("get",), "gangs", "whether the queue of a job is there"),
    *(
        Access(scheduler.group, scheduler.resource, ("create", "delete"), "gangs", f"one for each attempt: {gang}")
        for gang, scheduler in SCHEDULERS.items()
        if scheduler is not KUEUE
    ),
)
TABLE = (
    Access(GROUP, PLURAL, ("get", "list", "watch", "delete"), "jobs", "reads jobs; deletes one when its TTL is over"),
    Access(GROUP, f"{PLURAL}/status", ("patch",), "jobs", "writes the status, never the user's spec"),
    Access("", "pods", ("get", "list", "watch", "create", "delete"), "jobs", "a gang is made and ended, never changed"),
    Access("", "services", ("get", "list", "watch", "create"), "jobs", "the names of the pods"),
    Access("", "configmaps", ("get", "list", "watch", "create"), "jobs", "the trainer's document, immutable"),
    Access("", "events", ("create",), "jobs", "tells humans"),
    *GANGS,
    Access("", "nodes", ("list", "watch"), "cluster", "sees a lost node before its pods are given up"),
    Access("coordination.k8s.io", "leases", ("create", "get", "update"), "own", "of several replicas one acts"),
)
"""No secrets (pods name them, the kubelet reads them), no exec, no patch of pods, no wildcard."""

_LABEL = re.compile(r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?\Z")


@dataclass(frozen=True, slots=True)
class Account:
    """The operator's ServiceAccount."""

    name: str = "hftitan-operator"
    namespace: str = "hftitan-system"

    def __post_init__(self) -> None:
        _label(self.name, "service account")
        _label(self.namespace, "namespace")


def cluster_wide(account: Account) -> tuple[Manifest, ...]:
    """The objects for an operator that serves every namespace."""
    return (*_own(account), *_granted(account, None, _global_name(account), "jobs", "gangs", "cluster"))


def namespaced(
    account: Account, namespaces: Sequence[str], *, nodes: bool = False, gangs: bool = False
) -> tuple[Manifest, ...]:
    """The objects for an operator that serves these namespaces only. ValueError for a name that is none.

    Without `nodes`, which takes a ClusterRole, lost nodes are noticed when the control plane gives their pods up.
    `gangs` is for spec.scheduling.gang; who grants these rights must have them, as few admins of a namespace do.
    """
    scopes: tuple[Scope, ...] = ("jobs", "gangs") if gangs else ("jobs",)
    found = [*_own(account)]
    for namespace in dict.fromkeys(namespaces):
        _label(namespace, "namespace")
        found += _granted(account, namespace, account.name, *scopes)
    if nodes:
        found += _granted(account, None, f"{_global_name(account)}-nodes", "cluster")
    return tuple(found)


def _label(name: str, what: str) -> None:
    if not _LABEL.match(name):
        raise ValueError(f"{name!r} is no name of a {what}; use at most 63 lower-case letters, digits and '-'")


def _own(account: Account) -> tuple[Manifest, ...]:
    service_account = {"apiVersion": "v1", "kind": "ServiceAccount", **_metadata(account.name, account.namespace)}
    return (service_account, *_granted(account, account.namespace, f"{account.name}-lease", "own"))


def _global_name(account: Account) -> str:
    """Of what has no namespace: operators of two namespaces must not overwrite each other's."""
    return f"{account.namespace}:{account.name}"


def _granted(account: Account, namespace: str | None, name: str, *scopes: Scope) -> tuple[Manifest, Manifest]:
    """A role with the rules of the scopes and its binding to the account; in a namespace, or for the cluster."""
    kind = "ClusterRole" if namespace is None else "Role"
    version = {"apiVersion": "rbac.authorization.k8s.io/v1"}
    role = {
        **version,
        "kind": kind,
        **_metadata(name, namespace),
        "rules": [
            {"apiGroups": [a.group], "resources": [a.resource], "verbs": list(a.verbs)}
            for a in TABLE
            if a.scope in scopes
        ],
    }
    binding = {
        **version,
        "kind": f"{kind}Binding",
        **_metadata(name, namespace),
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": kind, "name": name},
        "subjects": [{"kind": "ServiceAccount", "name": account.name, "namespace": account.namespace}],
    }
    return role, binding


def _metadata(name: str, namespace: str | None) -> dict[str, Any]:
    labels = {"app.kubernetes.io/name": "hftitan", "app.kubernetes.io/component": "operator"}
    return {"metadata": {"name": name, **({"namespace": namespace} if namespace else {}), "labels": labels}}
