"""The reason and exact message of each pod's end, and the first cause of several failures."""

from __future__ import annotations

import pytest
from core_builders import T0, job, pod

from hftitan_api.mesh import plan
from hftitan_operator.core.lifecycle.classify import first_cause, of_pod, rank_text, ranks_text

PLAN = plan(job(nodes=2).spec)

LOST = "node n0 of pod x-1-0 was lost, and with it rank 0 (dp_shard 0)"
GONE = "node n0 of pod x-1-0 was deleted, and with it rank 0 (dp_shard 0)"
TABLE = [
    # observed pod, (reason, message, counted, fatal) or None
    (pod(phase="Pending"), None),
    (pod(), None),
    (pod(phase="Unknown"), None),
    (pod(phase="Succeeded"), None),
    (pod(phase="Succeeded", report="Completed"), None),
    (pod(deleting=True), None),
    (pod(node_lost=True), None),
    (pod(phase="Failed", exit_code=137), ("Killed", "pod x-1-0 was killed (exit 137)", True, False)),
    (
        pod(phase="Failed", exit_code=1),
        ("ExitedWithoutReport", "pod x-1-0 exited with code 1 and left no exit report", True, False),
    ),
    # tests/kube/test_pod_ends.py has more ends without a report, from the status of the API server.
    (
        pod(phase="Failed", reason="UnexpectedAdmissionError", message="no devices", rejected=True),
        ("NodeError", "node n0 rejected pod x-1-0 (UnexpectedAdmissionError: no devices)", False, False),
    ),
    (
        pod(phase="Failed", reason="SysctlForbidden", message="kernel.x", rejected=True),
        ("StartError", "node n0 rejected pod x-1-0 (SysctlForbidden: kernel.x)", True, False),
    ),
    (
        pod(
            phase="Failed",
            exit_code=1,
            report={"reason": "UserError", "message": "no dataset org/data", "retryable": False},
        ),
        ("UserError", "pod x-1-0 ended with UserError on rank 0 (dp_shard 0): no dataset org/data", True, True),
    ),
    (
        pod(
            1,
            phase="Failed",
            report={"reason": "NonFiniteLoss", "message": "loss is nan", "retryable": False, "rank": 1},
        ),
        ("NonFiniteLoss", "pod x-1-1 ended with NonFiniteLoss on rank 1 (dp_shard 1): loss is nan", True, True),
    ),
    (
        pod(phase="Failed", report={"reason": "OutOfMemory", "retryable": True, "rank": 7}),
        ("OutOfMemory", "pod x-1-0 ended with OutOfMemory on rank 7", True, False),
    ),
    (
        pod(phase="Failed", report={"reason": "StorageError", "message": "disk full", "retryable": False}),
        ("StorageError", "pod x-1-0 ended with StorageError on rank 0 (dp_shard 0): disk full", True, True),
    ),
    (
        pod(phase="Failed", report={"reason": "Preempted", "retryable": True, "checkpoint_step": 40}),
        ("Preempted", "pod x-1-0 received SIGTERM and saved step 40", False, False),
    ),
    # torchrun may exit with 0 after SIGTERM; that is not a success.
    (pod(phase="Succeeded", report="Preempted"), ("Preempted", "pod x-1-0 received SIGTERM", False, False)),
    (
        pod(phase="Failed", exit_code=1, report="Completed"),
        ("ExitedWithoutReport", "pod x-1-0 exited with code 1 and left no exit report", True, False),
    ),
    (pod(phase="Failed", exit_code=137, deleting=True), ("PodDeleted", "pod x-1-0 was deleted", False, False)),
    (
        pod(phase="Failed", exit_code=137, reason="OOMKilled"),
        (
            "OOMKilled",
            "pod x-1-0 ran out of memory (OOMKilled; spec.pod.resources.limits.memory is the limit)",
            True,
            False,
        ),
    ),
    (
        pod(phase="Failed", reason="Evicted", message="node was low on memory", disrupted=True),
        ("Evicted", "pod x-1-0 was evicted (node was low on memory)", False, False),
    ),
    (
        pod(phase="Failed", exit_code=143, reason="PreemptionByScheduler", disrupted=True),
        ("Evicted", "pod x-1-0 was preempted", False, False),
    ),
    # A user error stays a user error on a drained node.
    (
        pod(phase="Failed", report="UserError", disrupted=True),
        ("UserError", "pod x-1-0 ended with UserError on rank 0 (dp_shard 0)", True, True),
    ),
    # A trainer that completed has completed, however its pod ends.
    (pod(phase="Failed", exit_code=0, report="Completed", reason="Evicted", disrupted=True), None),
    (pod(node_lost=True, deleting=True), ("NodeLost", LOST, False, False)),
    (pod(phase="Failed", node_lost=True), ("NodeLost", LOST, False, False)),
    # A deleted node does not return, so the operator does not wait.
    (pod(node_lost=True, node_gone=True), ("NodeLost", GONE, False, False)),
    (pod(node_gone=True), ("NodeLost", GONE, False, False)),
    (pod(node_gone=True, deleting=True, deletion_deadline=T0 + 400), ("NodeLost", GONE, False, False)),
    (pod(phase="Pending", node_gone=True, reason="InvalidImageName"), ("NodeLost", GONE, False, False)),
    # A report from before the loss of the node is kept: an error, or completion.
    (pod(phase="Succeeded", report="Completed", node_lost=True, node_gone=True), None),
    (
        pod(phase="Failed", report={"reason": "UserError", "message": "bad", "retryable": False}, node_gone=True),
        ("UserError", "pod x-1-0 ended with UserError on rank 0 (dp_shard 0): bad", True, True),
    ),
    (pod(phase="Failed", exit_code=137, node_gone=True), ("Killed", "pod x-1-0 was killed (exit 137)", True, False)),
    (
        pod(phase="Pending", reason="InvalidImageName", message="bad ref"),
        ("InvalidImage", "pod x-1-0 can never start: InvalidImageName (bad ref); correct spec.pod.image", True, True),
    ),
    (pod(phase="Pending", reason="ErrImagePull"), None),
]


@pytest.mark.parametrize(("seen", "expected"), TABLE, ids=range(len(TABLE)))
def test_cause_of_one_pod(seen, expected):
    cause = of_pod(seen, PLAN)
    assert (cause and (cause.reason, cause.message, cause.counted, cause.fatal)) == expected


FIRST = [
    # A user error on one pod explains the network errors of its peers, whichever is observed first.
    ([pod(0, phase="Failed", report="NetworkError"), pod(1, phase="Failed", report="UserError")], "UserError"),
    ([pod(0, phase="Failed", report="InternalError"), pod(1, phase="Failed", report="NonFiniteLoss")], "NonFiniteLoss"),
    ([pod(0, phase="Failed", report="NetworkError"), pod(1, node_lost=True, deleting=True)], "NodeLost"),
    ([pod(0, phase="Failed", report="NetworkError"), pod(1, node_gone=True)], "NodeLost"),
    ([pod(0, phase="Failed", exit_code=137), pod(1, node_gone=True)], "NodeLost"),
    ([pod(0, phase="Failed", report="NetworkError"), pod(1, phase="Failed", reason="x", rejected=True)], "NodeError"),
    ([pod(0, phase="Failed", report="UserError"), pod(1, node_gone=True)], "UserError"),
    ([pod(0, phase="Failed", report="NetworkError"), pod(1, phase="Failed", exit_code=137)], "Killed"),
    ([pod(0, phase="Failed", exit_code=137), pod(1, phase="Failed", reason="Evicted", disrupted=True)], "Evicted"),
    ([pod(0, phase="Failed", exit_code=1), pod(1, phase="Failed", reason="OOMKilled", exit_code=137)], "OOMKilled"),
    ([pod(0, phase="Failed", report="NetworkError"), pod(1, phase="Failed", report="InternalError")], "InternalError"),
    ([pod(0, phase="Failed", report="OutOfMemory"), pod(1, phase="Failed", report="Preempted")], "Preempted"),
    # A deleted pod explains errors of its peers, but not their crashes: a crash counts against maxRestarts.
    ([pod(0, phase="Failed", report="NetworkError"), pod(1, phase="Failed", deleting=True)], "PodDeleted"),
    ([pod(0, phase="Failed", exit_code=137), pod(1, phase="Failed", deleting=True)], "Killed"),
    ([pod(0), pod(1, phase="Succeeded")], None),
]


@pytest.mark.parametrize(("gang", "reason"), FIRST)
def test_the_cause_that_explains_the_others_is_chosen(gang, reason):
    for pods in (gang, gang[::-1]):
        cause = first_cause(pods, PLAN)
        assert (cause and cause.reason) == reason


def test_equal_causes_name_the_lowest_pod():
    cause = first_cause([pod(1, phase="Failed", exit_code=139), pod(0, phase="Failed", exit_code=139)], PLAN)
    assert cause is not None
    assert cause.message == "pod x-1-0 was killed (exit 139)"


def test_a_rank_is_named_with_its_coordinates_on_the_axes_in_use():
    gpus = plan(job(nodes=2, mesh={"gpusPerNode": 8, "device": "gpu", "dpReplicate": 2, "tp": 4}).spec)
    assert rank_text(13, gpus) == "rank 13 (dp_replicate 1, dp_shard 1, tp 1)"
    assert rank_text(0, plan(job(nodes=1).spec)) == "rank 0"
    assert rank_text(99, gpus) == "rank 99"
    assert ranks_text(1, gpus) == "8 ranks from rank 8 (dp_replicate 1, dp_shard 0, tp 0)"
