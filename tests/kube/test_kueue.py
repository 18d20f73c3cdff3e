"""Kueue's message about a job that waits in a queue: which Workloads are read, how often, and their message."""

import asyncio
import itertools
from types import SimpleNamespace

import pytest

from hftitan_api.models import HFTitanJob
from hftitan_operator.core.state import PodView
from hftitan_operator.kube import kueue
from hftitan_operator.kube.api import ApiError
from hftitan_operator.kube.kueue import KueuePoller, reason
from hftitan_operator.kube.store import JobRecord, PodRecord
from hftitan_operator.kube.views import JobView

KEY = ("team", "x")
WORKLOAD = "/apis/kueue.x-k8s.io/v1beta2/namespaces/team/workloads/x-uid-1"


def workload(message=None, reserved="False", **status):
    condition = {"type": "QuotaReserved", "status": reserved, "reason": "Pending", "message": message}
    return {"status": {"conditions": [condition], **status}}


CHECKS = [
    {"name": "ready", "state": "Ready", "message": "fine"},
    {"name": "nodes", "state": "Pending", "message": "creating 2 nodes"},
    {"name": "other", "state": "Retry", "message": ""},
]


@pytest.mark.parametrize(
    ("found", "expected"),
    [
        ({}, None),
        ({"status": {"conditions": None}}, None),
        (workload(""), None),
        (workload("couldn't assign\n flavors "), "couldn't assign flavors"),
        (workload("x" * 400), "x" * 299 + "…"),
        (workload("reserved", "True"), None),
        (
            workload("reserved", "True", admissionChecks=CHECKS),
            "admission check nodes: creating 2 nodes; admission check other: Retry",
        ),
    ],
)
def test_reason(found, expected):
    assert reason(found) == expected


def cluster(answers, gang="kueue", phase="Pending", **pod):
    """The parts of KubeCluster that the poller uses: one job with one pod. `answers`: of the API server, in order."""
    spec = {"model": {"name": "o/m"}, "dataset": {"name": "o/d"}, "training": {"steps": 9}}
    spec["scheduling"] = {"gang": gang, "queue": "q"}
    job = HFTitanJob.model_validate(
        {
            "metadata": {"name": "x", "namespace": "team", "uid": "uid"},
            "spec": spec,
            "status": {"phase": phase, "attempt": 1},
        }
    )
    view = {"name": "x-1-0", "uid": "p", "attempt": 1, "index": 0, "reason": "SchedulingGated", **pod}
    asked = []

    async def request(method, path):
        asked.append(path)
        answer = answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer

    return SimpleNamespace(
        jobs=SimpleNamespace(all=lambda: [JobRecord(KEY, JobView(job))]),
        pods=SimpleNamespace(group=lambda key: [PodRecord(KEY, view.get("owner", "uid"), PodView(**view))]),
        api=SimpleNamespace(request=request),
        queue_messages={},
        asked=asked,
    )


def poll(monkeypatch, of, cycles):
    """Run the poller for a number of cycles; return the wakes and the seconds at which it read."""
    clock, woken, reads = [100.0], [], []

    async def sleep(seconds):
        if seconds == kueue.CYCLE_SECONDS:
            cycles.pop()
            if not cycles:
                raise asyncio.CancelledError
        else:
            reads.append(round(clock[0] - 100.0, 1))
        clock[0] += seconds

    monkeypatch.setattr(kueue.asyncio, "sleep", sleep)
    monkeypatch.setattr(kueue.time, "monotonic", lambda: clock[0])
    with pytest.raises(asyncio.CancelledError):
        asyncio.run(KueuePoller(of, woken.append).run())
    return woken, reads


def test_a_waiting_job_is_read_again_and_woken_when_the_message_changes(monkeypatch):
    missing = ApiError(404, "NotFound", "")
    of = cluster([missing, workload("a"), workload("a"), workload("b")])
    woken, reads = poll(monkeypatch, of, [None] * 38)
    assert of.asked == [WORKLOAD] * 4
    assert [later - earlier for earlier, later in itertools.pairwise(reads)] == [
        pytest.approx(seconds, abs=1.2) for seconds in (kueue.RETRY_SECONDS, *[kueue.REFRESH_SECONDS] * 2)
    ]
    assert (woken, of.queue_messages) == ([KEY, KEY], {"x-uid-1": "b"})


@pytest.mark.parametrize(
    "changes",
    [
        {"gang": "none"},
        {"phase": "Running"},
        {"attempt": 2},
        {"reason": "Unschedulable"},
    ],
)
def test_other_jobs_are_not_read_and_their_message_is_forgotten(monkeypatch, changes):
    of = cluster([], **changes)
    of.queue_messages = {"x-uid-1": "old"}
    assert poll(monkeypatch, of, [None] * 9) == ([], [])
    assert of.queue_messages == {}
