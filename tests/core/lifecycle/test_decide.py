"""The phases of a job: for each observation the exact phase, message, actions and events."""

from __future__ import annotations

from dataclasses import replace

import pytest
from core_builders import T0, edited, job, pod, progress, running, seen, settle, with_status

from hftitan_operator.core.clock import rfc3339
from hftitan_operator.core.lifecycle import status as st
from hftitan_operator.core.lifecycle.decide import decide
from hftitan_operator.core.rendering import gang
from hftitan_operator.core.state import Apply, Decision, DeleteJob, DeletePod, Observed


def acts(decision: Decision) -> list[str]:
    """Return the actions in short form: `+Pod x-1-0`, `-x-1-0`, `-x-1-0 grace 0`."""
    found = []
    for action in decision.actions:
        match action:
            case Apply(manifest):
                found.append(f"+{manifest['kind']} {manifest['metadata']['name']}")
            case DeletePod(name, _, grace):
                found.append(f"-{name}" if grace is None else f"-{name} grace {grace}")
            case DeleteJob():
                found.append("-job")
    return found


def events(decisions: list[Decision]) -> list[tuple[str, str, str]]:
    return [(event.type, event.reason, event.message) for d in decisions for event in d.events]


def conditions(of) -> dict[str, tuple[str, str]]:
    return {c.type: (c.status, c.reason) for c in of.status.conditions}


def failed_by(of, reason: str) -> bool:
    return of.status.phase == "Failed" and conditions(of)["Failed"] == ("True", reason)


# --- without failures ---------------------------------------------------------------------------------------------


def test_a_new_job_is_accepted_and_its_gang_created_in_one_pass():
    new = decide(job(), Observed(), T0)
    assert acts(new) == ["+Service x", "+ConfigMap x-config", "+Pod x-1-0", "+Pod x-1-1"]
    status = new.status
    assert (status.phase, status.attempt, status.message) == ("Pending", 1, "attempt 1: created 2 pods")
    assert (status.mesh, status.world_size, status.start_time) == ("2x1: dp2", 2, "2027-01-15T08:00:00Z")
    assert events([new]) == [
        ("Normal", "Accepted", "mesh 2x1: dp2, world size 2"),
        ("Normal", "AttemptCreated", "attempt 1: created 2 pods"),
    ]
    assert conditions(with_status(job(), new)) == {
        "Accepted": ("True", "Valid"),
        "PodsCreated": ("False", "Creating"),
        "Running": ("False", "NotStarted"),
        "Suspended": ("False", "NotSuspended"),
        "Succeeded": ("False", "NotFinished"),
        "Failed": ("False", "NotFinished"),
    }


def test_a_large_gang_is_created_in_batches_and_complete_after_the_last(monkeypatch):
    monkeypatch.setattr(gang, "PODS_AT_ONCE", 2)
    of = job(nodes=5)
    first = decide(of, Observed(), T0)
    assert (acts(first)[-2:], first.recheck_after) == (["+Pod x-1-0", "+Pod x-1-1"], 0)
    of = with_status(of, first)
    second = decide(of, seen(pod(0, phase="Pending"), pod(1, phase="Pending")), T0)
    assert (acts(second), second.recheck_after, second.events) == (["+Pod x-1-2", "+Pod x-1-3"], 0, ())
    last = decide(of, seen(*(pod(i, phase="Pending") for i in range(4))), T0)
    assert (acts(last), last.recheck_after) == (["+Pod x-1-4"], None)
    of, _ = settle(of, seen(*(pod(i) for i in range(5))), T0)
    assert conditions(of)["PodsCreated"] == ("True", "Created")


WAITS = [
    ([pod(0, phase="Pending"), pod(1)], "attempt 1: waiting for 1 of 2 pods to start"),
    ([pod(0, phase="Pending", reason="ContainerCreating"), pod(1)], "attempt 1: waiting for 1 of 2 pods to start"),
    (
        [
            pod(0),
            pod(1, phase="Pending", reason="Unschedulable", message="0/3 nodes are available: 3 Insufficient gpu"),
        ],
        "attempt 1: pod x-1-1 is not scheduled (Unschedulable): 0/3 nodes are available: 3 Insufficient gpu",
    ),
    (
        [pod(0, phase="Pending"), pod(1, phase="Pending", reason="ErrImagePull", message="no such tag")],
        "attempt 1: pod x-1-1 waits (ErrImagePull): no such tag",
    ),
]


@pytest.mark.parametrize(("pods", "message"), WAITS)
def test_the_message_of_a_pending_job_names_what_it_waits_for(pods, message):
    created, _ = settle(job(), Observed(), T0)
    of, decisions = settle(created, seen(*pods), T0 + 1)
    assert (of.status.phase, of.status.message) == ("Pending", message)
    assert conditions(of)["PodsCreated"] == ("True", "Created")
    assert [acts(d) for d in decisions] == [[]]
    assert events(decisions) == []


def test_starting_then_running_then_succeeded():
    of, _ = settle(job(), Observed(), T0)
    gang = (pod(0, started_at=T0 + 5), pod(1, started_at=T0 + 7))
    of, decisions = settle(of, seen(*gang), T0 + 9)
    assert (of.status.phase, of.status.message) == ("Starting", "attempt 1: starting the trainer")
    assert of.status.attempt_start_time == rfc3339(T0 + 7)
    assert events(decisions) == [("Normal", "PodsRunning", "attempt 1: all 2 pods run")]
    assert decisions[-1].recheck_after == 1798  # startupTimeoutSeconds after the last pod started

    of, decisions = settle(of, seen(*gang, progress=progress(0, phase="loading", updated=T0 + 10)), T0 + 10)
    assert (of.status.phase, events(decisions)) == ("Starting", [])

    shown = progress(
        3, updated=T0 + 20, loss=2.5, tokens_per_second=100, step_seconds=2.0, eta_seconds=194, checkpoint_step=2,
        checkpoint_time=T0 + 19, model_revision="abc", grad_norm=1.0,
    )  # fmt: skip
    of, decisions = settle(of, seen(*gang, progress=shown), T0 + 21)
    assert (of.status.phase, of.status.message) == ("Running", "attempt 1: training")
    assert events(decisions) == [
        ("Normal", "CheckpointSaved", "attempt 1: saved step 2"),
        ("Normal", "Training", "attempt 1: training from the beginning"),
    ]
    status = of.status
    assert status.progress
    assert status.checkpoint
    assert (status.progress.step, status.progress.loss, status.progress.eta) == (3, 2.5, "3m14s")
    assert (status.checkpoint.step, status.checkpoint.time) == (2, rfc3339(T0 + 19))
    assert (status.model_revision, status.goodput) == ("abc", 0.3)  # 3 steps x 2 s in 20 s

    report = {
        "reason": "Completed",
        "retryable": False,
        "step": 100,
        "export_path": "/out/export",
        "checkpoint_step": 100,
    }
    done = tuple(replace(p, phase="Succeeded", ready=False, report=None) for p in gang)
    done = (pod(0, phase="Succeeded", report=report), done[1])
    of, decisions = settle(of, seen(*done, progress=shown), T0 + 60)
    message = "finished 100 steps; the model is in /out/export"
    assert (of.status.phase, of.status.message) == ("Succeeded", message)
    assert events(decisions) == [("Normal", "Succeeded", message)]
    assert (of.status.completion_time, of.status.active_since) == (rfc3339(T0 + 60), None)
    assert of.status.active_seconds == 60
    assert of.status.progress
    assert (of.status.progress.step, of.status.progress.eta) == (100, None)
    assert of.status.pods
    assert of.status.pods.succeeded == 2
    assert conditions(of)["Running"] == ("False", "Completed")


def completed(step, **values):
    """Return a pod of node 0 that completed, and the progress in its exit report."""
    last = progress(step, updated=T0 + 50, phase="exporting", **values).to_dict()
    report = {"reason": "Completed", "retryable": False, "step": step, "progress": last}
    return pod(0, phase="Succeeded", report=report)


def test_final_status_has_the_values_of_the_last_step_not_of_the_last_poll():
    of = running(step=27)
    polled = progress(27, updated=T0, loss=3.9, tokens_per_second=8000.0, eta_seconds=20)
    done = completed(100, loss=3.14159265, tokens_per_second=9010.689951623572, grad_norm=0.000123456, eta_seconds=0)
    of, _ = settle(of, seen(done, pod(1, phase="Succeeded", report="Completed"), progress=polled), T0 + 60)
    shown = of.status.progress
    assert shown
    assert (of.status.phase, shown.step, shown.eta) == ("Succeeded", 100, None)
    assert (shown.loss, shown.tokens_per_second, shown.grad_norm) == (3.1416, 9010.7, 0.00012346), "five digits"


@pytest.mark.parametrize(
    ("checkpoint", "path", "place"),
    [
        ({"volume": "results"}, "/var/hftitan/output/export", "x/export of claim results"),
        ({"volume": "results", "folder": "a/b"}, "/var/hftitan/output/export", "a/b/export of claim results"),
        ({"volume": "results"}, "/home/me/run/export", "/home/me/run/export"),
    ],
)
def test_final_message_names_claim_and_folder_of_the_export(checkpoint, path, place):
    of = running(job(checkpoint=checkpoint))
    done = tuple(pod(i, phase="Succeeded", report={**_DONE, "export_path": path}) for i in range(2))
    of, _ = settle(of, seen(*done), T0 + 60)
    assert of.status.message == f"finished 100 steps; the model is in {place}"


_DONE = {"reason": "Completed", "retryable": False, "step": 100}


def test_one_finished_pod_does_not_finish_the_job():
    of = running()
    of, decisions = settle(of, seen(pod(0), pod(1, phase="Succeeded"), progress=progress(100, phase="done")), T0 + 1)
    assert of.status.phase == "Running"
    assert events(decisions) == []


def test_a_job_that_resumes_an_earlier_job_has_no_goodput():
    of = running(step=None)
    old = progress(550, resumed_from=500, step_seconds=1.0, updated=T0 + 60)
    of, decisions = settle(of, seen(pod(0), pod(1), progress=old), T0 + 60)
    assert of.status.goodput is None
    assert events(decisions) == [("Normal", "Training", "attempt 1: training from step 500")]


SAVES = [
    # [(seconds after T0, saved step)], steps with an event. T0 is the start of a ten-minute slot.
    ([(10, 1)], [1]),
    ([(10, 1), (11, 1)], [1]),
    ([(10, 1), (300, 2), (599, 3)], [1]),
    ([(10, 1), (599, 2), (601, 3), (900, 4), (1300, 5)], [1, 3, 5]),
    ([(10, 4), (1300, 4), (1301, 3)], [4]),  # the same step at another time, then an older step
    ([(10, 1), (86_410, 2)], [1, 2]),
]


@pytest.mark.parametrize(("saves", "expected"), SAVES)
def test_checkpoint_events_are_limited_to_one_per_ten_minutes(saves, expected):
    of, found = running(step=None), []
    for after, saved in saves:
        shown = progress(50, updated=T0 + after, checkpoint_step=saved, checkpoint_time=T0 + after)
        of, decisions = settle(of, seen(pod(0), pod(1), progress=shown), T0 + after)
        found += [message for _, reason, message in events(decisions) if reason == "CheckpointSaved"]
    assert found == [f"attempt 1: saved step {step}" for step in expected]


def test_the_checkpoint_that_the_attempt_resumed_from_has_no_event():
    of, gang = running(step=None), (pod(0), pod(1))
    for phase, resumed, step in (("loading", None, 0), ("training", 500, 500), ("training", 500, 510)):
        old = progress(step, phase=phase, resumed_from=resumed, updated=T0, checkpoint_step=500, checkpoint_time=T0)
        of, decisions = settle(of, seen(*gang, progress=old), T0 + 1)
        assert "CheckpointSaved" not in [reason for _, reason, _ in events(decisions)]
    own = progress(520, resumed_from=500, updated=T0 + 700, checkpoint_step=520, checkpoint_time=T0 + 700)
    of, decisions = settle(of, seen(*gang, progress=own), T0 + 701)
    assert events(decisions) == [("Normal", "CheckpointSaved", "attempt 1: saved step 520")]


def test_a_deleted_service_and_configmap_are_created_again():
    of = running()
    gone = decide(of, seen(pod(0), pod(1), service=False, config=False), T0 + 1)
    assert acts(gone) == ["+Service x", "+ConfigMap x-config"]
    assert gone.status.phase == "Running"


# --- restarts -----------------------------------------------------------------------------------------------------


def test_a_killed_pod_restarts_the_gang_when_every_old_pod_has_ended():
    of = running(checkpoint=40)
    dead = pod(0, phase="Failed", exit_code=137)
    first = decide(of, seen(dead, pod(1)), T0 + 100)
    message = "attempt 2: restarting from step 40 after pod x-1-0 was killed (exit 137); restart 1 of 3"
    assert (first.status.phase, first.status.message) == ("Restarting", message)
    assert events([first]) == [("Warning", "Killed", message)]
    assert acts(first) == []  # the status is written before pods are deleted
    assert first.recheck_after == 0
    of = with_status(of, first)

    second = decide(of, seen(dead, pod(1)), T0 + 100)
    assert acts(second) == ["-x-1-1 grace 15"]
    assert (second.status, second.events) == (first.status, ())

    leaving = replace(pod(1), deleting=True, deletion_deadline=T0 + 115)
    assert acts(decide(of, seen(dead, leaving), T0 + 110)) == []

    of, decisions = settle(of, seen(dead), T0 + 116)
    message = "attempt 2: created 2 pods, restarting from step 40 after pod x-1-0 was killed (exit 137)"
    assert (of.status.phase, of.status.attempt, of.status.restarts, of.status.message) == ("Pending", 2, 1, message)
    assert acts(decisions[0]) == ["+Pod x-2-0", "+Pod x-2-1"]
    assert events(decisions) == [("Normal", "AttemptCreated", message)]
    assert of.status.attempt_start_time is None
    (record,) = of.status.restart_history
    assert (record.attempt, record.reason, record.step, record.counted) == (1, "Killed", 10, True)


CAUSES = [
    # pods of attempt 1, reason, counted
    ([pod(0, phase="Failed", report="NetworkError"), pod(1, phase="Failed", exit_code=139)], "Killed", True),
    ([pod(0), pod(1, phase="Failed", disrupted=True, reason="Evicted")], "Evicted", False),
    ([pod(0), pod(1, node_lost=True, deleting=True, deletion_deadline=T0 + 900)], "NodeLost", False),
    ([pod(0), pod(1, node_lost=True, node_gone=True)], "NodeLost", False),
    ([pod(0), pod(1, phase="Pending", node_gone=True)], "NodeLost", False),
    ([pod(0), pod(1, phase="Succeeded", report="Preempted")], "Preempted", False),
    ([pod(0)], "PodDeleted", False),
    ([], "PodDeleted", False),
    ([pod(0), pod(1, deleting=True, deletion_deadline=T0 - 40)], "PodDeleted", False),
    ([pod(0), pod(1, phase="Failed", reason="OOMKilled", exit_code=137)], "OOMKilled", True),
    ([pod(0), pod(1, phase="Failed", report="OutOfMemory")], "OutOfMemory", True),
    ([pod(0), pod(1, phase="Failed", rejected=True, reason="OutOfpods")], "NodeError", False),
    (
        [pod(0), pod(1, phase="Failed", exit_code=128, reason="StartError", message="exec: no such file")],
        "StartError",
        True,
    ),
]


@pytest.mark.parametrize(("pods", "reason", "counted"), CAUSES)
def test_causes_of_a_restart(pods, reason, counted):
    first = decide(running(), seen(*pods), T0 + 1)
    assert first.status.phase in ("Restarting", "Pending")  # Pending at once if no old pod runs
    (record,) = first.status.restart_history
    assert (record.reason, record.counted) == (reason, counted)
    assert (first.events[0].type, first.events[0].reason) == ("Warning" if counted else "Normal", reason)
    ending = "restart 1 of 3" if counted else "does not count against maxRestarts"
    assert first.events[0].message.endswith(ending)


WAITED_FOR = [
    [pod(0), pod(1, deleting=True, deletion_deadline=T0 + 300)],  # drained: its ranks are saving
    [pod(0), pod(1, node_lost=True, ready=False)],  # the kubelet may recover
    [pod(0), pod(1, phase="Unknown")],
    [pod(0, ready=False), pod(1, ready=False)],
]


@pytest.mark.parametrize("pods", WAITED_FOR)
def test_the_operator_waits_while_the_attempt_may_still_continue(pods):
    of, decisions = settle(running(), seen(*pods, progress=progress(11, updated=T0 + 1)), T0 + 2)
    assert of.status.phase == "Running"
    assert events(decisions) == []
    assert acts(decisions[-1]) == []


def test_the_message_names_a_pod_that_is_being_deleted():
    of, _ = settle(running(), seen(pod(0), pod(1, deleting=True, deletion_deadline=T0 + 300)), T0 + 2)
    assert of.status.message == "attempt 1: pod x-1-1 is being deleted; waiting until it is gone"


def test_an_interrupted_creation_is_completed_and_not_taken_for_a_deletion():
    of, _ = settle(job(), Observed(), T0)
    half = decide(of, seen(pod(0, phase="Pending")), T0 + 1)
    assert acts(half) == ["+Pod x-1-1"]
    assert half.status.restarts == 0


def test_a_lost_status_is_rebuilt_from_the_pods_of_the_newest_attempt():
    of, decisions = settle(job(), seen(pod(0, 4), pod(1, 4)), T0)
    assert (of.status.attempt, of.status.phase) == (4, "Starting")
    assert all(not d.actions for d in decisions)


def test_an_attempt_created_by_a_pass_that_crashed_is_adopted():
    """Attempt 1 has ended and attempt 2 exists, but the status shows neither."""
    old = pod(0, phase="Failed", exit_code=137)
    of, decisions = settle(running(), seen(old, pod(0, 2, phase="Pending"), pod(1, 2)), T0 + 1)
    assert (of.status.attempt, of.status.restarts, [r.reason for r in of.status.restart_history]) == (2, 1, ["Killed"])
    assert [acts(d) for d in decisions] == [[], []]
    assert of.status.message == "attempt 2: waiting for 1 of 2 pods to start"


def test_an_attempt_that_failed_before_the_status_was_written_is_recorded():
    old, stillborn = pod(0, phase="Failed", exit_code=137), pod(0, 2, phase="Failed", exit_code=1)
    of, decisions = settle(running(), seen(old, stillborn), T0 + 1)
    assert of.status.attempt == 3
    assert [(r.attempt, r.reason) for r in of.status.restart_history] == [(1, "Killed"), (2, "ExitedWithoutReport")]
    assert acts(decisions[0]) == []
    assert acts(decisions[-1]) == ["+Pod x-3-0", "+Pod x-3-1", "-x-1-0"]


def test_no_pods_are_created_while_other_pods_are_being_deleted():
    old, leaving = pod(0, phase="Failed", exit_code=137), pod(0, 2, deleting=True, deletion_deadline=T0 + 300)
    of, decisions = settle(running(), seen(old, leaving), T0 + 1)
    assert (of.status.phase, of.status.attempt, acts(decisions[-1])) == ("Restarting", 1, [])
    of, decisions = settle(of, seen(old), T0 + 300)
    assert (of.status.attempt, acts(decisions[-1])) == (2, ["+Pod x-2-0", "+Pod x-2-1"])


def test_pods_of_an_older_attempt_are_deleted_before_pods_are_created():
    of, _ = settle(job(), Observed(), T0)
    of = of.model_copy(update={"status": st.updated(of.status, attempt=2)})
    stray = decide(of, seen(pod(1, 1), pod(0, 2)), T0 + 1)
    assert acts(stray) == ["-x-1-1 grace 15"]


DEADLINE = T0 + 400
"""The deletion deadline of a pod with a long grace period."""
LOSSES = [
    # a pod of a failed gang, seconds since T0, actions, recheck_after
    (pod(1), 10, ["-x-1-1 grace 15"], None),
    (pod(1, deleting=True, deletion_deadline=DEADLINE), 10, [], None),
    (pod(1, deleting=True, deletion_deadline=DEADLINE), 4000, [], None),  # responsive: no time limit
    (pod(1, node_lost=True), 10, ["-x-1-1 grace 15"], None),
    # The node is unresponsive: a long grace period is shortened, and the operator waits for its end.
    (pod(1, node_lost=True, deleting=True, deletion_deadline=DEADLINE), 10, ["-x-1-1 grace 15"], 375),
    (pod(1, node_lost=True, deleting=True, deletion_deadline=T0 + 25), 10, [], 15),
    (pod(1, node_lost=True, deleting=True, deletion_deadline=T0 + 25), 24, [], 1),
    (pod(1, node_lost=True, deleting=True, deletion_deadline=T0 + 25), 25, ["-x-1-1 grace 0"], None),
    (pod(1, node_lost=True, deleting=True), 10, ["-x-1-1 grace 0"], None),
    # Nothing runs on a deleted node.
    (pod(1, node_gone=True), 10, ["-x-1-1 grace 0"], None),
    (pod(1, node_lost=True, node_gone=True, deleting=True, deletion_deadline=DEADLINE), 10, ["-x-1-1 grace 0"], None),
    (pod(1, phase="Failed", node_gone=True), 10, None, None),  # finished: kept for its log
]


@pytest.mark.parametrize(("broken", "after", "expected", "recheck"), LOSSES)
def test_pods_of_a_failed_gang_are_deleted_as_the_state_of_their_node_allows(broken, after, expected, recheck):
    dead = pod(0, phase="Failed", exit_code=1)
    of = with_status(running(), decide(running(), seen(dead, pod(1)), T0 + 5))
    decision = decide(of, seen(dead, broken), T0 + after)
    if expected is None:
        assert (decision.status.attempt, acts(decision)) == (2, ["+Pod x-2-0", "+Pod x-2-1"])
        return
    assert (decision.status.phase, acts(decision), decision.recheck_after) == ("Restarting", expected, recheck)


def test_a_deleted_node_restarts_the_gang_without_waiting():
    of, gone = running(), pod(1, node_lost=True, node_gone=True)
    of, decisions = settle(of, seen(pod(0), gone), T0 + 1)
    message = (
        "attempt 2: restarting from the beginning after node n1 of pod x-1-1 was deleted, and with it rank 1 "
        "(dp_shard 1); does not count against maxRestarts"
    )
    assert events(decisions) == [("Normal", "NodeLost", message)]
    assert [acts(d) for d in decisions] == [[], ["-x-1-0 grace 15", "-x-1-1 grace 0"]]


def test_pods_on_lost_nodes_are_deleted_after_the_job_ends():
    of, _ = settle(running(), seen(pod(0), pod(1, phase="Failed", report="UserError")), T0 + 1)
    left = pod(0, node_lost=True, deleting=True, deletion_deadline=DEADLINE)
    assert acts(decide(of, seen(left), T0 + 2)) == ["-x-1-0 grace 15"]
    assert acts(decide(of, seen(replace(left, node_gone=True)), T0 + 2)) == ["-x-1-0 grace 0"]


def test_pods_of_the_previous_attempt_are_kept_and_older_ones_deleted():
    of = running()
    for attempt in (1, 2):
        gang = [pod(i, attempt, phase="Failed", exit_code=137) for i in range(2)]
        of, _ = settle(of, seen(*gang, progress=progress(attempt * 20, attempt=attempt)), T0 + attempt)
    two_old = [pod(i, a, phase="Failed", exit_code=137) for a in (1, 2) for i in range(2)]
    last = decide(of, seen(*two_old, pod(0, 3), pod(1, 3)), T0 + 5)
    assert acts(last) == ["-x-1-0", "-x-1-1"]


# --- first causes that are observed late --------------------------------------------------------------------------


def test_a_user_error_observed_late_fails_the_job():
    of, _ = settle(running(), seen(pod(0, phase="Failed", report="NetworkError"), pod(1)), T0 + 1)
    assert of.status.phase == "Restarting"
    late = pod(1, phase="Failed", report={"reason": "UserError", "message": "bad field", "retryable": False, "rank": 1})
    of, decisions = settle(of, seen(pod(0, phase="Failed", report="NetworkError"), late), T0 + 2)
    assert failed_by(of, "UserError")
    assert of.status.message == "pod x-1-1 ended with UserError on rank 1 (dp_shard 1): bad field"
    assert [(r.attempt, r.reason) for r in of.status.restart_history] == [(1, "UserError")]
    assert of.status.restarts == 0
    assert events(decisions)[0][:2] == ("Warning", "UserError")


def test_a_lost_node_observed_late_makes_the_restart_uncounted():
    of, _ = settle(running(), seen(pod(0, phase="Failed", report="NetworkError"), pod(1)), T0 + 1)
    lost = pod(1, node_lost=True, deleting=True, deletion_deadline=T0 + 30)
    of, decisions = settle(of, seen(pod(0, phase="Failed", report="NetworkError"), lost), T0 + 2)
    assert [(r.reason, r.counted) for r in of.status.restart_history] == [("NodeLost", False)]
    assert of.status.message == (
        "attempt 2: restarting from the beginning after node n1 of pod x-1-1 was lost, and with it rank 1 "
        "(dp_shard 1); does not count against maxRestarts"
    )
    assert events(decisions) == []


def test_an_error_of_a_node_that_is_observed_late_makes_the_restart_uncounted():
    """A node rebooted: its pod's peers lost their connections minutes before its kubelet reports the container."""
    of, _ = settle(running(), seen(pod(0, phase="Failed", report="NetworkError"), pod(1)), T0 + 1)
    unknown = pod(1, phase="Failed", exit_code=137, reason="ContainerStatusUnknown")
    of, _ = settle(of, seen(pod(0, phase="Failed", report="NetworkError"), unknown), T0 + 2)
    assert [(r.reason, r.counted) for r in of.status.restart_history] == [("NodeError", False)]


def test_pods_stopped_for_a_restart_do_not_change_its_cause():
    """A counted restart stays counted when the stopped pods report Preempted."""
    of, _ = settle(running(), seen(pod(0, phase="Failed", exit_code=137), pod(1)), T0 + 1)
    of, _ = settle(of, seen(pod(0, phase="Failed", exit_code=137), pod(1, phase="Failed", report="Preempted")), T0 + 2)
    assert [(r.reason, r.counted) for r in of.status.restart_history] == [("Killed", True)]


# --- ends ---------------------------------------------------------------------------------------------------------


def test_a_user_error_fails_the_job_without_a_restart():
    wrong = pod(1, phase="Failed", report={"reason": "UserError", "message": "no split 'trian'", "retryable": False})
    first = decide(running(), seen(pod(0), wrong), T0 + 5)
    message = "pod x-1-1 ended with UserError on rank 0 (dp_shard 0): no split 'trian'"
    assert (first.status.phase, first.status.message, first.status.restarts) == ("Failed", message, 0)
    assert events([first]) == [("Warning", "UserError", message)]
    assert (acts(first), first.recheck_after) == ([], 0)
    of = with_status(running(), first)
    assert acts(decide(of, seen(pod(0), wrong), T0 + 5)) == ["-x-1-0 grace 15"]


def crash_loop(of, *, step, times):
    """Return the job after `times` attempts that are killed at `step` (a number, or a function of the attempt)."""
    now = T0
    for _ in range(times):
        attempt = of.status.attempt
        at = step(attempt) if callable(step) else step
        now = max(now + 1000, T0)
        gang = [pod(i, attempt, started_at=now) for i in range(2)]
        of, _ = settle(of, seen(*gang, progress=progress(at, attempt=attempt, updated=now)), now)
        gang[0] = pod(0, attempt, phase="Failed", exit_code=137)
        of, _ = settle(of, seen(*gang), now + 1)
        of, _ = settle(of, seen(gang[0]), now + 500)
    return of


def test_the_job_fails_after_max_restarts():
    of = crash_loop(running(step=None), step=lambda attempt: attempt * 10, times=4)
    assert failed_by(of, "RestartsExhausted")
    assert of.status.message == (
        "pod x-4-0 was killed (exit 137); all 3 restarts within 1d are used (spec.runPolicy.maxRestarts)"
    )
    assert (of.status.attempt, of.status.restarts) == (4, 3)


def test_max_restarts_0_allows_restarts_that_do_not_count():
    none = running(job(runPolicy={"maxRestarts": 0}))
    of, _ = settle(none, seen(pod(0, phase="Failed", exit_code=137), pod(1)), T0 + 1)
    assert of.status.message == "pod x-1-0 was killed (exit 137); spec.runPolicy.maxRestarts is 0"
    of, _ = settle(none, seen(pod(0, phase="Failed", disrupted=True), pod(1)), T0 + 1)
    assert of.status.phase == "Restarting"


def test_restarts_older_than_the_window_do_not_count():
    small = running(job(runPolicy={"maxRestarts": 1, "restartWindowSeconds": 900}), step=None)
    of = crash_loop(small, step=lambda attempt: attempt * 10, times=6)
    assert (of.status.phase, of.status.attempt) == ("Pending", 7)


def test_three_attempts_without_a_new_step_end_the_job():
    of = crash_loop(running(job(runPolicy={"maxRestarts": 10}), step=None), step=0, times=3)
    assert failed_by(of, "NoProgress")
    assert of.status.message == (
        "3 attempts in a row finished no new step (no step was finished); last failure: pod x-3-0 was killed (exit 137)"
    )
    of = crash_loop(running(job(runPolicy={"maxRestarts": 10}), step=None), step=40, times=4)
    assert failed_by(of, "NoProgress")
    assert "(the newest is 40)" in (of.status.message or "")


def test_the_operator_pauses_between_attempts_without_progress():
    of = running(job(runPolicy={"maxRestarts": 10}), step=None)
    for attempt in (1, 2):
        gang = [pod(i, attempt, phase="Failed", disrupted=True) for i in range(2)]
        waiting, decisions = settle(of, seen(*gang), T0 + attempt)
        of = waiting
    assert (waiting.status.phase, waiting.status.attempt, decisions[-1].recheck_after) == ("Restarting", 2, 10)
    of, _ = settle(waiting, seen(*gang), T0 + 12)
    assert (of.status.phase, of.status.attempt) == ("Pending", 3)


def test_pods_that_a_node_rejects_are_retried_with_a_pause_and_never_end_the_job():
    of, now = running(), T0
    for _ in range(20):
        attempt = of.status.attempt
        broken = pod(1, attempt, phase="Failed", reason="UnexpectedAdmissionError", message="no GPU", rejected=True)
        waiting, decisions = settle(of, seen(broken), now + 1)
        assert (waiting.status.phase, waiting.status.attempt) == ("Restarting", attempt)
        now += 1 + (decisions[-1].recheck_after or 0)
        of, _ = settle(waiting, seen(broken), now)
        assert (of.status.phase, of.status.attempt) == ("Pending", attempt + 1)
    assert now - T0 > 3600


def test_the_record_of_an_attempt_has_only_its_own_steps():
    of, _ = settle(running(step=40), seen(pod(0, phase="Failed", exit_code=137)), T0 + 1)
    gang = [pod(i, 2, started_at=T0 + 50) for i in range(2)]
    of, _ = settle(of, seen(*gang), T0 + 50)
    of, _ = settle(of, seen(pod(0, 2, phase="Failed", exit_code=137), gang[1]), T0 + 60)
    assert [(r.attempt, r.step) for r in of.status.restart_history] == [(1, 40), (2, 0)]
    assert of.status.progress
    assert of.status.progress.step == 40  # the step in the status does not decrease


def test_suspended_time_does_not_count_against_the_deadline():
    of = running(job(runPolicy={"activeDeadlineSeconds": 100}))
    gang = seen(pod(0), pod(1))
    assert decide(of, gang, T0 + 60).recheck_after == 40
    of, _ = settle(edited(of, runPolicy={"suspend": True}), gang, T0 + 60)
    of, _ = settle(edited(of, runPolicy={"suspend": False}), seen(), T0 + 5000)
    gang = seen(pod(0, 2, started_at=T0 + 5001), pod(1, 2, started_at=T0 + 5001))
    of, decisions = settle(of, gang, T0 + 5039)
    assert (of.status.phase, decisions[-1].recheck_after) == ("Starting", 1)
    of, _ = settle(of, gang, T0 + 5040)
    assert failed_by(of, "DeadlineExceeded")
    assert of.status.message == "not finished within 1m40s (spec.runPolicy.activeDeadlineSeconds)"
    assert of.status.active_seconds == 100


# --- timeouts -----------------------------------------------------------------------------------------------------


def timed(**policy):
    return running(job(runPolicy={"hangTimeoutSeconds": 100, "startupTimeoutSeconds": 50, **policy}), step=None)


STALLS = [
    # seconds since the pods started, progress, reason of the restart or None
    (49, None, None),
    (50, None, "StartupTimeout"),
    (99, progress(0, phase="loading", updated=T0 + 50), None),
    (100, progress(0, phase="loading", updated=T0 + 50), "StartupTimeout"),
    (99, progress(500, phase="training", resumed_from=500, updated=T0 + 50), None),
    (100, progress(500, phase="training", resumed_from=500, updated=T0 + 50), "StartupTimeout"),
    (149, progress(1, updated=T0 + 50), None),
    (150, progress(1, updated=T0 + 50), "Hung"),
    (150, progress(1, phase="checkpointing", updated=T0 + 51), None),
    (150, progress(99, phase="exporting", updated=T0 + 50), "Hung"),
    (150, progress(100, phase="done", updated=T0 + 50), "Hung"),
    # Progress of another attempt has no effect.
    (49, progress(7, attempt=9, updated=T0 - 9999), None),
    (50, progress(7, attempt=9, updated=T0 + 49), "StartupTimeout"),
    # An in-place restart of the workers starts the startup timeout again.
    (149, progress(0, phase="starting", updated=T0 + 100, worker_restarts=1), None),
    (150, progress(0, phase="starting", updated=T0 + 100, worker_restarts=1), "StartupTimeout"),
]


@pytest.mark.parametrize(("after", "shown", "reason"), STALLS)
def test_a_start_or_a_step_that_exceeds_its_timeout_restarts_the_gang(after, shown, reason):
    decision = decide(timed(), seen(pod(0), pod(1), progress=shown), T0 + after)
    assert [r.reason for r in decision.status.restart_history] == ([reason] if reason else [])
    assert (decision.status.phase == "Restarting") == bool(reason)
    if reason is None:
        assert decision.recheck_after is not None
        assert decision.recheck_after > 0


def test_the_message_of_a_hang_names_the_step_and_the_unresponsive_pod():
    decision = decide(timed(), seen(pod(0), pod(1, ready=False), progress=progress(5, updated=T0)), T0 + 100)
    assert events([decision])[-1] == (
        "Warning",
        "Hung",
        "attempt 2: restarting from the beginning after no progress for 1m40s (training after step 5; unresponsive: "
        "pod x-1-1, rank 1 (dp_shard 1)); restart 1 of 3",
    )


def test_no_progress_report_after_observed_steps_is_a_hang():
    of, _ = settle(timed(), seen(pod(0), pod(1), progress=progress(5, updated=T0 + 10)), T0 + 10)
    assert decide(of, seen(pod(0), pod(1)), T0 + 109).status.phase == "Running"
    late = decide(of, seen(pod(0), pod(1)), T0 + 110)
    assert late.status.restart_history[0].reason == "Hung"
    assert late.status.restart_history[0].step == 5


def test_the_timers_start_again_with_each_attempt():
    of, _ = settle(timed(), seen(pod(0), pod(1), progress=progress(5, updated=T0)), T0 + 100)
    of, _ = settle(of, seen(), T0 + 130)
    again = T0 + 1000
    gang = (pod(0, 2, started_at=again), pod(1, 2, started_at=again))
    of, decisions = settle(of, seen(*gang, progress=progress(5, updated=T0)), again)
    assert (of.status.phase, of.status.attempt, decisions[-1].recheck_after) == ("Starting", 2, 50)


def test_an_image_that_cannot_be_pulled_fails_the_job_after_the_startup_timeout():
    of, _ = settle(job(runPolicy={"startupTimeoutSeconds": 50}), Observed(), T0)
    stuck = pod(1, phase="Pending", reason="ImagePullBackOff", message="not found", created_at=T0)
    of, decisions = settle(of, seen(pod(0), stuck), T0 + 10)
    assert (of.status.phase, decisions[-1].recheck_after) == ("Pending", 40)
    of, _ = settle(of, seen(pod(0), stuck), T0 + 50)
    assert failed_by(of, "PodCannotStart")
    assert of.status.message == "pod x-1-1 could not start for 50s: ImagePullBackOff (not found)"


RUNTIMES = [
    # waiting reason, message; reason of the end, its message
    (
        "CreateContainerError",
        "context deadline exceeded",
        "NodeError",
        "node n1 could not start pod x-1-1 for 30m (CreateContainerError: context deadline exceeded)",
    ),
    (
        "RunContainerError",
        'exec: "hftitan-agent": permission denied',
        "PodCannotStart",
        'pod x-1-1 could not start for 30m: RunContainerError (exec: "hftitan-agent": permission denied)',
    ),
]


@pytest.mark.parametrize(("waits", "said", "reason", "message"), RUNTIMES)
def test_a_runtime_that_cannot_start_a_container_for_too_long(waits, said, reason, message):
    of, _ = settle(job(), Observed(), T0)
    stuck = pod(1, phase="Pending", reason=waits, message=said, created_at=T0)
    of, decisions = settle(of, seen(pod(0), stuck), T0 + 1799)
    assert (of.status.phase, decisions[-1].recheck_after) == ("Pending", 1)
    of, _ = settle(of, seen(pod(0), stuck), T0 + 1800)
    (record,) = of.status.restart_history
    assert (record.reason, record.counted) == (reason, reason != "NodeError")
    assert conditions(of)["Running"] == ("False", reason)
    assert message in (of.status.message or "")


def test_unschedulable_pods_wait_without_a_timeout():
    of, _ = settle(job(), Observed(), T0)
    queued = [pod(i, phase="Pending", reason="Unschedulable", created_at=T0) for i in range(2)]
    of, decisions = settle(of, seen(*queued), T0 + 10**6)
    assert (of.status.phase, decisions[-1].recheck_after) == ("Pending", None)


# --- suspension ---------------------------------------------------------------------------------------------------


def test_message_of_a_suspended_job_names_the_step_that_deleted_pods_saved():
    """The kubelet deletes a pod as soon as it has ended, before the operator decides again."""
    of = edited(running(checkpoint=10), runPolicy={"suspend": True})
    of, _ = settle(of, seen(pod(0), pod(1), progress=progress(16, checkpoint_step=10)), T0 + 30)
    saved = {"reason": "Preempted", "retryable": True, "step": 17, "checkpoint_step": 17}
    gone = pod(1, phase="Failed", report=saved)
    of, _ = settle(of, seen(departed=gone, progress=progress(16, checkpoint_step=10)), T0 + 60)
    assert of.status.message == "suspended; will resume from step 17"
    of = edited(of, runPolicy={"suspend": False})
    of, _ = settle(of, seen(departed=gone), T0 + 90)
    assert of.status.message == "attempt 2: created 2 pods, restarting from step 17"
    other = pod(1, attempt=7, phase="Failed", report={**saved, "checkpoint_step": 99})
    of, _ = settle(of, seen(departed=other), T0 + 91)
    assert of.status.checkpoint
    assert of.status.checkpoint.step == 17, "only pods of the current attempt count"


def test_suspend_uses_the_pods_own_grace_period_and_resume_is_not_a_restart():
    of = edited(running(checkpoint=10), runPolicy={"suspend": True})
    gang = (pod(0), pod(1))
    first = decide(of, seen(*gang), T0 + 30)
    assert acts(first) == ["-x-1-0", "-x-1-1"]
    assert (first.status.phase, first.status.message) == ("Suspended", "suspended; waiting for 2 pods to save and exit")
    assert (first.status.active_seconds, first.status.active_since) == (30, None)
    assert events([first]) == [("Normal", "Suspended", "suspended by spec.runPolicy.suspend")]
    of = with_status(of, first)
    saved = {"reason": "Preempted", "retryable": True, "step": 17, "checkpoint_step": 17}
    of, decisions = settle(of, seen(pod(0, phase="Failed", report=saved)), T0 + 60)
    assert of.status.message == "suspended; will resume from step 17"
    assert events(decisions) == []
    assert conditions(of)["Suspended"] == ("True", "ByUser")

    of = edited(of, runPolicy={"suspend": False})
    of, decisions = settle(of, seen(pod(0, phase="Failed", report=saved)), T0 + 90)
    assert (of.status.phase, of.status.attempt, of.status.restarts) == ("Pending", 2, 0)
    assert of.status.restart_history == []
    assert of.status.message == "attempt 2: created 2 pods, restarting from step 17"
    assert [e[1:] for e in events(decisions)] == [
        ("Resumed", "resuming from step 17"),
        ("AttemptCreated", "attempt 2: created 2 pods, restarting from step 17"),
    ]
    assert conditions(of)["Suspended"] == ("False", "Resumed")


def test_resuming_waits_for_the_old_pods():
    of, _ = settle(edited(running(), runPolicy={"suspend": True}), seen(pod(0), pod(1)), T0 + 1)
    leaving = pod(0, deleting=True, deletion_deadline=T0 + 300)
    of, decisions = settle(edited(of, runPolicy={"suspend": False}), seen(leaving), T0 + 2)
    assert (of.status.phase, of.status.message) == ("Restarting", "resuming from the beginning")
    assert [acts(d) for d in decisions] == [[]]


def test_a_job_created_suspended_has_no_pods_until_it_is_resumed():
    of = job(runPolicy={"suspend": True})
    of, decisions = settle(of, Observed(), T0)
    assert (of.status.phase, of.status.start_time, acts(decisions[-1])) == ("Suspended", None, [])
    of, decisions = settle(edited(of, runPolicy={"suspend": False}), Observed(), T0 + 100)
    assert (of.status.phase, of.status.attempt, of.status.start_time) == ("Pending", 1, rfc3339(T0 + 100))
    assert of.status.message == "attempt 1: created 2 pods"


# --- rejected jobs ------------------------------------------------------------------------------------------------


def test_an_invalid_job_fails_without_pods_and_lists_all_errors():
    of, decisions = settle(job(mesh={"dpShard": 5}, pod={"labels": {"hftitan.io/x": "y"}}), Observed(), T0)
    assert failed_by(of, "InvalidSpec")
    assert conditions(of)["Accepted"] == ("False", "InvalidSpec")
    assert of.status.message == (
        "spec.mesh.dpShard: dpReplicate 1 x dpShard 5 x cp 1 x tp 1 x pp 1 = 5, but the mesh has 2 ranks (2 nodes x "
        '1 process); use 2 or -1; spec.pod.labels["hftitan.io/x"]: is set by the operator; remove it'
    )
    assert all(not d.actions for d in decisions)
    assert [e[1] for e in events(decisions)] == ["InvalidSpec"]


def test_the_mesh_of_a_running_job_is_immutable():
    of = edited(running(), mesh={"nodes": 3})
    of, _ = settle(of, seen(pod(0), pod(1)), T0 + 1)
    assert failed_by(of, "MeshChanged")
    assert (of.status.message or "").startswith(
        "spec.mesh: changed from 2x1: dp2 to 3x1: dp3 after pods were created; a job's mesh is immutable"
    )


def test_an_accepted_job_with_an_invalid_pod_spec_fails_instead_of_creating_pods():
    """An older operator with fewer rules accepted it, or somebody edited its status."""
    fine, _ = settle(job(), Observed(), T0)
    of = job(pod={"annotations": {"seccomp.security.alpha.kubernetes.io/pod": "unconfined"}})
    of = of.model_copy(update={"status": fine.status})
    assert decide(of, seen(pod(0), pod(1)), T0).status.phase == "Starting"  # running pods are not affected
    of, decisions = settle(of, Observed(), T0)
    assert failed_by(of, "InvalidSpec")
    assert 'spec.pod.annotations["seccomp.security.alpha.kubernetes.io/pod"]: is reserved for Kubernetes' in (
        of.status.message or ""
    )
    assert [acts(d) for d in decisions] == [[]] * len(decisions)


def test_an_accepted_spec_is_checked_again_only_when_it_changes(monkeypatch):
    from hftitan_operator.core.rendering import admission, podcheck

    of = running()
    stricter = [podcheck.SpecError("spec.model.name", "a rule of a newer operator")]
    monkeypatch.setattr(admission, "problems", lambda job: stricter)
    gang = seen(pod(0), pod(1), progress=progress(11, updated=T0 + 1))
    assert decide(of, gang, T0 + 1).status.phase == "Running"
    assert decide(edited(of, training={"steps": 200}), gang, T0 + 1).status.phase == "Failed"


# --- after the end ------------------------------------------------------------------------------------------------


def ended(**policy):
    of = running(job(runPolicy=policy))
    return settle(of, seen(pod(0), pod(1, phase="Failed", report="UserError")), T0)[0]


@pytest.mark.parametrize(
    ("policy", "expected"),
    [("Running", ["-x-1-0 grace 15"]), ("All", ["-x-1-0 grace 15", "-x-1-1"]), ("None", [])],
)
def test_pods_are_cleaned_by_policy(policy, expected):
    of = ended(cleanPodPolicy=policy)
    assert acts(decide(of, seen(pod(0), pod(1, phase="Failed", report="UserError")), T0 + 1)) == expected


def test_the_phase_of_a_finished_job_never_changes():
    of = ended()
    before = of.status
    for observed in (seen(), seen(pod(0), pod(1)), seen(pod(0, phase="Succeeded"), pod(1, phase="Succeeded"))):
        for later in (of, edited(of, runPolicy={"suspend": True}), edited(of, training={"steps": 999})):
            decision = decide(later, observed, T0 + 10**6)
            assert not any(isinstance(action, Apply) for action in decision.actions)
            assert decision.events == ()
            assert st.updated(decision.status, pods=None) == st.updated(before, pods=None)


def test_the_ttl_deletes_the_job():
    of = ended(ttlSecondsAfterFinished=600)
    waiting = decide(of, seen(), T0 + 100)
    assert (acts(waiting), waiting.recheck_after) == ([], 500)
    assert acts(decide(of, seen(), T0 + 600)) == ["-job"]
    assert decide(ended(), seen(), T0 + 10**9).recheck_after is None


def test_a_job_that_is_being_deleted_is_left_to_the_garbage_collector():
    of = job(meta={"deletionTimestamp": rfc3339(T0)})
    assert decide(of, Observed(), T0) == Decision(status=of.status)


# --- conditions ---------------------------------------------------------------------------------------------------


def test_transition_times_change_only_with_the_status_of_the_condition():
    of = running()
    accepted = st.condition(of.status, "Accepted")
    assert accepted
    of, _ = settle(edited(of, runPolicy={"maxRestarts": 5}), seen(pod(0), pod(1), progress=progress(10)), T0 + 50)
    later = st.condition(of.status, "Accepted")
    assert later
    assert (later.last_transition_time, later.observed_generation) == (accepted.last_transition_time, 2)
    assert of.status.observed_generation == 2
    of, _ = settle(of, seen(pod(0, phase="Failed", exit_code=1), pod(1)), T0 + 60)
    condition = st.condition(of.status, "Running")
    assert condition
    assert (condition.status, condition.last_transition_time) == ("False", rfc3339(T0 + 60))
    # A new reason is not a transition: the second attempt ends before it runs.
    of, _ = settle(of, seen(pod(0, phase="Failed", exit_code=1)), T0 + 70)
    of, _ = settle(of, seen(pod(0, 2, phase="Failed", exit_code=137), pod(1, 2, phase="Pending")), T0 + 80)
    condition = st.condition(of.status, "Running")
    assert condition
    assert (condition.reason, condition.last_transition_time) == ("Killed", rfc3339(T0 + 60))


def test_a_status_with_a_long_message_fits_the_schema():
    long = pod(0, phase="Pending", reason="Unschedulable", message="no room " * 5000)
    of, _ = settle(job(), Observed(), T0)
    of, _ = settle(of, seen(long, pod(1)), T0)
    assert type(of.status).model_validate(of.status.to_dict()) == of.status


def test_the_input_is_never_changed():
    of, observed = running(), seen(pod(0, phase="Failed", exit_code=137), pod(1))
    before = of.model_dump_json()
    decide(of, observed, T0 + 1)
    assert of.model_dump_json() == before
