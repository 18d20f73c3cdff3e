"""A trainer that the operator cannot reach does not count as hung."""

import pytest
from core_builders import T0, job, pod, progress, running, seen, settle

from hftitan_operator.core.lifecycle import status as st

HOUR = 3600.0


def blind(*pods, **values):
    return seen(*pods, unreachable=True, **values)


def gang(**changes):
    return [pod(0, **changes), pod(1)]


def test_a_job_with_an_unreachable_trainer_continues_with_a_message():
    of, _ = settle(job(), seen(), T0)
    of, _ = settle(of, seen(*gang()), T0)
    of, decisions = settle(of, blind(*gang()), T0 + 10 * HOUR)
    assert of.status.phase == "Starting"
    assert "cannot reach its /progress" in of.status.message
    assert "NetworkPolicy" in of.status.message
    assert decisions[-1].actions == ()


def test_the_same_job_restarts_if_its_pod_is_not_ready():
    of, _ = settle(job(), seen(), T0)
    of, _ = settle(of, seen(*gang()), T0)
    of, _ = settle(of, seen(*gang(ready=False)), T0 + 10 * HOUR)
    assert of.status.restart_history[-1].reason == "StartupTimeout"


@pytest.mark.parametrize(("hidden", "phase"), [(True, "Running"), (False, "Restarting")])
def test_a_trainer_that_becomes_unreachable_after_its_first_steps_is_not_hung(hidden, phase):
    of = running(step=10)
    look = blind if hidden else seen
    of, _ = settle(of, look(*gang(), progress=None), T0 + 10 * HOUR)
    assert of.status.phase == phase


def test_the_hang_timer_resumes_when_the_trainer_is_reachable_again():
    of = running(step=10)
    of, _ = settle(of, blind(*gang()), T0 + HOUR)
    of, _ = settle(of, seen(*gang(), progress=progress(11, updated=T0 + HOUR)), T0 + HOUR + 1)
    assert of.status.message == "attempt 1: training"
    of, _ = settle(of, seen(*gang(), progress=progress(11, updated=T0 + HOUR)), T0 + 3 * HOUR)
    assert of.status.restart_history[-1].reason == "Hung"


def test_a_failed_pod_ends_the_attempt_also_while_unreachable():
    of = running(step=10)
    ended = [pod(0, phase="Failed", report="InternalError"), pod(1)]
    of, _ = settle(of, blind(*ended), T0 + 5)
    assert of.status.restart_history[-1].reason == "InternalError"
    assert not st.is_true(of.status, "Running")
