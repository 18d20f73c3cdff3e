"""Pods without an exit report, as kubelets and runtimes report them: the reason, the exact message, and whether the
restart counts. Then pods with injected containers: the trainer's container decides.

The reasons are those of pkg/kubelet in Kubernetes 1.37 (admissionRejectionReasons in kubelet.go) and of containerd 2.
"""

from __future__ import annotations

import pytest

from hftitan_api import mesh
from hftitan_api.load import parse_object
from hftitan_operator.core.lifecycle import classify
from hftitan_operator.kube.views import pod_view

LABELS = {"hftitan.io/job": "x", "hftitan.io/attempt": "1", "hftitan.io/node-index": "1"}
JOB = {
    "apiVersion": "hftitan.io/v1alpha1",
    "kind": "HFTitanJob",
    "metadata": {"name": "x"},
    "spec": {
        "model": {"name": "/m"},
        "dataset": {"path": "/d"},
        "mesh": {"nodes": 2, "device": "cpu"},
        "training": {"steps": 5},
        "checkpoint": {"volume": "v"},
    },
}
PLAN = mesh.plan(parse_object(JOB).job.spec)
COMPLETED = '{"reason": "Completed", "retryable": false, "step": 5}'
CRASHED = '{"reason": "InternalError", "retryable": true, "message": "boom", "step": 3}'


def view(**status):
    pod = {"metadata": {"name": "x-1-1", "uid": "u", "labels": LABELS}, "spec": {"nodeName": "n1"}, "status": status}
    return pod_view(pod)


def containers(*states, trainer):
    """Return the statuses of the trainer, and of injected containers in these states."""
    named = {"trainer": trainer, **{f"mesh-{i}": state for i, state in enumerate(states)}}
    return [{"name": name, "state": state} for name, state in named.items()]


def terminated(code=1, reason="Error", message=None):
    return {"terminated": {"exitCode": code, "reason": reason, **({"message": message} if message else {})}}


def rejected(reason, message):
    return {"phase": "Failed", "reason": reason, "message": f"Pod was rejected: {message}"}


def failed(**details):
    return {"phase": "Failed", "containerStatuses": containers(trainer=terminated(**details))}


DEVICES = "Allocate failed due to no healthy devices present; cannot allocate unhealthy devices, which is unexpected"
RUNC = "failed to create containerd task: failed to create shim task: OCI runtime create failed: runc create failed: "
HOOK = f"{RUNC}error running prestart hook #0: exit status 1, stderr: nvidia-container-cli: driver rpc error"
EXEC = f'{RUNC}unable to start container process: exec: "hftitan-agent": executable file not found in $PATH'
OOM = f"{RUNC}unable to start container process: container init was OOM-killed (memory limit too low?)"
MOUNT = f'{RUNC}error mounting "/a" to rootfs at "/b": not a directory: are you trying to mount a directory onto a file'
SHIM = 'failed to start shim: exec: "containerd-shim-nvidia-v1": executable file not found in $PATH'
NO_RUNC = 'OCI runtime create failed: unable to retrieve OCI runtime error: exec: "runsc": executable file not found'
GONE = "The container could not be located when the pod was terminated"

ENDS = [
    # pod status; reason, message, counted
    *(
        (rejected(reason, said), "NodeError", f"node n1 rejected pod x-1-1 ({reason}: Pod was rejected: {said})", False)
        for reason, said in (
            ("UnexpectedAdmissionError", DEVICES),
            ("OutOfcpu", "Node didn't have enough resource: cpu, requested: 8000, used: 900, capacity: 8000"),
            ("OutOfnvidia.com/gpu", "Node didn't have enough resource: nvidia.com/gpu"),
            ("NodeAffinity", "Predicate NodeAffinity failed: node(s) didn't match Pod's node affinity/selector"),
            ("TaintToleration", "Predicate TaintToleration failed: node(s) had untolerated taints"),
            ("TopologyAffinityError", "Resources cannot be allocated with Topology locality"),
            ("InvalidNodeInfo", "Kubelet cannot get node info."),
            ("VolumeAttachmentLimitExceeded", "no attachments left"),
            ("ANewReason", "of a newer kubelet"),
        )
    ),
    *(
        (rejected(reason, "x"), "StartError", f"node n1 rejected pod x-1-1 ({reason}: Pod was rejected: x)", True)
        for reason in ("SysctlForbidden", "PodOSNotSupported", "AppArmor", "SMTAlignmentError", "PodFeatureUnsupported")
    ),
    (
        rejected("NodeShutdown", "Pod was rejected as the node is shutting down."),
        "Evicted",
        "pod x-1-1 was evicted (Pod was rejected: Pod was rejected as the node is shutting down.)",
        False,
    ),
    (
        {
            **failed(code=137),
            "reason": "Terminated",
            "message": "Pod was terminated in response to imminent node shutdown.",
        },
        "Evicted",
        "pod x-1-1 was evicted (Pod was terminated in response to imminent node shutdown.)",
        False,
    ),
    (
        {**failed(code=137), "reason": "NodeLost", "message": "Node n1 which was running pod x-1-1 is unresponsive"},
        "NodeLost",
        "node n1 of pod x-1-1 was lost, and with it rank 1 (dp_shard 1)",
        False,
    ),
    (
        failed(code=137, reason="ContainerStatusUnknown", message=GONE),
        "NodeError",
        f"node n1 lost the container of pod x-1-1 (ContainerStatusUnknown: {GONE})",
        False,
    ),
    (failed(code=255, reason="Unknown"), "NodeError", "node n1 lost the container of pod x-1-1 (Unknown)", False),
    (
        failed(code=128, reason="StartError", message=SHIM),
        "NodeError",
        f"node n1 could not start pod x-1-1 (StartError: {SHIM})",
        False,
    ),
    (
        failed(code=128, reason="StartError", message=HOOK),
        "NodeError",
        f"node n1 could not start pod x-1-1 (StartError: {HOOK})",
        False,
    ),
    (
        failed(code=128, reason="StartError", message=NO_RUNC),
        "NodeError",
        f"node n1 could not start pod x-1-1 (StartError: {NO_RUNC})",
        False,
    ),
    (
        failed(code=127, reason="ContainerCannotRun", message="no such device /dev/nvidia7"),
        "NodeError",
        "node n1 could not start pod x-1-1 (ContainerCannotRun: no such device /dev/nvidia7)",
        False,
    ),
    *(
        (
            failed(code=128, reason="StartError", message=said),
            "StartError",
            f"pod x-1-1 could not start (StartError: {said}); check spec.pod.{field}",
            True,
        )
        for said, field in ((EXEC, "image"), (OOM, "resources.limits.memory"), (MOUNT, "volumeMounts"))
    ),
    (
        failed(message="Segmentation\n\tfault\x1b[2J"),
        "ExitedWithoutReport",
        "pod x-1-1 exited with code 1 and left no exit report (Segmentation fault[2J)",
        True,
    ),
    (
        {**failed(code=143), "reason": "DeadlineExceeded", "message": "Pod was active on the node longer than allowed"},
        "Killed",
        "pod x-1-1 was killed (exit 143; DeadlineExceeded: Pod was active on the node longer than allowed)",
        True,
    ),
    (
        {"phase": "Failed", "reason": "DeadlineExceeded"},
        "ExitedWithoutReport",
        "pod x-1-1 exited without an exit code and left no exit report (DeadlineExceeded)",
        True,
    ),
    (
        {
            "phase": "Failed",
            "initContainerStatuses": [{"name": "vault-init", "state": terminated(7, message="permission denied")}],
            "containerStatuses": containers(trainer={"waiting": {"reason": "PodInitializing"}}),
        },
        "ExitedWithoutReport",
        "pod x-1-1 exited without an exit code and left no exit report (init container vault-init exited with code 7: "
        "permission denied)",
        True,
    ),
]


@pytest.mark.parametrize(("status", "reason", "message", "counted"), ENDS)
def test_kubernetes_words_reach_the_message_and_decide_whether_the_restart_counts(status, reason, message, counted):
    cause = classify.of_pod(view(**status), PLAN)
    assert (cause.reason, cause.message, cause.counted, cause.fatal) == (reason, message, counted, False)


def test_the_cause_at_the_end_of_a_long_runtime_message_is_kept():
    cause = classify.of_pod(view(**failed(code=128, reason="StartError", message="wrapped: " * 200 + "no GPU")), PLAN)
    assert cause.message.startswith("node n1 could not start pod x-1-1 (StartError: wrapped: wrapped:")
    assert cause.message.endswith("wrapped: no GPU)")
    assert len(cause.message) < 500


RUNNING = {"running": {"startedAt": "2026-11-05T14:03:22Z"}}
DONE, BROKEN = terminated(0, "Completed", COMPLETED), terminated(1, "Error", CRASHED)
MESHES = [
    # pod phase, state of the trainer, states of the other containers; ended, completed, reason of the cause
    ("Running", DONE, [RUNNING], True, True, None),
    ("Running", BROKEN, [RUNNING], True, False, "InternalError"),
    ("Running", terminated(137, "OOMKilled"), [RUNNING], True, False, "OOMKilled"),
    ("Running", RUNNING, [terminated(1)], False, False, None),
    ("Running", RUNNING, [RUNNING], False, False, None),
    ("Failed", DONE, [terminated(1)], True, True, None),
    ("Failed", terminated(0, "Completed"), [terminated(1)], True, False, "ExitedWithoutReport"),
    ("Succeeded", DONE, [terminated(0)], True, True, None),
    ("Pending", DONE, [{"waiting": {"reason": "ErrImagePull"}}], True, True, None),
    # The kubelet reports the phase and the reason of an eviction only after the containers.
    ("Running", terminated(137), [], False, False, None),
    ("Running", terminated(137), [terminated(137)], False, False, None),
]


@pytest.mark.parametrize(("phase", "trainer", "others", "ended", "completed", "reason"), MESHES)
def test_the_trainers_container_decides(phase, trainer, others, ended, completed, reason):
    pod = view(phase=phase, containerStatuses=containers(*others, trainer=trainer))
    cause = classify.of_pod(pod, PLAN)
    assert (classify.ended(pod), classify.completed(pod)) == (ended, completed)
    assert (cause and cause.reason) == reason


def test_a_pod_whose_injected_container_waits_runs_if_its_trainer_does():
    waits = {"waiting": {"reason": "ImagePullBackOff", "message": "no such image"}}
    assert view(phase="Pending", containerStatuses=containers(waits, trainer=RUNNING)).phase == "Running"
    assert view(phase="Pending", containerStatuses=containers(waits, trainer={"waiting": {}})).phase == "Pending"
