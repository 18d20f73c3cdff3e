"""How the adapter interprets the API server's answers about objects of gang schedulers."""

import asyncio

import pytest

from hftitan_api import mesh
from hftitan_api.models import HFTitanJob
from hftitan_operator.core.rendering.render import pod_group
from hftitan_operator.core.state import Apply, DeletePodGroup, Require
from hftitan_operator.kube.api import ApiError
from hftitan_operator.kube.cluster import KubeCluster
from hftitan_operator.port import Denied, Unserved

JOB = HFTitanJob.model_validate(
    {
        "metadata": {"name": "x", "namespace": "team", "uid": "0123abcd-0"},
        "spec": {
            "model": {"name": "org/m"},
            "dataset": {"name": "org/d"},
            "training": {"steps": 1},
            "scheduling": {"gang": "volcano"},
        },
    }
)
GROUPS = "/apis/scheduling.volcano.sh/v1beta1"
CREATE = Apply(pod_group(JOB, mesh.plan(JOB.spec), 1))
REQUIRE = Require("kueue.x-k8s.io/v1beta2", "localqueues", "q")
DELETE = DeletePodGroup("scheduling.volcano.sh/v1beta1", "x-0123abcd-1")
GONE = ApiError(404, "NotFound", "the server could not find the requested resource")


class Server:
    """Returns the given answers in order; raises an answer that is an exception."""

    def __init__(self, *answers):
        self.answers, self.calls = list(answers), []

    async def request(self, method, path, body=None, **_):
        self.calls.append((method, path))
        answer = self.answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer


def requests(action, *answers):
    """Execute the action against these answers; return its requests."""
    server = Server(*answers)
    asyncio.run(KubeCluster(server).apply(JOB, action))
    return server.calls


def resources(*names):
    return {"kind": "APIResourceList", "resources": [{"name": name} for name in names]}


def test_create_a_group():
    assert requests(CREATE, {}) == [("POST", f"{GROUPS}/namespaces/team/podgroups")]


def test_an_existing_group_belongs_to_the_job():
    assert requests(CREATE, ApiError(409, "AlreadyExists", "")) == [("POST", f"{GROUPS}/namespaces/team/podgroups")]


@pytest.mark.parametrize("action", [CREATE, REQUIRE])
@pytest.mark.parametrize("known", [GONE, resources("queues", "podgroups/status")], ids=["no group", "no kind"])
def test_a_kind_that_discovery_does_not_list_is_not_installed(action, known):
    with pytest.raises(Unserved, match="this cluster does not serve"):
        requests(action, GONE, known)


@pytest.mark.parametrize("action", [CREATE, REQUIRE])
@pytest.mark.parametrize(
    "answers",
    [
        (ApiError(503, "ServiceUnavailable", ""),),
        (ApiError(429, "TooManyRequests", ""),),
        (ApiError(401, "Unauthorized", ""),),
        (OSError("no answer"),),
        (GONE, ApiError(503, "ServiceUnavailable", "")),
        (GONE, ApiError(403, "Forbidden", "")),
        (GONE, TimeoutError("no answer")),
    ],
)
def test_a_temporary_error_does_not_mean_that_the_kind_is_missing(action, answers):
    with pytest.raises(OSError):
        requests(action, *answers)


def test_a_missing_namespace_or_queue_is_not_a_missing_kind():
    with pytest.raises(Denied, match='namespaces "team" not found') as error:
        requests(CREATE, ApiError(404, "NotFound", 'namespaces "team" not found'), resources("podgroups"))
    assert not isinstance(error.value, Unserved)
    missing = ApiError(404, "NotFound", 'localqueues.kueue.x-k8s.io "q" not found')
    with pytest.raises(Denied, match=r'namespace team: localqueues.kueue.x-k8s.io "q" not found') as error:
        requests(REQUIRE, missing, resources("localqueues"))
    assert not isinstance(error.value, Unserved)


@pytest.mark.parametrize("status", [400, 403, 422])
def test_a_rejected_group_is_denied_with_the_servers_message(status):
    with pytest.raises(Denied, match=r"PodGroup x-0123abcd-1: queue research is closed") as error:
        requests(CREATE, ApiError(status, "", "queue research is closed"))
    assert not isinstance(error.value, Unserved)


def test_an_existing_queue_needs_one_request():
    assert requests(REQUIRE, {}) == [("GET", "/apis/kueue.x-k8s.io/v1beta2/namespaces/team/localqueues/q")]


NATIVE = [f"/apis/scheduling.k8s.io/{version}" for version in ("v1beta1", "v1alpha3", "v1alpha2")]
OF_KUBERNETES = Apply({**CREATE.manifest, "apiVersion": "scheduling.k8s.io/v1beta1", "spec": {}})


@pytest.mark.parametrize("served", range(3))
def test_kubernetes_group_is_created_in_the_first_version_that_is_served(served):
    """Kubernetes 1.36 serves v1alpha2; 1.37 serves v1beta1 and v1alpha3, each only if it is enabled."""
    calls = requests(OF_KUBERNETES, *[GONE, GONE] * served, {})
    assert [path for method, path in calls if method == "POST"] == [
        f"{api}/namespaces/team/podgroups" for api in NATIVE[: served + 1]
    ]
    delete = DeletePodGroup("scheduling.k8s.io/v1beta1", "x-1")
    assert [path for _, path in requests(delete, *[GONE] * served, {})] == [
        f"{api}/namespaces/team/podgroups/x-1" for api in NATIVE[: served + 1]
    ]


def test_kubernetes_group_in_no_version_is_not_installed():
    with pytest.raises(Unserved, match=r"does not serve podgroups of scheduling.k8s.io/v1beta1"):
        requests(OF_KUBERNETES, *[GONE] * 6)


def test_an_ended_group_of_kueue_is_released_by_deleting_its_workload():
    release = DeletePodGroup("kueue.x-k8s.io/v1beta2", "x-1", "workloads")
    assert requests(release, {}) == [("DELETE", "/apis/kueue.x-k8s.io/v1beta2/namespaces/team/workloads/x-1")]


@pytest.mark.parametrize("answer", [{}, GONE, ApiError(403, "Forbidden", "")])
def test_a_failed_deletion_of_a_group_does_not_block_the_next_attempt(answer):
    assert requests(DELETE, answer) == [("DELETE", f"{GROUPS}/namespaces/team/podgroups/x-0123abcd-1")]


def test_a_deletion_with_a_temporary_error_is_retried():
    with pytest.raises(ApiError):
        requests(DELETE, ApiError(503, "ServiceUnavailable", ""))
