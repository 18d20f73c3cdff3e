"""Scripted lives of jobs: what users, pods and nodes do, each when its moment has come, and what must come of it.

The moments are states that the operator has written down, so that a life takes the same course however slow the
machine is and however often the operator dies meanwhile.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import kubelet_status
from audit import Audit, Object, finished, objects
from control_plane import ControlPlane
from kubectl import Kubectl
from kubelets import is_ready

from hftitan_api.wire import ExitReport
from hftitan_operator.core.naming import LABEL_ATTEMPT, LABEL_NODE_INDEX

NODES = 2
NODE_LABEL = "test.hftitan.io/life"
INTERNAL = ExitReport(reason="InternalError", message="a rank crashed", step=5, retryable=True, rank=1)
MISTAKE = ExitReport(reason="UserError", message="no such dataset", retryable=False, rank=1)
DONE = ExitReport(reason="Completed", step=10, retryable=False)


@dataclass(frozen=True)
class World:
    plane: ControlPlane
    audit: Audit

    @property
    def admin(self) -> Kubectl:
        return self.plane.admin


class Home:
    """Nodes that are one life's alone, as it may lose one of them."""

    def __init__(self, admin: Kubectl, name: str, nodes: Sequence[str]) -> None:
        """The nodes must be there, and their kubelet."""
        self._admin, self.name = admin, name
        labels = {"metadata": {"labels": {NODE_LABEL: name}}}
        self._nodes = [admin.patch("nodes", node, labels) for node in nodes]

    def restore(self) -> None:
        """Replaces the node that was lost. Its kubelet never noticed."""
        for node in self._nodes:
            admin, name = self._admin, node["metadata"]["name"]
            if admin.find("nodes", name) is None:
                metadata = {"name": name, "labels": node["metadata"]["labels"]}
                admin.create({"apiVersion": "v1", "kind": "Node", "metadata": metadata})
                admin.patch("nodes", name, {"status": node["status"]}, subresource="status")
            admin.wait_for("nodes", name, lambda found: is_ready(found) and not found["spec"].get("taints"))


Moment = Callable[["Life"], bool]
Deed = Callable[["Life"], None]


@dataclass(frozen=True)
class Script:
    name: str
    deeds: tuple[tuple[Moment, Deed], ...]
    end: Moment
    phase: str
    """The last one."""
    history: tuple[tuple[int, str, bool], ...]
    """status.restartHistory: attempt, reason, free."""
    restarts: int
    objects: tuple[str, ...]
    """That are there at the end, with NAME for the job's."""
    policy: dict[str, Any] = field(default_factory=dict)


@dataclass
class Life:
    """Of one job. Call `poll` until it is true."""

    world: World
    script: Script
    namespace: str
    name: str
    home: str
    """Label of the nodes that its pods run on; no other life should be in need of them."""
    done: int = 0
    """Deeds done."""

    def begin(self) -> Life:
        spec = {
            "model": {"name": "org/model"},
            "dataset": {"name": "org/data"},
            "mesh": {"nodes": NODES, "device": "cpu"},
            "training": {"steps": 10, "seqLen": 64},
            "checkpoint": {"interval": 0, "exportHF": False},
            "runPolicy": self.script.policy,
            "pod": {"nodeSelector": {NODE_LABEL: self.home}},
        }
        metadata = {"name": self.name, "namespace": self.namespace}
        manifest = {"apiVersion": "hftitan.io/v1alpha1", "kind": "HFTitanJob", "metadata": metadata, "spec": spec}
        self.world.admin.create(manifest)
        return self

    def poll(self, limit: int | None = None) -> bool:
        """Do the next deed if its moment has come; whether all (or the first `limit`) are done and settled."""
        deeds = self.script.deeds[:limit]
        if self.done < len(deeds):
            moment, deed = deeds[self.done]
            if moment(self):
                deed(self)
                self.done += 1
            return False
        if limit is not None and limit < len(self.script.deeds):
            return self.script.deeds[limit][0](self)
        return self.script.end(self)

    @property
    def job(self) -> Object | None:
        return self.world.audit.job(self.namespace, self.name)

    @property
    def status(self) -> Object:
        """The last one seen, also when the job is gone."""
        job = self.world.audit.last.get((self.namespace, self.name)) or {}
        return job.get("status") or {}

    def pods(self, attempt: int | None = None) -> list[Object]:
        """By index; of one attempt or all."""
        found = self.world.audit.pods_of(self.job) if self.job else []
        chosen = (pod for pod in found if attempt is None or label(pod, LABEL_ATTEMPT) == attempt)
        return sorted(chosen, key=lambda pod: label(pod, LABEL_NODE_INDEX))

    @property
    def in_motion(self) -> bool:
        """Something is on its way up or down, so that the operator has to wait."""
        return self.job is None or any(
            "deletionTimestamp" in pod["metadata"] or pod["status"].get("phase") == "Pending" for pod in self.pods()
        )

    @property
    def objects(self) -> set[str]:
        """That should be there at the end."""
        return {text.replace("NAME", self.name) for text in self.script.objects}

    def verdict(self) -> list[str]:
        """What is not as the script says."""
        status, script = self.status, self.script
        history = [(h["attempt"], h["reason"], h.get("free", False)) for h in status.get("restartHistory", [])]
        pairs = {
            "phase": (status.get("phase"), script.phase),
            "restarts": (status.get("restarts", 0), script.restarts),
            "restartHistory": (history, list(script.history)),
            "objects": (self.found(), self.objects),
        }
        return [
            f"{self.namespace}/{self.name}: {what} {found}, not {right}"
            for what, (found, right) in pairs.items()
            if found != right
        ]

    def found(self) -> set[str]:
        return objects(self.world.plane, self.namespace, self.name)

    def erase(self) -> None:
        """The job; the garbage collector will take what it owns."""
        self.world.admin.delete_quietly("hftitanjobs", self.name, self.namespace)

    def timeless(self) -> Object:
        """The status without what the clock put into it, and without the job's own name."""
        times = ("startTime", "attemptStartTime", "completionTime", "activeSeconds", "activeSince", "goodput")
        status = {key: value for key, value in self.status.items() if key not in times}
        status["conditions"] = [omit(c, "lastTransitionTime") for c in status.get("conditions", [])]
        status["restartHistory"] = [omit(record, "time") for record in status.get("restartHistory", [])]
        return dict(json.loads(json.dumps(status).replace(self.name, "NAME")))


def poll_all(players: Iterable[Life | Any], *arguments: int) -> bool:
    """Every one of them; whether all have settled."""
    return min([player.poll(*arguments) for player in players])


def omit(thing: Object, key: str) -> Object:
    return {k: v for k, v in thing.items() if k != key}


def label(pod: Object, name: str) -> int:
    return int(pod["metadata"]["labels"][name])


# --- moments ------------------------------------------------------------------------------------------------


def runs(attempt: int) -> Moment:
    """All its pods run, and the operator said so."""

    def moment(life: Life) -> bool:
        status, pods = life.status, life.pods(attempt)
        return (
            (status.get("attempt"), status.get("phase")) == (attempt, "Starting")
            and len(pods) == NODES
            and all(pod["status"].get("phase") == "Running" for pod in pods)
        )

    return moment


def suspended(life: Life) -> bool:
    return life.status.get("phase") == "Suspended" and all(finished(pod) for pod in life.pods())


def ended(life: Life) -> bool:
    """In the last phase, with those pods left that should be, and a status that says that none runs."""
    pods = {f"pods {pod['metadata']['name']}" for pod in life.pods()}
    wanted = {text for text in life.objects if text.startswith("pods")}
    status = life.status
    return status.get("phase") == life.script.phase and pods == wanted and not status["pods"]["active"]


def gone(life: Life) -> bool:
    """The job, and through the garbage collector what it owned."""
    return bool(life.status) and life.job is None and not life.found()


# --- deeds --------------------------------------------------------------------------------------------------


def ends(attempt: int, index: int | None, report: ExitReport) -> Deed:
    """One pod, or all of them, end with this report."""

    def deed(life: Life) -> None:
        for pod in life.pods(attempt):
            if index in (None, label(pod, LABEL_NODE_INDEX)):
                code = 0 if report.reason == "Completed" else 1
                text = report.model_dump_json(by_alias=True)
                status = kubelet_status.ended(pod, pod["status"]["startTime"], code, text)
                metadata = pod["metadata"]
                life.world.admin.patch(
                    "pods", metadata["name"], {"status": status}, life.namespace, subresource="status"
                )

    return deed


def suspend(value: bool) -> Deed:
    def deed(life: Life) -> None:
        life.world.admin.patch("hftitanjobs", life.name, {"spec": {"runPolicy": {"suspend": value}}}, life.namespace)

    return deed


def delete_pod(attempt: int, index: int) -> Deed:
    """As a user does, or a queue that preempts."""

    def deed(life: Life) -> None:
        life.world.admin.delete("pods", f"{life.name}-{attempt}-{index}", life.namespace)

    return deed


def lose_node(attempt: int, index: int) -> Deed:
    """The machine is gone, and its Node object with it."""

    def deed(life: Life) -> None:
        pod = life.pods(attempt)[index]
        life.world.admin.delete("nodes", pod["spec"]["nodeName"])

    return deed


# --- scripts ------------------------------------------------------------------------------------------------

_REST = ("services NAME", "configmaps NAME-config")

CRASH_AND_SUSPENSION = Script(
    "a crash, a suspension, success",
    (
        (runs(1), ends(1, 1, INTERNAL)),
        (runs(2), suspend(True)),
        (suspended, suspend(False)),
        (runs(3), ends(3, None, DONE)),
    ),
    ended,
    phase="Succeeded",
    history=((1, "InternalError", False),),
    restarts=1,
    objects=("pods NAME-3-0", "pods NAME-3-1", *_REST),
)
NODE_LOSS_AND_TTL = Script(
    "a node is lost, success, the job's time is over",
    ((runs(1), lose_node(1, 1)), (runs(2), ends(2, None, DONE))),
    gone,
    phase="Succeeded",
    history=((1, "NodeLost", True),),
    restarts=1,
    objects=(),
    policy={"ttlSecondsAfterFinished": 1},
)
DELETION_AND_MISTAKE = Script(
    "a pod is deleted, a mistake of the user",
    ((runs(1), delete_pod(1, 0)), (runs(2), ends(2, 1, MISTAKE))),
    ended,
    phase="Failed",
    history=((1, "PodDeleted", True), (2, "UserError", False)),
    restarts=1,
    objects=("pods NAME-2-1", *_REST),
)
SCRIPTS = (CRASH_AND_SUSPENSION, NODE_LOSS_AND_TTL, DELETION_AND_MISTAKE)
