"""One leader at a time, by each replica's own clock."""

import asyncio
import copy
from types import SimpleNamespace

import pytest

from hftitan_operator.kube import lease as module
from hftitan_operator.kube.api import ApiError
from hftitan_operator.kube.lease import Lease

PATH = "/apis/coordination.k8s.io/v1/namespaces/ns/leases"


class Api:
    """A Lease with optimistic locking, and faults on demand."""

    def __init__(self):
        self.lease, self.version, self.down, self.writes = None, 0, False, 0

    async def request(self, method, path, body=None, *, always=False, seconds=0):
        if self.down:
            raise OSError("no route")
        if method == "GET":
            if self.lease is None:
                raise ApiError(404, "NotFound", "no such lease")
            return copy.deepcopy(self.lease)
        assert always, "the lease is written before it is held"
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
    """A clock that moves when the code sleeps, and by hand."""
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


def test_the_first_one_takes_it(api, clock):
    a = replica(api, "a")
    assert not a.held()
    asyncio.run(a.acquire())
    assert a.held()
    assert api.holder == "a"
    assert api.lease["spec"]["leaseTransitions"] == 1


def test_another_waits_its_whole_duration_by_its_own_clock(api, clock):
    a, b = replica(api, "a"), replica(api, "b")
    asyncio.run(a.acquire())
    began = clock.at
    asyncio.run(b.acquire())
    assert clock.at - began >= module.DURATION_SECONDS
    assert clock.at - began <= module.DURATION_SECONDS + 2 * module.RETRY_SECONDS
    assert not a.held(), "never both"
    assert api.holder == "b"


def test_a_leader_that_renews_keeps_it(api, clock):
    a, b = replica(api, "a"), replica(api, "b")
    asyncio.run(a.acquire())
    for _ in range(50):
        clock.at += module.RENEW_SECONDS
        assert asyncio.run(a._try())
        assert not asyncio.run(b._try())
        assert not b.held()
    assert a.held()


def test_a_given_back_lease_is_taken_at_the_next_look(api, clock):
    a, b = replica(api, "a"), replica(api, "b")
    asyncio.run(a.acquire())
    assert not asyncio.run(b._try())
    asyncio.run(a.release())
    assert not a.held()
    began = clock.at
    asyncio.run(b.acquire())
    assert clock.at - began <= module.RETRY_SECONDS
    assert b.held()


def test_only_ones_own_lease_is_given_back(api, clock):
    a, b = replica(api, "a"), replica(api, "b")
    asyncio.run(a.acquire())
    clock.at += module.DURATION_SECONDS
    asyncio.run(b.acquire())
    a._held_until = clock.at + 5  # as if it had not noticed
    asyncio.run(a.release())
    assert api.holder == "b"


def test_a_leader_without_the_api_is_over_before_another_can_begin(api, clock):
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


def test_a_blip_is_survived(api, clock):
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


def test_a_replica_that_slept_does_not_trust_its_lease(api, clock):
    a = replica(api, "a")
    asyncio.run(a.acquire())
    clock.at += module.DURATION_SECONDS
    assert not a.held()


def test_two_that_race_for_a_new_lease(api, clock):
    a, b = replica(api, "a"), replica(api, "b")

    async def race():
        return await asyncio.gather(a._try(), b._try())

    assert sorted(asyncio.run(race())) == [False, True]
    assert a.held() != b.held()


def test_a_lease_that_somebody_emptied_by_hand(api, clock):
    asyncio.run(replica(api, "a").acquire())
    api.lease["spec"] = {}
    b = replica(api, "b")
    asyncio.run(b.acquire())
    assert b.held()


def test_counts_of_hand_overs(api, clock):
    a, b = replica(api, "a"), replica(api, "b")
    asyncio.run(a.acquire())
    asyncio.run(a._try())
    asyncio.run(a.release())
    asyncio.run(b.acquire())
    assert api.lease["spec"]["leaseTransitions"] == 2
