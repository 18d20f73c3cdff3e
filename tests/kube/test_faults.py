"""Errors of the API server and the network, and how the adapter interprets them."""

import asyncio

import pytest

from hftitan_api.models import HFTitanJob
from hftitan_operator.core.state import Apply, DeleteJob, DeletePod
from hftitan_operator.kube import api as kube_api
from hftitan_operator.kube.api import ApiError, Configuration, KubeApi
from hftitan_operator.kube.cluster import KubeCluster
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


def job(version="5", **metadata):
    document = JOB.model_dump(by_alias=True, exclude_unset=True)
    metadata = document["metadata"] | {"resourceVersion": version, **metadata}
    return {**document, "apiVersion": "hftitan.io/v1alpha1", "kind": "HFTitanJob", "metadata": metadata}


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


@pytest.mark.parametrize(
    ("answer", "deleting"),
    [
        ({"kind": "Status", "status": "Success"}, []),
        (ApiError(404, "NotFound", ""), []),
        (job(version="9", deletionTimestamp="2026-01-01T00:00:00Z"), ["2026-01-01T00:00:00Z"]),
    ],
)
def test_a_deleted_job_is_not_deleted_twice(answer, deleting):
    """The next pass knows the deletion, also before the watch reports it."""

    async def run():
        cluster = KubeCluster(Server(answer))
        cluster.jobs.put(job())
        await cluster.apply(JOB, DeleteJob())
        return [record.view.job.metadata.deletion_timestamp for record in cluster.jobs.all()]

    assert asyncio.run(run()) == deleting


@pytest.mark.parametrize("status", [401, 408, 409, 410, 425, 429, 500, 503])
def test_a_temporary_error_does_not_deny_the_object(status):
    with pytest.raises(ApiError):
        pods_after(Server(ApiError(status, "", "not now")), Apply(pod()))


@pytest.mark.parametrize("status", [400, 403, 404, 422])
def test_a_rejection_denies_the_object(status):
    with pytest.raises(Denied):
        pods_after(Server(ApiError(status, "", "never")), Apply(pod()))


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
