"""What an API server, or the network before it, may answer at a bad moment, and what must not be concluded from it."""

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
    """Gives the answers of a list, one after the other; an exception is raised."""

    def __init__(self, *answers):
        self.answers, self.calls = list(answers), []

    async def request(self, method, path, body=None, **_):
        self.calls.append(method)
        answer = self.answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer


def carried_out(server, action):
    """The pods known after it, by uid."""

    async def run():
        cluster = KubeCluster(server)
        cluster.pods.put(pod())
        await cluster.apply(JOB, action)
        return [record.view.uid for record in cluster.pods.all()]

    return asyncio.run(run())


def test_a_conflict_does_not_mean_that_the_pod_is_gone():
    server = Server(ApiError(409, "Conflict", "the object has been modified"), pod())
    with pytest.raises(Conflict):
        carried_out(server, DeletePod("x-1-0", "uid-pod"))
    assert server.calls == ["DELETE", "GET"]


@pytest.mark.parametrize("found", [pod("another"), ApiError(404, "NotFound", "")])
def test_a_conflict_over_the_uid_does(found):
    assert (
        carried_out(Server(ApiError(409, "Conflict", "Precondition failed"), found), DeletePod("x-1-0", "uid-pod"))
        == []
    )


@pytest.mark.parametrize("status", [401, 408, 409, 410, 425, 429, 500, 503])
def test_what_may_pass_later_is_not_held_against_the_object(status):
    with pytest.raises(ApiError):
        carried_out(Server(ApiError(status, "", "not now")), Apply(pod()))


@pytest.mark.parametrize("status", [400, 403, 404, 422])
def test_a_refusal_is(status):
    with pytest.raises(Denied):
        carried_out(Server(ApiError(status, "", "never")), Apply(pod()))


class Nowhere:
    """A store that keeps nothing, however many objects it says it has."""

    size = 0

    def __len__(self):
        return self.size

    def keep(self, *_):
        pass


def test_a_list_that_took_long_does_not_put_the_next_one_off(monkeypatch):
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
def test_what_a_burst_brings_is_not_listed_as_well(monkeypatch, burst):
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


def test_a_silent_server_is_not_waited_for_as_long_as_a_talking_one(monkeypatch):
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
