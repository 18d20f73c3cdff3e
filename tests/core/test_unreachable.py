"""A trainer that we cannot reach is not a trainer that hangs."""

import pytest
from core_builders import T0, job, pod, progress, running, seen, settle

from hftitan_operator.core import status as st

HOUR = 3600.0


def blind(*pods, **values):
    return seen(*pods, unreachable=True, **values)


def gang(**changes):
    return [pod(0, **changes), pod(1)]


def test_a_job_whose_steps_cannot_be_seen_is_left_alone_and_says_so():
    of, _ = settle(job(), seen(), T0)
    of, _ = settle(of, seen(*gang()), T0)
    of, decisions = settle(of, blind(*gang()), T0 + 10 * HOUR)
    assert of.status.phase == "Starting"
    assert "cannot reach its /progress" in of.status.message
    assert "NetworkPolicy" in of.status.message
    assert decisions[-1].actions == ()


def test_the_same_job_without_a_sign_of_life_is_started_anew():
    of, _ = settle(job(), seen(), T0)
    of, _ = settle(of, seen(*gang()), T0)
    of, _ = settle(of, seen(*gang(ready=False)), T0 + 10 * HOUR)
    assert of.status.restart_history[-1].reason == "StartupTimeout"


@pytest.mark.parametrize(("hidden", "phase"), [(True, "Running"), (False, "Restarting")])
def test_steps_that_were_seen_before_are_no_hang_when_they_are_hidden_now(hidden, phase):
    of = running(step=10)
    look = blind if hidden else seen
    of, _ = settle(of, look(*gang(), progress=None), T0 + 10 * HOUR)
    assert of.status.phase == phase


def test_what_can_be_seen_is_judged_again_at_once():
    of = running(step=10)
    of, _ = settle(of, blind(*gang()), T0 + HOUR)
    of, _ = settle(of, seen(*gang(), progress=progress(11, updated=T0 + HOUR)), T0 + HOUR + 1)
    assert of.status.message == "attempt 1: training"
    of, _ = settle(of, seen(*gang(), progress=progress(11, updated=T0 + HOUR)), T0 + 3 * HOUR)
    assert of.status.restart_history[-1].reason == "Hung"


def test_pods_that_end_are_judged_whatever_can_be_seen():
    of = running(step=10)
    ended = [pod(0, phase="Failed", report="InternalError"), pod(1)]
    of, _ = settle(of, blind(*ended), T0 + 5)
    assert of.status.restart_history[-1].reason == "InternalError"
    assert not st.is_true(of.status, "Running")
