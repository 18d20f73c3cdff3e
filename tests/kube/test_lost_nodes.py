"""When pods count as lost: at once if their node is deleted, never because the node is not listed yet."""

import asyncio

import pytest

from hftitan_operator.kube.cluster import KubeCluster

JOB = ("team", "x")


class Server:
    """Lists the objects of the test; its watches have no events."""

    def __init__(self):
        self.version, self.nodes, self.pods = 10, {}, {}

    async def request(self, method, path, *_, **__):
        held = {"/api/v1/nodes": self.nodes, "/api/v1/pods": self.pods}.get(path, {})
        return {"metadata": {"resourceVersion": str(self.version)}, "items": list(held.values())}

    async def watch(self, *_):
        await asyncio.Event().wait()
        yield {}

    def put(self, held, name, **parts):
        self.version += 1
        metadata = {
            "name": name,
            "uid": f"uid-{name}",
            "resourceVersion": str(self.version),
            **parts.pop("metadata", {}),
        }
        held[name] = {"metadata": metadata, **parts}

    def node(self, name, ready="True"):
        self.put(self.nodes, name, status={"conditions": [{"type": "Ready", "status": ready}]})

    def pod(self, node):
        labels = {"hftitan.io/job": "x", "hftitan.io/attempt": "1", "hftitan.io/node-index": "0"}
        metadata = {"namespace": "team", "labels": labels, "creationTimestamp": "2026-01-01T00:00:00Z"}
        self.put(self.pods, "x-1-0", metadata=metadata, spec={"nodeName": node}, status={"phase": "Running"})


@pytest.fixture
def server():
    return Server()


def follow(server, *changes):
    """Return (lost, gone) of the pod before and after each change, and the jobs woken by the last change.

    The nodes are listed again after each change.
    """

    async def run():
        woken = set()
        cluster = KubeCluster(server, wake=woken.add)
        async with cluster:
            await cluster.synced()
            states = []
            for change in (lambda: None, *changes):
                change()
                woken.clear()
                await cluster._node_list.list_once()
                (pod,) = (cluster._with_node(record.view) for record in cluster.pods.group(JOB))
                states.append((pod.node_lost, pod.node_gone))
            return states, woken

    return asyncio.run(run())


def test_a_pod_on_a_node_that_recovers_is_not_lost(server):
    server.node("a", ready="Unknown")
    server.pod("a")
    states, woken = follow(server, lambda: server.node("a"))
    assert states == [(True, False), (False, False)]
    assert woken == {JOB}


def test_a_pod_on_a_deleted_node_is_gone_at_once(server):
    server.node("a")
    server.pod("a")
    states, woken = follow(server, lambda: server.nodes.pop("a"))
    assert states == [(False, False), (True, True)]
    assert woken == {JOB}


def test_an_operator_that_starts_after_the_deletion_detects_it(server):
    server.pod("a")
    states, woken = follow(server)
    assert states == [(True, True)]
    assert woken == {JOB}


def test_a_node_that_is_not_listed_yet_is_not_gone(server):
    """The list of nodes is older than the pod's binding."""

    async def run():
        cluster = KubeCluster(server)
        async with cluster:
            await cluster.synced()
            server.pod("a")
            cluster.pods.put(server.pods["x-1-0"])
            (pod,) = (cluster._with_node(record.view) for record in cluster.pods.group(JOB))
            return pod

    assert not asyncio.run(run()).node_lost
