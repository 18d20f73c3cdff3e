"""The operator's permissions: one table, and the RBAC objects that grant exactly these permissions.

There are two modes: the whole cluster, or selected namespaces, for tenants who cannot grant cluster-wide permissions.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from hftitan_api.models import GROUP, PLURAL
from hftitan_operator.core.rendering.scheduling import KUEUE, KUEUE_WORKLOADS, SCHEDULERS
from hftitan_operator.core.state import Manifest

Scope = Literal["jobs", "gangs", "cluster", "own"]
"""Where the permission applies: namespaces with jobs (gangs: if jobs use spec.scheduling.gang), cluster-scoped objects,
or the operator's own namespace."""


@dataclass(frozen=True, slots=True)
class Access:
    """The verbs on one resource, and their purpose."""

    group: str
    resource: str
    verbs: tuple[str, ...]
    scope: Scope
    why: str


GANGS = (
    Access(KUEUE.group, KUEUE.resource, ("get",), "gangs", "check that a job's queue exists"),
    Access(KUEUE.group, KUEUE_WORKLOADS, ("get", "delete"), "gangs", "show why a job waits; release an ended attempt"),
    *(
        Access(scheduler.group, scheduler.resource, ("create", "delete"), "gangs", f"one per attempt, for gang: {gang}")
        for gang, scheduler in SCHEDULERS.items()
        if scheduler is not KUEUE
    ),
)
TABLE = (
    Access(GROUP, PLURAL, ("get", "list", "watch", "delete"), "jobs", "read jobs; delete a job after its TTL"),
    Access(GROUP, f"{PLURAL}/status", ("patch",), "jobs", "write the status, never the spec"),
    Access("", "pods", ("get", "list", "watch", "create", "delete"), "jobs", "create and delete pods, never edit them"),
    Access("", "services", ("get", "list", "watch", "create"), "jobs", "give pods DNS names"),
    Access("", "configmaps", ("get", "list", "watch", "create"), "jobs", "store the trainer's immutable configuration"),
    Access("", "events", ("create",), "jobs", "report events of a job"),
    *GANGS,
    Access("", "nodes", ("list", "watch"), "cluster", "detect a lost node before its pods are evicted"),
    Access("coordination.k8s.io", "leases", ("create", "get", "update"), "own", "elect the active replica"),
)
"""No secrets (pods reference them, the kubelet reads them), no exec, no patch of pods, no wildcard."""

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
    """Return the objects for an operator that serves all namespaces."""
    return (*_own(account), *_granted(account, None, _global_name(account), "jobs", "gangs", "cluster"))


def namespaced(
    account: Account, namespaces: Sequence[str], *, nodes: bool = False, gangs: bool = False
) -> tuple[Manifest, ...]:
    """Return the objects for an operator that serves only these namespaces. Raises ValueError for an invalid name.

    `nodes` needs a ClusterRole; without it, the operator detects a lost node when the control plane evicts its pods.
    `gangs` is for spec.scheduling.gang. Kubernetes lets a user grant only permissions that the user has; admins of a
    namespace usually have no permissions for the objects of gang schedulers.
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
        raise ValueError(f"{name!r} is not a valid {what} name; use at most 63 lower-case letters, digits and '-'")


def _own(account: Account) -> tuple[Manifest, ...]:
    service_account = {"apiVersion": "v1", "kind": "ServiceAccount", **_metadata(account.name, account.namespace)}
    return (service_account, *_granted(account, account.namespace, f"{account.name}-lease", "own"))


def _global_name(account: Account) -> str:
    """Name cluster-scoped objects so that operators in two namespaces do not overwrite each other's."""
    return f"{account.namespace}:{account.name}"


def _granted(account: Account, namespace: str | None, name: str, *scopes: Scope) -> tuple[Manifest, Manifest]:
    """Return a role with the rules of the scopes, and its binding; for the cluster if `namespace` is None."""
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
