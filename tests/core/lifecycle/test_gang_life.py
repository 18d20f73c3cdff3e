"""Jobs with a gang scheduler: their PodGroups, gated and preempted pods, and a cluster without the scheduler."""

from __future__ import annotations

from dataclasses import replace

import pytest
from core_builders import T0, edited, job, pod, progress, running, seen, settle, with_status

from hftitan_operator.core import reasons
from hftitan_operator.core.lifecycle import status as st
from hftitan_operator.core.lifecycle.decide import decide
from hftitan_operator.core.lifecycle.denied import unserved
from hftitan_operator.core.rendering import gang as creation
from hftitan_operator.core.state import Apply, DeletePodGroup, Observed, Require
from hftitan_operator.step import batches

DAY = 86_400.0
GATED = {
    "phase": "Pending",
    "node": None,
    "reason": "SchedulingGated",
    "message": "Scheduling is blocked due to non-empty scheduling gates",
}
VOLCANO = "scheduling.volcano.sh/v1beta1"
RELEASE = DeletePodGroup("kueue.x-k8s.io/v1beta2", "x-uid-1", "workloads")


def queued(gang="kueue", nodes=2, **spec):
    queue = {"queue": "team-queue"} if gang in ("kueue", "volcano", "kai") else {}
    return job(nodes=nodes, scheduling={"gang": gang, **queue}, **spec)


def gated(index=0, attempt=1, **changes):
    return replace(pod(index, attempt, "Pending"), **{**GATED, **changes})


def kinds(actions):
    return [a.manifest["kind"] if isinstance(a, Apply) else type(a).__name__ for a in actions]


def groups(actions):
    """Return the names of the created and of the deleted PodGroups."""
    made = [
        a.manifest["metadata"]["name"] for a in actions if isinstance(a, Apply) and a.manifest["kind"] == "PodGroup"
    ]
    return made, [a.name for a in actions if isinstance(a, DeletePodGroup)]


# --- creation ---------------------------------------------------------------------------------------------------


def test_the_pod_group_is_created_first_in_its_own_batch():
    actions = decide(queued("volcano"), Observed(), T0).actions
    assert kinds(actions) == ["PodGroup", "Service", "ConfigMap", "Pod", "Pod"]
    assert [kinds(batch) for batch in batches(actions)] == [["PodGroup"], ["Service", "ConfigMap"], ["Pod", "Pod"]]


def test_the_kueue_queue_is_checked_before_anything_is_created():
    actions = decide(queued("kueue"), Observed(), T0).actions
    assert actions[0] == Require("kueue.x-k8s.io/v1beta2", "localqueues", "team-queue")
    assert [kinds(batch) for batch in batches(actions)] == [["Require"], ["Service", "ConfigMap"], ["Pod", "Pod"]]


def test_the_pod_group_is_applied_with_each_batch_of_pods_and_not_afterwards(monkeypatch):
    monkeypatch.setattr(creation, "PODS_AT_ONCE", 2)
    of = queued("volcano", nodes=3)
    first = decide(of, Observed(), T0)
    assert (groups(first.actions), first.recheck_after) == ((["x-uid-1"], []), 0)
    of = with_status(of, first)
    second = decide(of, seen(pod(0, phase="Pending"), pod(1, phase="Pending")), T0)
    assert kinds(second.actions) == ["PodGroup", "Pod"]
    of, (whole, *_) = settle(with_status(of, second), seen(*(pod(i, phase="Pending") for i in range(3))), T0)
    assert whole.actions == ()
    lost = decide(of, seen(*(pod(i, phase="Pending") for i in range(3)), service=False), T0)
    assert kinds(lost.actions) == ["Service"]


# --- the end of an attempt --------------------------------------------------------------------------------------


def test_a_new_attempt_has_a_new_group_and_the_old_group_is_deleted_at_the_failure():
    of = running(queued("volcano"))
    crashed = seen(pod(0, phase="Failed", exit_code=137), pod(1))
    failure = decide(of, crashed, T0 + 1)
    assert failure.status.phase == "Restarting"
    assert failure.actions == (DeletePodGroup(VOLCANO, "x-uid-1"),)
    of, (*_, drained) = settle(of, crashed, T0 + 1)
    assert groups(drained.actions) == ([], []), "deleted only once"
    over = seen(pod(0, phase="Failed", exit_code=137), pod(1, phase="Failed", exit_code=143))
    of, decisions = settle(of, over, T0 + 2)
    actions = [action for decision in decisions for action in decision.actions]
    assert of.status.attempt == 2
    assert groups(actions)[0] == ["x-uid-2"]
    pods = [a.manifest for a in actions if isinstance(a, Apply) and a.manifest["kind"] == "Pod"]
    assert [p["metadata"]["annotations"] for p in pods] == [{"scheduling.k8s.io/group-name": "x-uid-2"}] * 2


def test_a_suspended_job_has_no_group_and_resumes_with_a_new_one():
    of = edited(running(queued("volcano")), runPolicy={"suspend": True})
    of, decisions = settle(of, seen(pod(0), pod(1)), T0 + 1)
    gone = ["x-uid-1", "x-uid-2"]  # an interrupted pass may have created the second
    assert [groups(decision.actions)[1] for decision in decisions if groups(decision.actions)[1]] == [gone]
    assert groups(decide(of, seen(), T0 + 9).actions) == ([], [])
    of, decisions = settle(edited(of, runPolicy={"suspend": False}), seen(), T0 + 10)
    assert groups([a for d in decisions for a in d.actions]) == (["x-uid-2"], [])


def test_a_job_created_suspended_has_no_group():
    of, decisions = settle(queued("volcano", runPolicy={"suspend": True}), Observed(), T0)
    assert groups([a for d in decisions for a in d.actions]) == ([], ["x-uid-1"])
    assert decide(of, Observed(), T0 + DAY).actions == ()


def test_the_group_of_an_interrupted_pass_is_deleted():
    """The pass created group and pods of attempt 2 without a status; then the job is suspended, or the pods deleted."""
    of = running(queued("volcano"))
    begun = [replace(pod(i, 2, "Pending"), node=None) for i in range(2)]
    suspended = decide(edited(of, runPolicy={"suspend": True}), seen(*begun), T0 + 1)
    assert groups(suspended.actions)[1] == ["x-uid-1", "x-uid-2", "x-uid-3"]
    deleted = [replace(p, deleting=True) for p in begun]
    of, decisions = settle(of, seen(*deleted), T0 + 1)
    assert of.status.attempt == 3
    assert groups([a for d in decisions for a in d.actions]) == (["x-uid-3"], ["x-uid-1", "x-uid-2"])


def test_the_group_of_a_failed_job_is_deleted_and_that_of_a_succeeded_job_kept():
    of = running(queued("volcano", runPolicy={"activeDeadlineSeconds": 60}))
    late = decide(of, seen(pod(0), pod(1), progress=progress(11)), T0 + 61)
    assert (late.status.phase, groups(late.actions)[1]) == ("Failed", ["x-uid-1", "x-uid-2"])
    wrong = decide(of, seen(pod(0, phase="Failed", report="UserError"), pod(1)), T0 + 1)
    assert (wrong.status.phase, groups(wrong.actions)[1]) == ("Failed", ["x-uid-1", "x-uid-2"])
    done = decide(of, seen(*(pod(i, phase="Succeeded") for i in range(2))), T0 + 1)
    assert (done.status.phase, groups(done.actions)) == ("Succeeded", ([], []))


# --- a cluster without the scheduler ----------------------------------------------------------------------------

ABSENT = {
    # needed resource, fix
    "kueue": ("localqueues of kueue.x-k8s.io/v1beta2", "install Kueue 0.15 or newer"),
    "volcano": ("podgroups of scheduling.volcano.sh/v1beta1", "install Volcano"),
    "coscheduling": ("podgroups of scheduling.x-k8s.io/v1alpha1", "install the scheduler-plugins chart"),
    "kai": ("podgroups of scheduling.run.ai/v2alpha2", "install KAI Scheduler 0.15 or newer"),
    "kubernetes": (
        "podgroups of scheduling.k8s.io/v1beta1 or v1alpha3 or v1alpha2",
        "enable one of them and the feature gate GenericWorkload in Kubernetes 1.36 or newer",
    ),
}


@pytest.mark.parametrize("gang", ABSENT)
def test_a_new_job_is_rejected_with_the_field_and_the_fix(gang):
    needed, remedy = ABSENT[gang]
    message = (
        f"spec.scheduling.gang: {gang} needs {needed}, which this cluster does not have; {remedy}, or use gang: none"
    )
    of = queued(gang)
    rejected = unserved(of, decide(of, Observed(), T0), "from the server", T0)
    assert (rejected.status.phase, rejected.status.message, rejected.actions) == ("Failed", message, ())
    accepted = st.condition(rejected.status, reasons.ACCEPTED)
    assert (accepted.status, accepted.reason, accepted.message) == ("False", "NoGangScheduler", message)
    assert rejected.status.attempt == 0
    assert [event.reason for event in rejected.events] == ["NoGangScheduler"]
    final = decide(with_status(of, rejected), Observed(), T0 + DAY)
    assert (final.status, final.actions) == (rejected.status, ())


def test_a_job_that_had_pods_waits_for_its_scheduler():
    of = edited(running(queued("volcano")), runPolicy={"suspend": True})
    of, _ = settle(of, seen(), T0 + 1)
    of = edited(of, runPolicy={"suspend": False})
    waiting = unserved(of, decide(of, Observed(), T0 + 2), "no podgroups here", T0 + 2)
    assert (waiting.status.phase, waiting.recheck_after) == ("Pending", 10)
    assert waiting.status.message == "the cluster rejected an object of attempt 2: no podgroups here"


# --- Kueue ------------------------------------------------------------------------------------------------------


def test_gated_pods_wait_without_a_timeout():
    of, _ = settle(queued(), Observed(), T0)
    for days in (0, 1, 30):
        of, decisions = settle(of, seen(gated(0, created_at=T0), gated(1, created_at=T0)), T0 + days * DAY)
        assert decisions[-1].recheck_after is None, "no timer"
        assert (of.status.phase, of.status.attempt, of.status.restarts) == ("Pending", 1, 0)
    assert of.status.message == ("attempt 1: waiting for Kueue to admit the workload x-uid-1 from queue team-queue")


def test_pods_that_kueue_does_not_manage_have_one_event():
    of, _ = settle(queued(), Observed(), T0)
    message = (
        "the pods do not wait in queue team-queue: Kueue does not manage pods in namespace team; check Kueue's pod "
        "integration and managedJobsNamespaceSelector"
    )
    for expected in ([message], []):
        of, decisions = settle(of, seen(pod(0, unqueued=True), pod(1, unqueued=True)), T0)
        assert [e.message for d in decisions for e in d.events if e.reason == "NotQueued"] == expected
    assert of.status.phase == "Starting"


EVICTED = {"disrupted": True, "reason": "WorkloadEvicted", "message": "Preempted to accommodate a workload (UID: w)"}


@pytest.mark.parametrize(
    ("pods", "why"),
    [
        # The pods have Kueue's condition, save and exit, and Kueue's finalizer keeps them for a while.
        (
            [pod(i, phase="Failed", deleting=True, report="Preempted", **EVICTED) for i in range(2)],
            "pod x-1-0 was evicted (Preempted to accommodate a workload (UID: w))",
        ),
        # One pod exits first, and its peer fails with a network error.
        (
            [
                pod(0, phase="Failed", report={"reason": "NetworkError", "retryable": True}),
                pod(1, phase="Failed", deleting=True, **EVICTED),
            ],
            "pod x-1-1 was evicted (Preempted to accommodate a workload (UID: w))",
        ),
        # An older Kueue sets no condition.
        ([pod(0, phase="Failed", deleting=True, report="Preempted")], "pod x-1-0 received SIGTERM"),
        ([], "pod x-1-0 was deleted"),
    ],
)
def test_the_restart_of_a_preempted_gang_does_not_count(pods, why):
    of = running(queued(runPolicy={"maxRestarts": 0}))
    of, decisions = settle(of, seen(*pods), T0 + 60)
    assert (of.status.attempt, of.status.restarts) == (2, 1)
    assert of.status.restart_history[-1].counted is False
    assert any(why in event.message for decision in decisions for event in decision.events)
    made = [a.manifest for d in decisions for a in d.actions if isinstance(a, Apply)]
    assert {m["metadata"]["labels"]["kueue.x-k8s.io/pod-group-name"] for m in made} == {"x-uid-2"}


def test_a_deleted_gated_pod_does_not_block_the_next_attempt():
    """The API server does not bind a pod that is being deleted, so it never runs; Kueue's finalizer may keep it."""
    of, _ = settle(queued(), Observed(), T0)
    of, _ = settle(of, seen(gated(0), gated(1)), T0 + 1)
    going = [gated(i, deleting=True, deletion_deadline=T0 + 2) for i in range(2)]
    of, _ = settle(of, seen(*going), T0 + 2)
    assert (of.status.attempt, of.status.restart_history[-1].counted) == (2, False)
    new = [gated(i, 2) for i in range(2)]
    of, decisions = settle(of, seen(*going, *new), T0 + DAY)
    assert (of.status.attempt, of.status.phase, decisions[-1].actions) == (2, "Pending", (RELEASE,))
    of, decisions = settle(of, seen(*new), T0 + DAY)
    assert decisions[-1].actions == ()


def test_the_operator_waits_for_a_bound_pod_that_is_being_deleted():
    of = running(queued())
    leaving = [replace(pod(i), deleting=True, deletion_deadline=T0 + 300) for i in range(2)]
    of, decisions = settle(of, seen(*leaving), T0 + 1)
    assert (of.status.attempt, decisions[-1].actions) == (1, ())


def test_a_job_suspended_in_the_queue_leaves_it_and_resumes_as_a_new_group():
    of, _ = settle(queued(), Observed(), T0)
    of, _ = settle(of, seen(gated(0), gated(1)), T0 + 1)
    of = edited(of, runPolicy={"suspend": True})
    of, decisions = settle(of, seen(gated(0), gated(1)), T0 + 2)
    assert kinds([a for d in decisions for a in d.actions])[-2:] == ["DeletePod", "DeletePod"]
    held = seen(*(gated(i, deleting=True, deletion_deadline=T0 + 2) for i in range(2)))
    of, (*_, suspended) = settle(of, held, T0 + 3)
    assert (of.status.phase, of.status.message) == ("Suspended", "suspended; will resume from the beginning")
    assert suspended.actions == (RELEASE,)
    of, decisions = settle(edited(of, runPolicy={"suspend": False}), seen(), T0 + 4)
    assert of.status.attempt == 2
    assert kinds([a for d in decisions for a in d.actions]) == ["Require", "Pod", "Pod"]
    assert not of.status.restart_history


FAILED = pod(0, phase="Failed", exit_code=1)
# The pods of an attempt that is over, and whether Kueue would keep their quota.
ENDS = {
    "one failed, and its peer exited": ([FAILED, pod(1, phase="Failed", deleting=True)], False),
    "one failed, and its peer exits": ([FAILED, pod(1, deleting=True)], False),
    "deleted before they were bound": ([gated(0, deleting=True), gated(1, deleting=True)], True),
    "the node of one was deleted": ([pod(0, node_lost=True, node_gone=True), pod(1)], True),
    "the node of one is lost and its grace period over": (
        [pod(0, node_lost=True, deleting=True, deletion_deadline=T0), pod(1)],
        True,
    ),
    "the node of one is lost": ([pod(0, node_lost=True, deleting=True, deletion_deadline=T0 + 99), pod(1)], False),
}


@pytest.mark.parametrize(("pods", "kept"), ENDS.values(), ids=ENDS)
def test_the_group_of_an_attempt_whose_pods_do_not_end_is_released(pods, kept):
    """Kueue releases other groups itself. To delete their Workload would delete failed pods, and with them the logs."""
    for gang in ("kueue", "volcano"):
        _, decisions = settle(running(queued(gang)), seen(*pods), T0 + 20)
        released = [a for d in decisions for a in d.actions if a == RELEASE]
        assert bool(released) == (kept and gang == "kueue")


def test_the_message_of_a_waiting_job_has_kueues_words():
    of, _ = settle(queued(), Observed(), T0)
    why = (
        "couldn't assign flavors to pod set a: insufficient unused quota for nvidia.com/gpu in flavor f, 2 more needed"
    )
    of, _ = settle(of, replace(seen(gated(0), gated(1)), queue_message=why), T0)
    assert of.status.message == (
        f"attempt 1: waiting for Kueue to admit the workload x-uid-1 from queue team-queue: {why}"
    )


# --- Kubernetes' own scheduler ------------------------------------------------------------------------------------


def test_the_cause_of_a_preemption_is_found_in_the_last_state_of_a_deleted_pod():
    """The kubelet removes a deleted pod as soon as it has ended, often before the operator looks."""
    of = running(queued("kubernetes"))
    why = {"disrupted": True, "reason": "PreemptionByScheduler", "message": "default-scheduler: preempting"}
    last = pod(1, phase="Failed", deleting=True, report="Preempted", **why)
    after, decisions = settle(of, replace(seen(pod(0)), departed=last), T0 + 60)
    assert [e.reason for d in decisions for e in d.events] == ["Evicted"]
    assert "pod x-1-1 was preempted (default-scheduler: preempting)" in after.status.message
    done = replace(last, phase="Succeeded", disrupted=False, exit_code=0, report=None)
    for departed in (done, replace(last, attempt=7), replace(last, index=0)):
        _, decisions = settle(of, replace(seen(pod(0)), departed=departed), T0 + 60)
        assert [e.reason for d in decisions for e in d.events] == ["PodDeleted"]


def test_the_message_of_a_gang_names_the_pod_whose_scheduling_failed():
    of, _ = settle(queued("kubernetes"), Observed(), T0)
    held = {"node": None, "reason": "Unschedulable"}
    group = replace(pod(0, phase="Pending"), **held, message="pod group is unschedulable, 0/1 placements are available")
    cause = replace(pod(1, phase="Pending"), **held, message="0/1 nodes are available: 1 Insufficient nvidia.com/gpu.")
    of, _ = settle(of, seen(group, cause), T0)
    assert of.status.message == f"attempt 1: pod x-1-1 is not scheduled (Unschedulable): {cause.message}"
