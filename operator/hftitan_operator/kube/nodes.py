"""Knows which pods are on lost nodes: nodes that are not ready, or that were deleted.

A pod can be bound to a node that the watch on nodes has not reported yet. A node counts as deleted only if the store of
nodes is at least as new as the pod's binding and lacks the node.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from hftitan_operator.core.state import PodView
from hftitan_operator.kube.store import Key, NodeRecord, PodRecord, Store, node_record


class Nodes:
    """Wakes the job of each pod whose verdict may have changed."""

    def __init__(self, pods: Store[PodRecord], wake: Callable[[Key], None]) -> None:
        self.store = Store[NodeRecord](node_record, self._node_changed)
        self._pods, self._wake = pods, wake
        self._version = 0
        """The resource version up to which `store` has all changes."""
        self._bound: dict[str, int] = {}
        """By the UID of a pod: its version when it was first seen on its node."""
        self._undecided: dict[str, Key] = {}
        """By the UID of a pod on an unknown node, if `store` is older than the binding: the job."""

    def judge(self, pod: PodView) -> PodView:
        """Return the pod with `node_lost` and `node_gone`."""
        if pod.node is None or pod.phase in ("Succeeded", "Failed"):
            return pod
        found = self._find(pod.node)
        if found is None:
            gone = self._bound.get(pod.uid, 0) <= self._version
            return replace(pod, node_lost=True, node_gone=True) if gone else pod
        return pod if found.ready else replace(pod, node_lost=True)

    def reached(self, version: int) -> None:
        """Note that `store` has all changes up to this resource version."""
        self._version = version
        for uid, key in list(self._undecided.items()):
            if self._bound[uid] <= version:
                del self._undecided[uid]
                self._wake(key)

    def pod_changed(self, record: PodRecord) -> None:
        """Note a new, changed or removed pod."""
        uid, node = record.view.uid, record.view.node
        version = self._pods.version(uid)
        if not version:
            self._bound.pop(uid, None)
            self._undecided.pop(uid, None)
        elif node is not None and uid not in self._bound:
            self._bound[uid] = version
            if version > self._version and self._find(node) is None:
                self._undecided[uid] = record.key

    def _find(self, name: str) -> NodeRecord | None:
        return next(iter(self.store.group(("", name))), None)

    def _node_changed(self, record: NodeRecord) -> None:
        for pod in self._pods.all():
            if pod.view.node == record.key[1]:
                self._wake(pod.key)
