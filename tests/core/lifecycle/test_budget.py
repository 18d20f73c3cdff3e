from __future__ import annotations

import pytest
from core_builders import T0

from hftitan_api.models import RestartRecord, RunPolicySpec
from hftitan_operator.core.clock import rfc3339
from hftitan_operator.core.lifecycle import budget


def history(*steps: int | str, every: float = 0) -> list[RestartRecord]:
    """Return records by step; `u40` is at step 40 and does not count against maxRestarts."""
    return [
        RestartRecord(
            time=rfc3339(T0 + i * every),
            attempt=i + 1,
            reason="Killed",
            step=int(str(step).lstrip("u")),
            counted=not str(step).startswith("u"),
        )
        for i, step in enumerate(steps)
    ]


@pytest.mark.parametrize(
    ("records", "stop"),
    [
        (history(0, 0), False),
        (history(0, 0, 0), True),
        (history(10, 10, 10), False),  # the first attempt made progress
        (history(10, 10, 10, 10), True),
        (history(10, 9, 8, 7), True),  # repeated steps are not progress
        (history(10, 10, 11, 10), False),
        (history("u0", "u0", "u0", "u0"), False),  # preemptions of a low-priority job are not limited
        (history(0, "u0", 0, "u0"), False),
        (history(0, "u0", 0, "u0", 0), True),
        (history(0, 0, "u5", 0), False),  # an attempt that does not count may make progress
    ],
)
def test_three_counted_attempts_without_a_new_step_end_the_job(records, stop):
    assert budget.no_progress(records) is stop


def test_only_counted_restarts_inside_the_window_are_used():
    records = history(1, "u2", 3, 4, every=100)
    policy = RunPolicySpec(restart_window_seconds=150)
    assert budget.counted(records, policy, T0 + 300) == 2  # at 200 s and 300 s
    assert budget.counted(records, RunPolicySpec(restart_window_seconds=0), T0 + 1e9) == 3


@pytest.mark.parametrize(
    ("records", "pause"),
    [
        (history(), None),
        (history(10), None),
        (history(10, 10), None),
        (history(10, 10, 10), 10),
        (history("u0", "u0"), 10),
        (history("u0", "u0", "u0"), 20),
        (history(*["u0"] * 40), 300),
        (history("u0", "u0", "u0", "u1"), None),
    ],
)
def test_the_pause_doubles_after_attempts_without_progress(records, pause):
    assert budget.not_before(records) == (0.0 if pause is None else T0 + pause)


@pytest.mark.parametrize(("steps", "pause"), [(["u10"], 10), (["u0"], 10), (["u0", "u0"], 20)])
def test_after_an_error_of_a_node_there_is_always_a_pause(steps, pause):
    *before, last = history(*steps)
    assert budget.not_before([*before, last.model_copy(update={"reason": "NodeError"})]) == T0 + pause


def test_the_history_drops_uncounted_records_first():
    records: list[RestartRecord] = []
    for record in history(*[0, "u0"] * 60):
        records = budget.remember(records, record)
        assert len(records) <= budget.HISTORY_LIMIT
    assert sum(r.counted for r in records) == 60
    assert [r.attempt for r in records] == sorted(r.attempt for r in records)


def test_the_history_can_exceed_the_largest_budget():
    records: list[RestartRecord] = []
    for record in history(*range(1, 65)):
        records = budget.remember(records, record)
    assert budget.counted(records, RunPolicySpec(max_restarts=63), T0) > 63
    with pytest.raises(ValueError, match="63"):
        RunPolicySpec(max_restarts=64)


def test_a_second_record_of_an_attempt_replaces_the_first():
    first, *_ = history(5)
    fatal = first.model_copy(update={"reason": "UserError"})
    assert budget.remember([first], fatal) == [fatal]
