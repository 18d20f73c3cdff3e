"""When pods count as lost: at once if their node is deleted, never because the node is not known yet."""

from dataclasses import replace

import pytest

from hftitan_operator.core.state import PodView
from hftitan_operator.kube.nodes import Nodes
from hftitan_operator.kube.store import PodRecord, Store, pod_record

JOB = ("team", "x")
LOST, GONE, FINE = (True, False), (True, True), (False, False)


class World:
    """The stores of nodes and pods. Each method is what a watch reports; versions count up from 10."""

    def __init__(self):
        self.version, self.woken = 10, set()
        self.pods = Store[PodRecord](pod_record, lambda record: self.nodes.pod_changed(record))
        self.nodes = Nodes(self.pods, self.woken.add)

    def _metadata(self, name):
        self.version += 1
        return {"name": name, "namespace": "team", "uid": f"uid-{name}", "resourceVersion": str(self.version)}

    def node(self, ready="True", incarnation=1):
        metadata = self._metadata("a") | {"uid": f"uid-{incarnation}"}
        status = {"conditions": [{"type": "Ready", "status": ready}]}
        self.nodes.store.put({"metadata": metadata, "status": status})
        self.nodes.reached(self.version)

    def node_deleted(self, incarnation=1):
        self.nodes.store.remove({"metadata": self._metadata("a") | {"uid": f"uid-{incarnation}"}})
        self.nodes.reached(self.version)

    def nodes_listed(self):
        """A list without nodes, or a bookmark after it."""
        self.version += 1
        self.nodes.store.keep(set(), self.version, None)
        self.nodes.reached(self.version)

    def pod(self, ready="False", uid="uid-pod"):
        labels = {"hftitan.io/job": "x", "hftitan.io/attempt": "1", "hftitan.io/node-index": "0"}
        status = {"phase": "Running", "conditions": [{"type": "Ready", "status": ready}]}
        metadata = {**self._metadata("x-1-0"), "uid": uid, "labels": labels}
        self.pods.put({"metadata": metadata, "spec": {"nodeName": "a"}, "status": status})

    def pod_deleted(self):
        self.pods.forget("uid-pod")


def follow(*changes):
    """Return (lost, gone) of the pod after each change, and whether the last change woke its job."""
    world, states = World(), []
    for name, *arguments in changes:
        world.woken.clear()
        getattr(world, name)(*arguments)
        for record in world.pods.group(JOB):
            judged = world.nodes.judge(record.view)
            states.append((judged.node_lost, judged.node_gone))
    return states, JOB in world.woken


@pytest.mark.parametrize(
    ("changes", "states", "woken"),
    [
        pytest.param([("node", "Unknown"), ("pod",), ("node", "True")], [LOST, FINE], True, id="node recovers"),
        pytest.param([("node",), ("pod",), ("node_deleted",)], [FINE, GONE], True, id="node deleted"),
        pytest.param([("node",), ("pod",), ("nodes_listed",)], [FINE, GONE], True, id="missing in a new list"),
        pytest.param([("pod",), ("nodes_listed",)], [FINE, GONE], True, id="deleted before the operator started"),
        pytest.param([("nodes_listed",), ("pod",)], [FINE], False, id="node not reported yet"),
        pytest.param([("pod",), ("node",)], [FINE, FINE], True, id="node reported after the pod"),
        pytest.param(
            [("node",), ("pod",), ("node_deleted",), ("pod", "True")], [FINE, GONE, GONE], False, id="pod changes later"
        ),
        pytest.param(
            [("node",), ("node_deleted",), ("pod",), ("node", "True", 2)], [FINE, FINE], True, id="node created again"
        ),
        pytest.param(
            [("node",), ("node_deleted",), ("pod",), ("nodes_listed",)], [FINE, GONE], True, id="bound after deletion"
        ),
    ],
)
def test_verdict_after_each_change(changes, states, woken):
    assert follow(*changes) == (states, woken)


def test_deleted_pods_are_forgotten():
    world = World()
    world.pod()
    world.pod_deleted()
    world.nodes_listed()
    assert (world.nodes._bound, world.nodes._undecided, world.woken) == ({}, {}, set())


def test_pod_that_has_ended_is_not_lost():
    world = World()
    world.nodes_listed()
    ended = PodView("x-1-0", "uid-pod", 1, 0, phase="Succeeded", node="a")
    assert world.nodes.judge(ended) == ended
    assert world.nodes.judge(replace(ended, phase="Running")).node_gone
