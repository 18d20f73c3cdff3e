"""Scenarios of jobs: steps of users, pods and nodes, each with a condition, and the expected result.

The conditions depend on statuses that the operator has written. A run therefore takes the same course on a slow machine
and when the operator is killed meanwhile.
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
NODE_LABEL = "test.hftitan.io/run"
INTERNAL = ExitReport(reason="InternalError", message="a rank crashed", step=5, retryable=True, rank=1)
USER_ERROR = ExitReport(reason="UserError", message="no such dataset", retryable=False, rank=1)
COMPLETED = ExitReport(reason="Completed", step=10, retryable=False)


@dataclass(frozen=True)
class AuditedCluster:
    """A control plane with an audit that watches it."""

    plane: ControlPlane
    audit: Audit

    @property
    def admin(self) -> Kubectl:
        return self.plane.admin


class NodeGroup:
    """Nodes for one run at a time, because a run may delete one of them."""

    def __init__(self, admin: Kubectl, name: str, nodes: Sequence[str]) -> None:
        """The nodes and their kubelet must exist."""
        self._admin, self.name = admin, name
        labels = {"metadata": {"labels": {NODE_LABEL: name}}}
        self._nodes = [admin.patch("nodes", node, labels) for node in nodes]

    def restore(self) -> None:
        """Create a deleted Node again. Its kubelet is still running."""
        for node in self._nodes:
            admin, name = self._admin, node["metadata"]["name"]
            if admin.find("nodes", name) is None:
                metadata = {"name": name, "labels": node["metadata"]["labels"]}
                admin.create({"apiVersion": "v1", "kind": "Node", "metadata": metadata})
                admin.patch("nodes", name, {"status": node["status"]}, subresource="status")
            admin.wait_for("nodes", name, lambda found: is_ready(found) and not found["spec"].get("taints"))


Condition = Callable[["ScenarioRun"], bool]
Action = Callable[["ScenarioRun"], None]


@dataclass(frozen=True)
class Scenario:
    name: str
    steps: tuple[tuple[Condition, Action], ...]
    """Each action runs once its condition is true, in this order."""
    end: Condition
    """True when the run has ended."""
    phase: str
    """Final phase of the job."""
    history: tuple[tuple[int, str, bool], ...]
    """status.restartHistory: attempt, reason, counted."""
    restarts: int
    objects: tuple[str, ...]
    """Objects that exist at the end; NAME stands for the job's name."""
    policy: dict[str, Any] = field(default_factory=dict)


@dataclass
class ScenarioRun:
    """One job that goes through a scenario. Call `poll` until it returns True."""

    cluster: AuditedCluster
    scenario: Scenario
    namespace: str
    name: str
    group: str
    """Name of the NodeGroup for its pods; no other run may use it at the same time."""
    done: int = 0
    """Number of steps done."""

    def create(self) -> ScenarioRun:
        spec = {
            "model": {"name": "org/model"},
            "dataset": {"name": "org/data"},
            "mesh": {"nodes": NODES, "device": "cpu"},
            "training": {"steps": 10, "seqLen": 64},
            "checkpoint": {"interval": 0, "exportHF": False},
            "runPolicy": self.scenario.policy,
            "pod": {"nodeSelector": {NODE_LABEL: self.group}},
        }
        metadata = {"name": self.name, "namespace": self.namespace}
        manifest = {"apiVersion": "hftitan.io/v1alpha1", "kind": "HFTitanJob", "metadata": metadata, "spec": spec}
        self.cluster.admin.create(manifest)
        return self

    def poll(self, limit: int | None = None) -> bool:
        """Do the next step if its condition is true. Return whether all (or the first `limit`) are done and settled."""
        steps = self.scenario.steps[:limit]
        if self.done < len(steps):
            condition, action = steps[self.done]
            if condition(self):
                action(self)
                self.done += 1
            return False
        if limit is not None and limit < len(self.scenario.steps):
            return self.scenario.steps[limit][0](self)
        return self.scenario.end(self)

    @property
    def job(self) -> Object | None:
        return self.cluster.audit.job(self.namespace, self.name)

    @property
    def status(self) -> Object:
        """The last observed status, also of a deleted job."""
        job = self.cluster.audit.last.get((self.namespace, self.name)) or {}
        return job.get("status") or {}

    def pods(self, attempt: int | None = None) -> list[Object]:
        """Return the pods of one attempt, or of all, ordered by index."""
        found = self.cluster.audit.pods_of(self.job) if self.job else []
        chosen = (pod for pod in found if attempt is None or label(pod, LABEL_ATTEMPT) == attempt)
        return sorted(chosen, key=lambda pod: label(pod, LABEL_NODE_INDEX))

    @property
    def waits_for_pods(self) -> bool:
        """Whether a pod is starting or being deleted, so that the operator has to wait."""
        return self.job is None or any(
            "deletionTimestamp" in pod["metadata"] or pod["status"].get("phase") == "Pending" for pod in self.pods()
        )

    @property
    def objects(self) -> set[str]:
        """Names of the objects that must exist at the end."""
        return {text.replace("NAME", self.name) for text in self.scenario.objects}

    def problems(self) -> list[str]:
        """Return the differences between the result and the scenario."""
        status, scenario = self.status, self.scenario
        history = [(h["attempt"], h["reason"], h.get("counted", True)) for h in status.get("restartHistory", [])]
        pairs = {
            "phase": (status.get("phase"), scenario.phase),
            "restarts": (status.get("restarts", 0), scenario.restarts),
            "restartHistory": (history, list(scenario.history)),
            "objects": (self.existing_objects(), self.objects),
        }
        return [
            f"{self.namespace}/{self.name}: {what} is {found}, expected {expected}"
            for what, (found, expected) in pairs.items()
            if found != expected
        ]

    def existing_objects(self) -> set[str]:
        return objects(self.cluster.plane, self.namespace, self.name)

    def delete(self) -> None:
        """Delete the job; the garbage collector deletes its objects."""
        self.cluster.admin.delete_quietly("hftitanjobs", self.name, self.namespace)

    def status_without_times(self) -> Object:
        """Return the status without times, and with NAME instead of the job's name."""
        times = ("startTime", "attemptStartTime", "completionTime", "activeSeconds", "activeSince", "goodput")
        status = {key: value for key, value in self.status.items() if key not in times}
        status["conditions"] = [omit(c, "lastTransitionTime") for c in status.get("conditions", [])]
        status["restartHistory"] = [omit(record, "time") for record in status.get("restartHistory", [])]
        return dict(json.loads(json.dumps(status).replace(self.name, "NAME")))


def poll_all(runs: Iterable[ScenarioRun | Any], *arguments: int) -> bool:
    """Poll every run. Return whether all have settled."""
    return min([run.poll(*arguments) for run in runs])


def omit(thing: Object, key: str) -> Object:
    return {k: v for k, v in thing.items() if k != key}


def label(pod: Object, name: str) -> int:
    return int(pod["metadata"]["labels"][name])


# --- conditions ---------------------------------------------------------------------------------------------


def pods_running(attempt: int) -> Condition:
    """All pods of the attempt are running, and the status says Starting."""

    def condition(run: ScenarioRun) -> bool:
        status, pods = run.status, run.pods(attempt)
        return (
            (status.get("attempt"), status.get("phase")) == (attempt, "Starting")
            and len(pods) == NODES
            and all(pod["status"].get("phase") == "Running" for pod in pods)
        )

    return condition


def suspended(run: ScenarioRun) -> bool:
    return run.status.get("phase") == "Suspended" and all(finished(pod) for pod in run.pods())


def job_ended(run: ScenarioRun) -> bool:
    """Whether the job has its final phase, only the expected pods exist, and the status counts no active pod."""
    pods = {f"pods {pod['metadata']['name']}" for pod in run.pods()}
    wanted = {text for text in run.objects if text.startswith("pods")}
    status = run.status
    return status.get("phase") == run.scenario.phase and pods == wanted and not status["pods"]["active"]


def job_deleted(run: ScenarioRun) -> bool:
    """Whether the job and, through the garbage collector, its objects are deleted."""
    return bool(run.status) and run.job is None and not run.existing_objects()


# --- actions ------------------------------------------------------------------------------------------------


def end_pods(attempt: int, index: int | None, report: ExitReport) -> Action:
    """End one pod, or all of them, with an exit report."""

    def action(run: ScenarioRun) -> None:
        for pod in run.pods(attempt):
            if index in (None, label(pod, LABEL_NODE_INDEX)):
                code = 0 if report.reason == "Completed" else 1
                text = report.model_dump_json(by_alias=True)
                status = kubelet_status.ended(pod, pod["status"]["startTime"], code, text)
                metadata = pod["metadata"]
                run.cluster.admin.patch(
                    "pods", metadata["name"], {"status": status}, run.namespace, subresource="status"
                )

    return action


def suspend(value: bool) -> Action:
    def action(run: ScenarioRun) -> None:
        run.cluster.admin.patch("hftitanjobs", run.name, {"spec": {"runPolicy": {"suspend": value}}}, run.namespace)

    return action


def delete_pod(attempt: int, index: int) -> Action:
    """Delete a pod, as a user or a preempting queue does."""

    def action(run: ScenarioRun) -> None:
        run.cluster.admin.delete("pods", f"{run.name}-{attempt}-{index}", run.namespace)

    return action


def lose_node(attempt: int, index: int) -> Action:
    """Delete the Node of a pod, as when the machine is removed."""

    def action(run: ScenarioRun) -> None:
        pod = run.pods(attempt)[index]
        run.cluster.admin.delete("nodes", pod["spec"]["nodeName"])

    return action


# --- scenarios ----------------------------------------------------------------------------------------------

_REST = ("services NAME", "configmaps NAME-config")

CRASH_AND_SUSPENSION = Scenario(
    "crash, suspension, success",
    (
        (pods_running(1), end_pods(1, 1, INTERNAL)),
        (pods_running(2), suspend(True)),
        (suspended, suspend(False)),
        (pods_running(3), end_pods(3, None, COMPLETED)),
    ),
    job_ended,
    phase="Succeeded",
    history=((1, "InternalError", True),),
    restarts=1,
    objects=("pods NAME-3-0", "pods NAME-3-1", *_REST),
)
NODE_LOSS_AND_TTL = Scenario(
    "lost node, success, TTL",
    ((pods_running(1), lose_node(1, 1)), (pods_running(2), end_pods(2, None, COMPLETED))),
    job_deleted,
    phase="Succeeded",
    history=((1, "NodeLost", False),),
    restarts=1,
    objects=(),
    policy={"ttlSecondsAfterFinished": 1},
)
DELETION_AND_USER_ERROR = Scenario(
    "deleted pod, user error",
    ((pods_running(1), delete_pod(1, 0)), (pods_running(2), end_pods(2, 1, USER_ERROR))),
    job_ended,
    phase="Failed",
    history=((1, "PodDeleted", False), (2, "UserError", True)),
    restarts=1,
    objects=("pods NAME-2-1", *_REST),
)
SCENARIOS = (CRASH_AND_SUSPENSION, NODE_LOSS_AND_TTL, DELETION_AND_USER_ERROR)
