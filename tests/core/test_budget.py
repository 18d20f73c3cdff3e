from __future__ import annotations

import pytest
from core_builders import T0

from hftitan_api.models import RestartRecord, RunPolicySpec
from hftitan_operator.core import budget
from hftitan_operator.core.clock import rfc3339


def history(*steps: int | str, every: float = 0) -> list[RestartRecord]:
    """Records by step; `f40` is a free one at step 40."""
    return [
        RestartRecord(
            time=rfc3339(T0 + i * every),
            attempt=i + 1,
            reason="Killed",
            step=int(str(step).lstrip("f")),
            free=str(step).startswith("f"),
        )
        for i, step in enumerate(steps)
    ]


@pytest.mark.parametrize(
    ("records", "stop"),
    [
        (history(0, 0), False),
        (history(0, 0, 0), True),
        (history(10, 10, 10), False),  # the first of them moved
        (history(10, 10, 10, 10), True),
        (history(10, 9, 8, 7), True),  # steps done once more are no progress
        (history(10, 10, 11, 10), False),
        (history("f0", "f0", "f0", "f0"), False),  # a job of low priority may be preempted for ever
        (history(0, "f0", 0, "f0"), False),
        (history(0, "f0", 0, "f0", 0), True),
        (history(0, 0, "f5", 0), False),  # a free attempt may move the step too
    ],
)
def test_three_charged_attempts_that_move_no_step_end_the_job(records, stop):
    assert budget.no_progress(records) is stop


def test_only_charged_restarts_inside_the_window_count():
    records = history(1, "f2", 3, 4, every=100)
    policy = RunPolicySpec(restart_window_seconds=150)
    assert budget.charged(records, policy, T0 + 300) == 2  # those at 200 and 300
    assert budget.charged(records, RunPolicySpec(restart_window_seconds=0), T0 + 1e9) == 3


@pytest.mark.parametrize(
    ("records", "pause"),
    [
        (history(), None),
        (history(10), None),
        (history(10, 10), None),
        (history(10, 10, 10), 10),
        (history("f0", "f0"), 10),
        (history("f0", "f0", "f0"), 20),
        (history(*["f0"] * 40), 300),
        (history("f0", "f0", "f0", "f1"), None),
    ],
)
def test_attempts_that_get_nowhere_wait_longer_and_longer(records, pause):
    assert budget.not_before(records) == (0.0 if pause is None else T0 + pause)


def test_the_history_keeps_the_charged_ones_longest():
    records: list[RestartRecord] = []
    for record in history(*[0, "f0"] * 60):
        records = budget.remember(records, record)
        assert len(records) <= budget.HISTORY_LIMIT
    assert sum(not r.free for r in records) == 60
    assert [r.attempt for r in records] == sorted(r.attempt for r in records)


def test_the_largest_budget_can_be_counted():
    records: list[RestartRecord] = []
    for record in history(*range(1, 65)):
        records = budget.remember(records, record)
    assert budget.charged(records, RunPolicySpec(max_restarts=63), T0) > 63
    with pytest.raises(ValueError, match="63"):
        RunPolicySpec(max_restarts=64)


def test_a_second_verdict_on_an_attempt_replaces_the_first():
    first, *_ = history(5)
    fatal = first.model_copy(update={"reason": "UserError"})
    assert budget.remember([first], fatal) == [fatal]
