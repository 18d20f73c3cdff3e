"""Errors of the API server and the network, and how the adapter interprets them."""

import asyncio

import pytest

from hftitan_api.models import HFTitanJob
from hftitan_operator.core.state import Apply, DeletePod
from hftitan_operator.kube import api as kube_api
from hftitan_operator.kube import reflector
from hftitan_operator.kube.api import ApiError, Configuration, KubeApi
from hftitan_operator.kube.cluster import KubeCluster
from hftitan_operator.kube.reflector import Reflector
from hftitan_operator.port import Conflict, Denied

JOB = HFTitanJob.model_validate(
    {
        "metadata": {"name": "x", "namespace": "team", "uid": "uid-x"},
        "spec": {"model": {"name": "org/m"}, "dataset": {"name": "org/d"}, "training": {"steps": 1}},
    }
)
LABELS = {"hftitan.io/job": "x", "hftitan.io/attempt": "1", "hftitan.io/node-index": "0"}
OWNER = {"kind": "HFTitanJob", "controller": True, "uid": "uid-x"}


def pod(uid="uid-pod"):
    metadata = {"name": "x-1-0", "namespace": "team", "labels": LABELS, "uid": uid, "resourceVersion": "5"}
    return {"kind": "Pod", "metadata": {**metadata, "ownerReferences": [OWNER]}, "status": {"phase": "Running"}}


class Server:
    """Returns the given answers in order; raises an answer that is an exception."""

    def __init__(self, *answers):
        self.answers, self.calls = list(answers), []

    async def request(self, method, path, body=None, **_):
        self.calls.append(method)
        answer = self.answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer


def pods_after(server, action):
    """Execute the action; return the UIDs of the known pods."""

    async def run():
        cluster = KubeCluster(server)
        cluster.pods.put(pod())
        await cluster.apply(JOB, action)
        return [record.view.uid for record in cluster.pods.all()]

    return asyncio.run(run())


def test_after_a_conflict_a_pod_with_the_same_uid_still_exists():
    server = Server(ApiError(409, "Conflict", "the object has been modified"), pod())
    with pytest.raises(Conflict):
        pods_after(server, DeletePod("x-1-0", "uid-pod"))
    assert server.calls == ["DELETE", "GET"]


@pytest.mark.parametrize("found", [pod("another"), ApiError(404, "NotFound", "")])
def test_after_a_conflict_a_pod_with_another_uid_or_none_means_it_is_gone(found):
    assert (
        pods_after(Server(ApiError(409, "Conflict", "Precondition failed"), found), DeletePod("x-1-0", "uid-pod")) == []
    )


@pytest.mark.parametrize("status", [401, 408, 409, 410, 425, 429, 500, 503])
def test_a_temporary_error_does_not_deny_the_object(status):
    with pytest.raises(ApiError):
        pods_after(Server(ApiError(status, "", "not now")), Apply(pod()))


@pytest.mark.parametrize("status", [400, 403, 404, 422])
def test_a_rejection_denies_the_object(status):
    with pytest.raises(Denied):
        pods_after(Server(ApiError(status, "", "never")), Apply(pod()))


class Nowhere:
    """A store without objects that reports any size."""

    size = 0

    def __len__(self):
        return self.size

    def keep(self, *_):
        pass


def test_a_slow_list_does_not_delay_the_next_one(monkeypatch):
    monkeypatch.setattr(reflector, "RELIST_SECONDS", 0.01)
    lists = []

    class Slow:
        async def request(self, *_, **__):
            lists.append(None)
            await asyncio.sleep(0.1)
            return {"metadata": {"resourceVersion": "1"}, "items": []}

    async def run():
        task = asyncio.create_task(Reflector(Slow(), "/x", Nowhere(), watched=False).run())
        async with asyncio.timeout(3):
            while len(lists) < 4:
                await asyncio.sleep(0.01)
        task.cancel()

    asyncio.run(run())


@pytest.mark.parametrize("burst", [0, 1000])
def test_a_burst_of_objects_delays_the_next_list(monkeypatch, burst):
    monkeypatch.setattr(reflector, "RELIST_SECONDS", 0.01)
    store, lists = Nowhere(), []

    class Quick:
        async def request(self, *_, **__):
            lists.append(None)
            return {"metadata": {"resourceVersion": "1"}, "items": []}

    async def run():
        task = asyncio.create_task(Reflector(Quick(), "/x", store, watched=False).run())
        while not lists:
            await asyncio.sleep(0)
        store.size = burst
        await asyncio.sleep(0.2)
        task.cancel()

    asyncio.run(run())
    assert len(lists) == 1 if burst else len(lists) > 3


def test_a_server_without_data_times_out_before_the_request_timeout(monkeypatch):
    monkeypatch.setattr(kube_api, "REQUEST_SECONDS", 0.1)

    async def run():
        async def silent(reader, writer):
            await reader.read()
            writer.close()

        async with await asyncio.start_server(silent, "127.0.0.1", 0) as server:
            configuration = Configuration(host=f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}")
            async with asyncio.timeout(5), KubeApi(configuration) as api:
                with pytest.raises(OSError):
                    await api.request("GET", "/api/v1/pods", seconds=60)

    asyncio.run(run())
