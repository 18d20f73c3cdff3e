"""The operator's permissions: only those of the table, each granted only where it is needed."""

from __future__ import annotations

import pytest

from hftitan_operator.core.rendering.access import TABLE, Account, cluster_wide, namespaced

# A second copy of the permissions, so that a wider permission needs a change here too.
VERBS = {
    "hftitan.io/hftitanjobs": {"get", "list", "watch", "delete"},
    "hftitan.io/hftitanjobs/status": {"patch"},
    "/pods": {"get", "list", "watch", "create", "delete"},
    "/services": {"get", "list", "watch", "create"},
    "/configmaps": {"get", "list", "watch", "create"},
    "/events": {"create"},
    "/nodes": {"list", "watch"},
    "coordination.k8s.io/leases": {"get", "create", "update"},
    "kueue.x-k8s.io/localqueues": {"get"},
    "kueue.x-k8s.io/workloads": {"get", "delete"},
    "scheduling.volcano.sh/podgroups": {"create", "delete"},
    "scheduling.x-k8s.io/podgroups": {"create", "delete"},
    "scheduling.run.ai/podgroups": {"create", "delete"},
    "scheduling.k8s.io/podgroups": {"create", "delete"},
}
GANGS = {resource for resource in VERBS if resource.endswith(("/podgroups", "/localqueues", "/workloads"))}
JOBS = set(VERBS) - GANGS - {"/nodes", "coordination.k8s.io/leases"}
LEASE = {"coordination.k8s.io/leases"}

MODES = {
    # objects, {(namespace, name of the role): its resources}
    "cluster": (
        cluster_wide(Account()),
        {
            (None, "hftitan-system:hftitan-operator"): JOBS | GANGS | {"/nodes"},
            ("hftitan-system", "hftitan-operator-lease"): LEASE,
        },
    ),
    "namespaces": (
        namespaced(Account(), ["a", "b", "a"]),
        {
            ("hftitan-system", "hftitan-operator-lease"): LEASE,
            ("a", "hftitan-operator"): JOBS,
            ("b", "hftitan-operator"): JOBS,
        },
    ),
    "namespaces and nodes": (
        namespaced(Account("bot", "a"), ["a"], nodes=True),
        {("a", "bot-lease"): LEASE, ("a", "bot"): JOBS, (None, "a:bot-nodes"): {"/nodes"}},
    ),
    "namespaces and gangs": (
        namespaced(Account("bot", "a"), ["a"], gangs=True),
        {("a", "bot-lease"): LEASE, ("a", "bot"): JOBS | GANGS},
    ),
}


def granted(objects):
    """Return what each role grants: {(namespace, name): {"group/resource": verbs}}."""
    return {
        (o["metadata"].get("namespace"), o["metadata"]["name"]): {
            f"{group}/{resource}": set(rule["verbs"])
            for rule in o["rules"]
            for group in rule["apiGroups"]
            for resource in rule["resources"]
        }
        for o in objects
        if o["kind"] in ("Role", "ClusterRole")
    }


@pytest.mark.parametrize("mode", MODES)
def test_each_role_grants_only_the_verbs_of_its_resources(mode):
    objects, expected = MODES[mode]
    assert granted(objects) == {
        role: {resource: VERBS[resource] for resource in resources} for role, resources in expected.items()
    }


@pytest.mark.parametrize("mode", MODES)
def test_no_wildcards_no_secrets_and_no_changes_of_pods(mode):
    for rules in granted(MODES[mode][0]).values():
        for resource, verbs in rules.items():
            assert "*" not in resource + "".join(verbs)
            assert "secrets" not in resource
            assert not verbs & {"deletecollection", "impersonate", "bind", "escalate", "approve"}
            if resource.startswith("/pods"):
                assert resource == "/pods"  # no exec, attach, portforward, proxy, log, ephemeralcontainers
                assert not verbs & {"patch", "update"}


@pytest.mark.parametrize("mode", MODES)
def test_every_role_is_bound_only_to_the_operators_account(mode):
    objects = MODES[mode][0]
    assert objects[0]["kind"] == "ServiceAccount"
    account = objects[0]["metadata"]
    roles = {(o["kind"], o["metadata"].get("namespace"), o["metadata"]["name"]) for o in objects if "rules" in o}
    bindings = [o for o in objects if "roleRef" in o]
    assert {(b["roleRef"]["kind"], b["metadata"].get("namespace"), b["roleRef"]["name"]) for b in bindings} == roles
    subject = {"kind": "ServiceAccount", "name": account["name"], "namespace": account["namespace"]}
    assert all(b["subjects"] == [subject] for b in bindings)


def test_cluster_scoped_names_differ_between_operators():
    first, second = (cluster_wide(Account(namespace=namespace)) for namespace in ("one", "two"))
    names = [
        {o["metadata"]["name"] for o in objects if "namespace" not in o["metadata"]} for objects in (first, second)
    ]
    assert names == [{"one:hftitan-operator"}, {"two:hftitan-operator"}]


def test_each_permission_has_a_purpose_and_one_row():
    assert all(access.why for access in TABLE)
    assert len({(a.group, a.resource) for a in TABLE}) == len(TABLE)


@pytest.mark.parametrize("name", ["", "Team", "a.b", "-a", "a\n", "a" * 64])
def test_an_invalid_namespace_is_an_error(name):
    with pytest.raises(ValueError, match="is not a valid namespace name"):
        namespaced(Account(), [name])
