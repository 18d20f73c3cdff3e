"""Pods that an injected container keeps running after their trainer has ended."""

from __future__ import annotations

from dataclasses import replace

import pytest
from core_builders import T0, edited, job, pod, running, seen, settle

from hftitan_operator.core.lifecycle.decide import decide
from hftitan_operator.core.state import DeletePod

DONE = [pod(i, report="Completed", exit_code=0, ready=False, reason="Completed") for i in range(2)]
CRASHED = pod(0, report="InternalError", exit_code=1, ready=False)


def deletions(decision):
    return [(a.name, a.grace_seconds) for a in decision.actions if isinstance(a, DeletePod)]


@pytest.mark.parametrize(
    ("policy", "deleted"),
    [("Running", [("x-1-0", 15), ("x-1-1", 15)]), ("All", [("x-1-0", 15), ("x-1-1", 15)]), ("None", [])],
)
def test_the_job_succeeds_with_its_trainers_and_the_pods_are_deleted(policy, deleted):
    of, decisions = settle(running(job(runPolicy={"cleanPodPolicy": policy}), step=99), seen(*DONE), T0 + 20)
    assert (of.status.phase, of.status.message) == ("Succeeded", "finished 100 steps")
    assert [deletions(d) for d in decisions] == [[], deleted]
    counts = of.status.pods
    assert (counts.active, counts.ready, counts.succeeded, counts.failed) == (0, 0, 2, 0)
    assert decide(of, seen(), T0 + 40).status == of.status


def test_a_trainer_that_still_runs_keeps_the_job_running():
    of, decisions = settle(running(), seen(DONE[0], pod(1)), T0 + 20)
    assert of.status.phase == "Running"
    assert [deletions(d) for d in decisions] == [[]]


def test_a_trainer_that_fails_ends_the_attempt_and_the_next_one_waits_until_its_pod_is_gone():
    of, decisions = settle(running(), seen(CRASHED, pod(1)), T0 + 20)
    assert (of.status.phase, of.status.restart_history[0].reason) == ("Restarting", "InternalError")
    assert [deletions(d) for d in decisions] == [[], [("x-1-0", 15), ("x-1-1", 15)]]
    leaving = replace(CRASHED, deleting=True, deletion_deadline=T0 + 35)
    assert decide(of, seen(leaving), T0 + 25).actions == ()
    of, _ = settle(of, seen(), T0 + 36)
    assert (of.status.attempt, of.status.restarts) == (2, 1)


def test_a_long_grace_period_is_shortened_once_only_injected_containers_run():
    of = edited(running(), runPolicy={"suspend": True})
    of, decisions = settle(of, seen(pod(0), pod(1)), T0 + 20)
    assert deletions(decisions[-1]) == [("x-1-0", None), ("x-1-1", None)]
    saved = pod(0, report="Preempted", exit_code=1, deleting=True, deletion_deadline=T0 + 410)
    saving = pod(1, deleting=True, deletion_deadline=T0 + 410)
    assert deletions(decide(of, seen(saved, saving), T0 + 30)) == [("x-1-0", 15)]
    assert deletions(decide(of, seen(replace(saved, deletion_deadline=T0 + 35), saving), T0 + 30)) == []
    of, _ = settle(of, seen(saved), T0 + 30)
    assert of.status.message == "suspended; waiting for 1 pod to save and exit"


def test_a_completed_pod_that_is_stuck_in_deletion_does_not_end_the_attempt():
    stuck = replace(DONE[0], deleting=True, deletion_deadline=T0)
    of, _ = settle(running(), seen(stuck, pod(1)), T0 + 100)
    assert of.status.phase == "Running"
