"""One leader at a time, measured with each replica's own clock."""

import asyncio
import copy
from types import SimpleNamespace

import pytest

from hftitan_operator.kube import lease as module
from hftitan_operator.kube.api import ApiError
from hftitan_operator.kube.lease import Lease

PATH = "/apis/coordination.k8s.io/v1/namespaces/ns/leases"


class Api:
    """A server with one Lease, optimistic locking and failures on demand."""

    def __init__(self):
        self.lease, self.version, self.down, self.writes, self.reads = None, 0, False, 0, 0

    async def request(self, method, path, body=None, *, always=False, seconds=0):
        if self.down:
            raise OSError("no route")
        if method == "GET":
            self.reads += 1
            if self.lease is None:
                raise ApiError(404, "NotFound", "no such lease")
            return copy.deepcopy(self.lease)
        assert always, "lease writes must skip the check of the lease"
        if method == "POST" and self.lease is not None:
            raise ApiError(409, "AlreadyExists", "there")
        if method == "PUT" and body["metadata"].get("resourceVersion") != str(self.version):
            raise ApiError(409, "Conflict", "changed")
        self.version += 1
        self.writes += 1
        self.lease = copy.deepcopy(body)
        self.lease["metadata"]["resourceVersion"] = str(self.version)
        return copy.deepcopy(self.lease)

    @property
    def holder(self):
        return self.lease["spec"]["holderIdentity"]


@pytest.fixture
def clock(monkeypatch):
    """A clock that advances when the code sleeps or the test changes it."""
    now = SimpleNamespace(at=1000.0, hooks=[])

    async def sleep(seconds):
        now.at += seconds
        for hook in list(now.hooks):
            hook()

    monkeypatch.setattr(module, "time", SimpleNamespace(monotonic=lambda: now.at))
    monkeypatch.setattr(module, "asyncio", SimpleNamespace(sleep=sleep))
    return now


@pytest.fixture
def api():
    return Api()


def replica(api, name):
    return Lease(api, "ns", "op", name)


def test_the_first_replica_acquires_the_lease(api, clock):
    a = replica(api, "a")
    assert not a.held()
    asyncio.run(a.acquire())
    assert a.held()
    assert api.holder == "a"
    assert api.lease["spec"]["leaseTransitions"] == 1


def test_another_replica_waits_the_whole_duration_on_its_own_clock(api, clock):
    a, b = replica(api, "a"), replica(api, "b")
    asyncio.run(a.acquire())
    began = clock.at
    asyncio.run(b.acquire())
    assert clock.at - began >= module.DURATION_SECONDS
    assert clock.at - began <= module.DURATION_SECONDS + 2 * module.STANDBY_SECONDS
    assert not a.held(), "two leaders"
    assert api.holder == "b"


def test_a_leader_that_renews_keeps_the_lease(api, clock):
    a, b = replica(api, "a"), replica(api, "b")
    asyncio.run(a.acquire())
    for _ in range(50):
        clock.at += module.RENEW_SECONDS
        assert asyncio.run(a._try())
        assert not asyncio.run(b._try())
        assert not b.held()
    assert a.held()


def test_a_renewal_is_one_request_also_after_a_change_by_someone_else(api, clock):
    a = replica(api, "a")
    asyncio.run(a.acquire())
    for changed, reads in ((False, 0), (True, 1), (False, 0)):
        before, api.version = api.reads, api.version + changed
        if changed:
            api.lease["metadata"]["resourceVersion"] = str(api.version)
        assert asyncio.run(a._try()) or asyncio.run(a._try())
        assert api.reads - before == reads
    assert a.held()


def test_a_released_lease_is_acquired_at_the_next_try(api, clock):
    a, b = replica(api, "a"), replica(api, "b")
    asyncio.run(a.acquire())
    assert not asyncio.run(b._try())
    asyncio.run(a.release())
    assert not a.held()
    began = clock.at
    asyncio.run(b.acquire())
    assert clock.at - began <= module.STANDBY_SECONDS
    assert b.held()


def test_a_replica_does_not_release_the_lease_of_another(api, clock):
    a, b = replica(api, "a"), replica(api, "b")
    asyncio.run(a.acquire())
    clock.at += module.DURATION_SECONDS
    asyncio.run(b.acquire())
    a._held_until = clock.at + 5  # it has not noticed the loss
    asyncio.run(a.release())
    assert api.holder == "b"


def test_a_leader_without_api_access_stops_before_another_can_start(api, clock):
    a, b = replica(api, "a"), replica(api, "b")
    asyncio.run(a.acquire())
    taken = clock.at
    asyncio.run(b._try())
    api.down = True
    asyncio.run(a.renew())
    assert not a.held()
    assert clock.at - taken <= module.DURATION_SECONDS + 1e-6
    api.down = False
    assert not asyncio.run(b._try()) or clock.at >= taken + module.DURATION_SECONDS


def test_a_leader_keeps_the_lease_over_a_short_outage(api, clock):
    a = replica(api, "a")
    asyncio.run(a.acquire())
    api.down = True
    failed = []

    def hook():
        failed.append(clock.at)
        if len(failed) == 2:
            api.down = False
        if len(failed) == 6:
            raise asyncio.CancelledError

    clock.hooks.append(hook)
    with pytest.raises(asyncio.CancelledError):
        asyncio.run(a.renew())
    assert a.held()


def test_a_replica_that_was_paused_does_not_hold_the_lease(api, clock):
    a = replica(api, "a")
    asyncio.run(a.acquire())
    clock.at += module.DURATION_SECONDS
    assert not a.held()


def test_only_one_of_two_replicas_acquires_a_new_lease(api, clock):
    a, b = replica(api, "a"), replica(api, "b")

    async def race():
        return await asyncio.gather(a._try(), b._try())

    assert sorted(asyncio.run(race())) == [False, True]
    assert a.held() != b.held()


def test_a_lease_with_an_empty_spec_can_be_acquired(api, clock):
    asyncio.run(replica(api, "a").acquire())
    api.lease["spec"] = {}
    b = replica(api, "b")
    asyncio.run(b.acquire())
    assert b.held()


def test_lease_transitions_are_counted(api, clock):
    a, b = replica(api, "a"), replica(api, "b")
    asyncio.run(a.acquire())
    asyncio.run(a._try())
    asyncio.run(a.release())
    asyncio.run(b.acquire())
    assert api.lease["spec"]["leaseTransitions"] == 2
