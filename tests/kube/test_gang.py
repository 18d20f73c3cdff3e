"""What may be concluded from an API server's answers about a gang scheduler's objects, and what must not."""

import asyncio

import pytest

from hftitan_api import mesh
from hftitan_api.models import HFTitanJob
from hftitan_operator.core.render import pod_group
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
    """Gives the answers of a list, one after the other; an exception is raised."""

    def __init__(self, *answers):
        self.answers, self.calls = list(answers), []

    async def request(self, method, path, body=None, **_):
        self.calls.append((method, path))
        answer = self.answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer


def done(action, *answers):
    """The requests that it took."""
    server = Server(*answers)
    asyncio.run(KubeCluster(server).apply(JOB, action))
    return server.calls


def resources(*names):
    return {"kind": "APIResourceList", "resources": [{"name": name} for name in names]}


def test_a_group_is_created_where_its_kind_is():
    assert done(CREATE, {}) == [("POST", f"{GROUPS}/namespaces/team/podgroups")]


def test_one_that_is_there_already_is_the_jobs_own():
    assert done(CREATE, ApiError(409, "AlreadyExists", "")) == [("POST", f"{GROUPS}/namespaces/team/podgroups")]


@pytest.mark.parametrize("action", [CREATE, REQUIRE])
@pytest.mark.parametrize("known", [GONE, resources("queues", "podgroups/status")], ids=["no group", "no kind"])
def test_what_discovery_does_not_know_is_not_installed(action, known):
    with pytest.raises(Unserved, match="there is no"):
        done(action, GONE, known)


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
def test_a_server_that_does_not_answer_says_nothing(action, answers):
    with pytest.raises(OSError):
        done(action, *answers)


def test_a_namespace_or_a_queue_that_is_missing_is_no_missing_kind():
    with pytest.raises(Denied, match='namespaces "team" not found') as error:
        done(CREATE, ApiError(404, "NotFound", 'namespaces "team" not found'), resources("podgroups"))
    assert not isinstance(error.value, Unserved)
    missing = ApiError(404, "NotFound", 'localqueues.kueue.x-k8s.io "q" not found')
    with pytest.raises(Denied, match=r'namespace team: localqueues.kueue.x-k8s.io "q" not found') as error:
        done(REQUIRE, missing, resources("localqueues"))
    assert not isinstance(error.value, Unserved)


@pytest.mark.parametrize("status", [400, 403, 422])
def test_a_group_that_is_refused_is_told(status):
    with pytest.raises(Denied, match=r"PodGroup x-0123abcd-1: queue research is closed") as error:
        done(CREATE, ApiError(status, "", "queue research is closed"))
    assert not isinstance(error.value, Unserved)


def test_the_queue_that_is_there():
    assert done(REQUIRE, {}) == [("GET", "/apis/kueue.x-k8s.io/v1beta2/namespaces/team/localqueues/q")]


@pytest.mark.parametrize("answer", [{}, GONE, ApiError(403, "Forbidden", "")])
def test_no_attempt_waits_for_the_deletion_of_a_group(answer):
    assert done(DELETE, answer) == [("DELETE", f"{GROUPS}/namespaces/team/podgroups/x-0123abcd-1")]


def test_a_deletion_that_may_pass_later_is_tried_again():
    with pytest.raises(ApiError):
        done(DELETE, ApiError(503, "ServiceUnavailable", ""))
