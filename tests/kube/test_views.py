"""The projections of API objects, also of unusual and damaged ones."""

import json

import pytest

from hftitan_operator.kube.views import job_view, node_ready, owner_uid, pod_view, status_patch

LABELS = {"hftitan.io/job": "x", "hftitan.io/attempt": "2", "hftitan.io/node-index": "1"}
REPORT = {"reason": "InternalError", "message": "boom", "step": 7, "retryable": True, "rank": 3}


def pod(status=None, labels=LABELS, **metadata):
    return {
        "metadata": {"name": "x-2-1", "namespace": "ns", "uid": "u", "labels": labels, **metadata},
        "spec": {"nodeName": "n1"},
        "status": status or {},
    }


def trainer(**state):
    return [{"name": "sidecar", "state": {"terminated": {"exitCode": 9}}}, {"name": "trainer", "state": state}]


def test_a_new_pod():
    view = pod_view(pod(creationTimestamp="2026-11-05T14:03:22Z"))
    assert (view.name, view.uid, view.attempt, view.index, view.node) == ("x-2-1", "u", 2, 1, "n1")
    assert (view.phase, view.ready, view.deleting, view.created_at) == ("Pending", False, False, 1793887402)


def test_a_running_pod():
    running = {
        "phase": "Running",
        "podIP": "10.0.0.7",
        "conditions": [{"type": "Ready", "status": "True"}],
        "containerStatuses": trainer(running={"startedAt": "2026-11-05T14:03:22Z"}),
    }
    view = pod_view(pod(running))
    assert (view.phase, view.ready, view.address, view.started_at) == ("Running", True, "10.0.0.7", 1793887402)
    assert view.reason is None


def test_an_ended_pod_has_the_report_of_the_trainer_container():
    ended = {
        "phase": "Failed",
        "containerStatuses": trainer(
            terminated={"exitCode": 1, "reason": "Error", "message": json.dumps(REPORT)},
        ),
    }
    view = pod_view(pod(ended))
    assert (view.phase, view.exit_code, view.reason, view.message) == ("Failed", 1, "Error", None)
    assert (view.report.reason, view.report.step, view.report.rank) == ("InternalError", 7, 3)


@pytest.mark.parametrize("text", ["", "Killed", "[1]", '{"reason": "Nonsense"}', "null"])
def test_other_termination_messages_are_not_reports(text):
    ended = {"phase": "Failed", "containerStatuses": trainer(terminated={"exitCode": 1, "message": text})}
    assert pod_view(pod(ended)).report is None


WAITS = [
    (
        {"containerStatuses": trainer(waiting={"reason": "ErrImagePull", "message": "no such"})},
        "ErrImagePull",
        "no such",
    ),
    (
        {"conditions": [{"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": "0/3"}]},
        "Unschedulable",
        "0/3",
    ),
    ({"phase": "Failed", "reason": "Evicted", "message": "low on disk"}, "Evicted", "low on disk"),
]


@pytest.mark.parametrize(("status", "reason", "message"), WAITS)
def test_reason_and_message_of_a_pod_that_waits_or_ended(status, reason, message):
    view = pod_view(pod(status))
    assert (view.reason, view.message) == (reason, message)


DISRUPTED = [
    {"phase": "Failed", "reason": "Evicted"},
    {"phase": "Failed", "reason": "Preempting"},
    {
        "phase": "Failed",
        "conditions": [
            {"type": "TerminationTarget", "status": "False"},
            {"type": "DisruptionTarget", "status": "True", "reason": "PreemptionByScheduler"},
        ],
    },
    {"phase": "Failed", "conditions": [{"type": "TerminationTarget", "status": "True", "reason": "WorkloadEvicted"}]},
]


@pytest.mark.parametrize("status", DISRUPTED)
def test_disruptions(status):
    assert pod_view(pod(status)).disrupted


@pytest.mark.parametrize(
    ("more", "unqueued"),
    [
        ({}, False),
        ({"kueue.x-k8s.io/queue-name": "q"}, True),
        ({"kueue.x-k8s.io/queue-name": "q", "kueue.x-k8s.io/managed": "true"}, False),
    ],
)
def test_a_pod_with_a_queue_that_kueue_does_not_manage_is_unqueued(more, unqueued):
    assert pod_view(pod(labels=LABELS | more)).unqueued == unqueued


def test_kueues_reason_for_a_preempted_pod():
    """pkg/controller/jobs/pod/pod_controller.go of Kueue 0.19.2, Stop: the condition, then the deletion."""
    message = "Preempted to accommodate a workload (UID: w) due to prioritization in the ClusterQueue"
    target = {"type": "TerminationTarget", "status": "True", "reason": "WorkloadEvicted", "message": message}
    view = pod_view(pod({"phase": "Running", "conditions": [target]}))
    assert (view.reason, view.message) == ("WorkloadEvicted", message)


def test_the_deadline_of_a_pod_that_is_being_deleted():
    view = pod_view(pod(deletionTimestamp="2026-11-05T14:03:22Z", deletionGracePeriodSeconds=30))
    assert view.deleting
    assert view.deletion_deadline == 1793887402, "deletionTimestamp already includes the grace period"


@pytest.mark.parametrize(
    "labels", [{}, None, {"hftitan.io/job": "x"}, LABELS | {"hftitan.io/attempt": "two"}, {"hftitan.io/attempt": "1"}]
)
def test_a_pod_that_the_operator_did_not_render_is_ignored(labels):
    assert pod_view(pod(labels=labels)) is None


def test_a_long_message_is_truncated():
    view = pod_view(pod({"reason": "Evicted", "message": "x" * 100_000}))
    assert len(view.message) == 1024


def test_only_the_controller_is_the_owner():
    owners = [
        {"kind": "HFTitanJob", "uid": "a"},
        {"kind": "Other", "uid": "b", "controller": True},
        {"kind": "HFTitanJob", "uid": "c", "controller": True},
    ]
    assert owner_uid(pod(ownerReferences=owners)) == "c"
    assert owner_uid(pod(ownerReferences=owners[:2])) is None
    assert owner_uid(pod()) is None


@pytest.mark.parametrize(("truth", "ready"), [("True", True), ("False", False), ("Unknown", False), (None, True)])
def test_node_ready(truth, ready):
    conditions = [{"type": "MemoryPressure", "status": "False"}]
    if truth:
        conditions.append({"type": "Ready", "status": truth})
    assert node_ready({"metadata": {}, "status": {"conditions": conditions}}) is ready


# --- jobs -----------------------------------------------------------------------------------------------------

SPEC = {"model": {"name": "org/m"}, "dataset": {"name": "org/d"}, "training": {"steps": 5}}


def job(spec=SPEC, status=None, **metadata):
    body = {
        "apiVersion": "hftitan.io/v1alpha1",
        "kind": "HFTitanJob",
        "metadata": {"name": "x", "namespace": "ns", "uid": "u", "resourceVersion": "8", **metadata},
        "spec": spec,
    }
    return body if status is None else {**body, "status": status}


def test_a_valid_job():
    view = job_view(job(status={"phase": "Running", "attempt": 2}))
    assert view.problems == view.stale_status == ()
    assert (view.job.metadata.resource_version, view.job.spec.training.steps) == ("8", 5)
    assert (view.job.status.phase, view.job.status.attempt) == ("Running", 2)


BROKEN = [
    ([], "spec: "),
    (None, "spec: "),
    ({**SPEC, "mesh": "8"}, "spec.mesh: "),
    ({**SPEC, "training": {"steps": "5"}}, "spec.training.steps: "),
    ({**SPEC, "training": {"steps": 2**70}}, "spec.training.steps: "),
    ({**SPEC, "unheard": 1}, "spec.unheard: "),
    ({**SPEC, "pod": {"env": [{"name": "A=B", "value": "1"}]}}, "spec.pod.env[0].name: "),
]


@pytest.mark.parametrize(("spec", "path"), BROKEN)
def test_an_invalid_spec_keeps_identity_and_status(spec, path):
    view = job_view(job(spec=spec, status={"phase": "Running", "attempt": 2}))
    assert view.problems[0].startswith(path)
    assert (view.job.metadata.uid, view.job.status.attempt) == ("u", 2)


@pytest.mark.parametrize("status", [{"phase": "Dancing"}, {"attempt": "two", "mesh": "m"}, {"conditions": {}}])
def test_a_damaged_status_is_discarded_and_its_fields_are_removed(status):
    view = job_view(job(status=status))
    assert view.problems == ()
    assert view.job.status.phase is None
    assert set(view.stale_status) == set(status)


def test_unusual_metadata():
    view = job_view(job(labels=None, annotations={"a": "b" * 100_000}, managedFields=[{"x": {}}], finalizers=["z"]))
    assert view.problems == ()


# --- the patch of a status ------------------------------------------------------------------------------------


def merged(target, patch):
    """Apply a merge patch (RFC 7396), as the API server does."""
    if not isinstance(patch, dict):
        return patch
    result = dict(target) if isinstance(target, dict) else {}
    for key, value in patch.items():
        if value is None:
            result.pop(key, None)
        else:
            result[key] = merged(result.get(key), value)
    return result


PAIRS = [
    ({}, {"phase": "Pending"}),
    ({"phase": "Pending", "message": "m"}, {"phase": "Running"}),
    ({"progress": {"step": 1, "eta": "1m"}}, {"progress": {"step": 2}}),
    ({"conditions": [{"type": "A"}]}, {"conditions": [{"type": "A"}, {"type": "B"}]}),
    ({"checkpoint": {"step": 4}}, {}),
    ({}, {"checkpoint": {"step": 4}}),
    ({"a": 1}, {"a": 1}),
]


@pytest.mark.parametrize(("old", "new"), PAIRS)
def test_the_patch_turns_the_old_status_into_the_new_one(old, new):
    assert merged(old, status_patch(old, new)) == new


def test_the_patch_has_only_changed_fields():
    old = {"phase": "Running", "progress": {"step": 1, "loss": 2.0}, "mesh": "m"}
    assert status_patch(old, {**old, "progress": {"step": 2, "loss": 2.0}}) == {"progress": {"step": 2}}
