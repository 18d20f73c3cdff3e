"""`step` against a cluster that records every operation in order."""

import asyncio

import pytest

from hftitan_api.models import HFTitanJob, PodDefaults
from hftitan_operator.core.state import Apply, Observed, PodView, Seen
from hftitan_operator.local.prepare import localize
from hftitan_operator.step import step

NOW = 1_800_000_000.0


class Ledger:
    """A ClusterPort that records operations in `done`. An applied pod exists at once."""

    def __init__(self, job):
        self.job, self.pods, self.done = job, [], []
        self.objects = set()

    async def observe(self, namespace, name):
        if self.job is None or (namespace, name) != ("default", "tiny"):
            return None
        return Seen(self.job, Observed(tuple(self.pods), "Service" in self.objects, "ConfigMap" in self.objects))

    async def apply(self, job, action):
        assert isinstance(action, Apply)
        kind, meta = action.manifest["kind"], action.manifest["metadata"]
        self.objects.add(kind)
        self.done.append(kind)
        if kind == "Pod":
            labels = meta["labels"]
            attempt, index = int(labels["hftitan.io/attempt"]), int(labels["hftitan.io/node-index"])
            self.pods.append(PodView(meta["name"], meta["name"], attempt, index))

    async def write_status(self, job, status):
        self.done.append(f"status {status.phase}")
        self.job = job.model_copy(update={"status": status})

    async def emit(self, job, event):
        self.done.append(f"event {event.reason}")


@pytest.fixture
def ledger(make_job):
    return Ledger(localize(make_job(), {}))


def run(ledger, now=NOW):
    return asyncio.run(step(ledger, "default", "tiny", now))


def test_actions_come_before_the_status_and_events_after_it(ledger):
    run(ledger)
    status = ledger.done.index("status Pending")
    assert ledger.done[:status] == ["Service", "ConfigMap", "Pod", "Pod"]
    assert ledger.done[status + 1 :] == ["event Accepted", "event AttemptCreated"]


def test_second_step_on_the_same_observation_writes_nothing(ledger):
    run(ledger)
    run(ledger)  # observes the pods for the first time
    ledger.done.clear()
    run(ledger)
    assert ledger.done == []


def test_step_returns_the_seconds_until_the_next_deadline(ledger, make_job):
    job = make_job(runPolicy={"activeDeadlineSeconds": 100})
    assert isinstance(job, HFTitanJob)
    limited = Ledger(localize(job, {}))
    run(limited)
    assert run(limited, NOW + 40) == pytest.approx(60)


def test_deleted_job_does_nothing(ledger):
    ledger.job = None
    assert run(ledger) is None
    assert ledger.done == []


def test_cluster_error_is_raised_before_the_status_is_written(ledger):
    async def refuse(job, action):
        raise OSError("no room")

    ledger.apply = refuse
    with pytest.raises(OSError, match="no room"):
        run(ledger)
    assert ledger.done == []


def test_pods_get_the_current_job_defaults(ledger):
    """Defaults apply when pods are created; the job object does not contain them."""
    made = []
    ledger.apply = lambda job, action: asyncio.sleep(0, made.append(action.manifest))
    asyncio.run(step(ledger, "default", "tiny", NOW, PodDefaults(image="registry.example/trainer:2")))
    images = {c["image"] for thing in made if thing["kind"] == "Pod" for c in thing["spec"]["containers"]}
    assert images == {"registry.example/trainer:2"}
    assert ledger.job.spec.pod.image is None
