"""docs/failures.md lists every reason, whether it counts against maxRestarts, and the core's exact message."""

from __future__ import annotations

import re
from typing import get_args

import pytest
from core_builders import T0, job, pod, progress, running
from paths import ROOT

from hftitan_api import mesh
from hftitan_api.wire import ExitReason
from hftitan_operator.core import reasons
from hftitan_operator.core.lifecycle import classify, watchdog

DOCUMENT = (ROOT / "docs" / "failures.md").read_text()
REASONS = {
    value
    for name, value in vars(reasons).items()
    if name.isupper() and isinstance(value, str) and value not in reasons.CONDITION_TYPES
}
TOLD = {
    "OutOfMemory": "CUDA out of memory",
    "StorageError": "No space left on device",
    "NetworkError": "the hub did not answer",
    "InternalError": "KeyError: 'x'",
    "UserError": "spec.dataset.path: /data/a is not there",
    "NonFiniteLoss": "the loss is nan at step 41",
}
"""Messages of exit reports, by reason."""


def report(reason: str):
    retryable = reason not in ("UserError", "NonFiniteLoss")
    return {"reason": reason, "message": TOLD.get(reason, ""), "rank": 1, "retryable": retryable, "checkpointStep": 40}


ENDED = {
    "Evicted": {"disrupted": True, "reason": "Evicted", "message": "The node was low on resource: memory."},
    "NodeLost": {"node_lost": True, "deleting": True},
    "Preempted": {"report": report("Preempted")},
    "OOMKilled": {"reason": "OOMKilled", "exit_code": 137},
    "Killed": {"exit_code": 137},
    "ExitedWithoutReport": {"exit_code": 1},
    "NodeError": {"rejected": True, "reason": "UnexpectedAdmissionError", "message": "no healthy devices present"},
    "StartError": {
        "reason": "StartError",
        "exit_code": 128,
        "message": 'exec: "hftitan-agent": executable file not found in $PATH',
    },
    **{reason: {"report": report(reason)} for reason in TOLD},
    "InvalidImage": {"phase": "Pending", "reason": "InvalidImageName", "message": "no such reference"},
}
LATE = {
    "Hung": progress(10),
    "StartupTimeout": progress(0, phase="loading"),
}


def cause(reason: str) -> classify.Cause:
    """Return the cause that the core finds for the second of two pods."""
    of = job()
    plan = mesh.plan(of.spec)
    if reason in ENDED:
        found = classify.of_pod(pod(1, **{"phase": "Failed", **ENDED[reason]}), plan)
        assert found is not None
        return found
    if reason == reasons.POD_DELETED:
        return classify.missing("x-1-1", 1)
    pods, now = [pod(0), pod(1, ready=False)], LATE.get(reason)
    if reason == reasons.POD_CANNOT_START:
        pods = [pod(1, phase="Pending", reason="ErrImagePull", message="not found", created_at=T0)]
    status = running(of).status
    timers = watchdog.timers(of.spec.run_policy, status, pods, now, plan)
    return next(timer.cause for timer in timers if timer.cause.reason == reason)


def rows(heading: str) -> list[list[str]]:
    """Return the rows of a section's table, without the header."""
    section = DOCUMENT.split(f"\n## {heading}\n")[1].split("\n## ")[0]
    lines = [line for line in section.splitlines() if line.startswith("| ")]
    return [[cell.strip() for cell in line.strip("|").split(" | ")] for line in lines[2:]]


def words(text: str) -> set[str]:
    """Return the words in CamelCase that are formatted as code."""
    return set(re.findall(r"`([A-Z][A-Za-z]+)`", text))


ATTEMPTS = {row[1].strip("`"): row for row in rows("An attempt ends")}


def test_every_end_of_an_attempt_is_in_the_table():
    trainers = set(get_args(ExitReason)) - {"Completed"}
    at_once = {reasons.INVALID_IMAGE, reasons.POD_CANNOT_START}
    assert ATTEMPTS.keys() == {*reasons.ATTEMPT_ENDS, *trainers, *at_once}


@pytest.mark.parametrize("reason", ATTEMPTS)
def test_the_table_shows_the_cores_message_and_whether_the_restart_counts(reason):
    found = cause(reason)
    _, _, counted, message = ATTEMPTS[reason]
    assert (found.reason, f"`{found.message}`") == (reason, message)
    assert counted == ("ends the job" if found.fatal else "yes" if found.counted else "no")


def test_the_document_has_every_reason_and_no_unknown_one():
    assert words(DOCUMENT) >= REASONS
    phases = {"Pending", "Starting", "Running", "Restarting", "Suspended", "Succeeded", "Failed"}
    invented = words(DOCUMENT) - REASONS - set(get_args(ExitReason)) - phases - set(reasons.CONDITION_TYPES)
    assert invented == set()


def test_the_table_of_conditions_is_complete_and_has_their_first_reasons():
    table = {row[0].strip("`"): words(row[1]) for row in rows("Conditions and events")}
    assert tuple(table) == reasons.CONDITION_TYPES
    for condition in running(None).status.conditions:
        assert condition.reason in table[condition.type], condition.type
