"""Which pods are polled for progress, and which changes wake a job."""

import asyncio
from types import SimpleNamespace

import pytest

from hftitan_api.models import HFTitanJob
from hftitan_api.wire import Progress
from hftitan_operator.core.state import PodView
from hftitan_operator.kube import progress as kube_progress
from hftitan_operator.kube.progress import UNREACHABLE_AFTER, ProgressPoller, matters
from hftitan_operator.kube.store import JobRecord, PodRecord
from hftitan_operator.kube.views import JobView

KEY = ("ns", "x")


def progress(step=1, **values):
    return Progress.model_validate(
        {"attempt": 1, "phase": "training", "step": step, "steps": 9, "updated": 1.0, **values}
    )


class Cluster:
    """The parts of KubeCluster that the poller uses: one job with two pods."""

    def __init__(self, phase="Running", **pod):
        spec = {"model": {"name": "o/m"}, "dataset": {"name": "o/d"}, "training": {"steps": 9}}
        status = {"phase": phase, "attempt": 1}
        metadata = {"name": "x", "namespace": "ns", "uid": "job"}
        job = HFTitanJob.model_validate({"metadata": metadata, "spec": spec, "status": status})
        first = {
            "name": "x-1-0",
            "uid": "p0",
            "attempt": 1,
            "index": 0,
            "phase": "Running",
            "address": "10.0.0.1",
            **pod,
        }
        owner = first.pop("owner", "job")
        second = PodView("x-1-1", "p1", 1, 1, phase="Running", address="10.0.0.2")
        pods = [PodRecord(KEY, "job", second), PodRecord(KEY, owner, PodView(**first))]
        self.jobs = SimpleNamespace(all=lambda: [JobRecord(KEY, JobView(job))])
        self.pods = SimpleNamespace(group=lambda key: pods)
        self.progress, self.unreachable = {}, set()


@pytest.fixture
def poll(monkeypatch):
    """A function that polls once per answer, two seconds apart, and returns the polled addresses and, after each poll,
    the number of wakes so far."""

    def run(cluster, answers):
        asked, woken, rounds, clock = [], [], [], [100.0]

        async def fetch(address, port):
            asked.append((address, port))
            return answers[len(rounds)]

        async def sleep(pause):
            clock.append(clock[-1] + pause)
            rounds.append(len(woken))
            if len(rounds) == len(answers):
                raise asyncio.CancelledError

        monkeypatch.setattr(kube_progress, "fetch_progress", fetch)
        monkeypatch.setattr(kube_progress.asyncio, "sleep", sleep)
        monkeypatch.setattr(kube_progress, "time", SimpleNamespace(monotonic=lambda: clock[-1]))
        with pytest.raises(asyncio.CancelledError):
            asyncio.run(ProgressPoller(cluster, woken.append).run())
        return asked, rounds

    return run


def test_the_first_pod_is_polled_on_the_jobs_port(poll):
    cluster = Cluster()
    asked, _ = poll(cluster, [progress()])
    assert asked == [("10.0.0.1", 9400)]
    assert cluster.progress["job"].step == 1


@pytest.mark.parametrize(
    "cluster",
    [
        Cluster(phase="Succeeded"),
        Cluster(phase="Running", attempt=2),
        Cluster(phase="Running", owner="an earlier job of this name"),
    ],
    ids=["finished", "of another attempt", "of another owner"],
)
def test_other_pods_are_not_polled(poll, cluster):
    asked, _ = poll(cluster, [progress()])
    assert asked == []


def test_a_pod_without_an_address_is_not_polled(poll):
    asked, _ = poll(Cluster(address=None), [progress()])
    assert asked == []


def test_a_step_wakes_the_job_at_a_limited_rate_and_a_checkpoint_at_once(poll):
    answers = [progress(1), progress(2), progress(2), progress(3), progress(4), progress(5, checkpointStep=4)]
    _, woken = poll(Cluster(), answers)
    assert woken == [1, 1, 1, 2, 2, 3]


def test_the_last_step_of_a_hung_trainer_wakes_the_job_after_the_pause(poll):
    _, woken = poll(Cluster(), [progress(1), progress(7), progress(7), progress(7), progress(7)])
    assert woken == [1, 1, 1, 2, 2]


def test_the_first_step_wakes_the_job_at_once_because_its_timeout_changes(poll):
    _, woken = poll(Cluster(), [progress(0), progress(1)])
    assert woken == [1, 2]


def test_an_unreachable_trainer_wakes_the_job_once_and_once_when_it_recovers(poll):
    cluster = Cluster()
    answers = [progress(1)] + [None] * (UNREACHABLE_AFTER + 2) + [progress(1)]
    _, woken = poll(cluster, answers)
    assert woken[UNREACHABLE_AFTER - 1] == 1
    assert woken[UNREACHABLE_AFTER] == 2
    assert woken[-2] == 2
    assert woken[-1] == 3
    assert cluster.unreachable == set()
    assert cluster.progress["job"].step == 1, "the last progress is kept"


@pytest.mark.parametrize(
    ("change", "worth"),
    [
        ({"step": 2}, False),
        ({"loss": 2.0, "tokensPerSecond": 5.0}, False),
        ({"attempt": 2}, True),
        ({"phase": "checkpointing"}, True),
        ({"checkpointStep": 1}, True),
        ({"exportPath": "/e"}, True),
        ({"workerRestarts": 1}, True),
    ],
)
def test_changes_that_wake_the_job_at_once(change, worth):
    assert matters(progress(), progress(**change)) is worth
