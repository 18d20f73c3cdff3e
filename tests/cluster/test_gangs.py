"""Gang schedulers on a real API server with their CRDs, but without the schedulers.

The tests do the schedulers' work: they bind a whole group, hold pods with a finalizer and preempt by deletion. The
operator runs as a process, with exactly the permissions of `hftitan rbac`.
"""

import pytest
from gang_schemas import FOLDER
from job_documents import ON_CPU, document
from kubectl import ApiError, wait

VOLCANO = "/apis/scheduling.volcano.sh/v1beta1/namespaces/{}/podgroups"
KUEUE = "/apis/kueue.x-k8s.io/v1beta2/namespaces/{}/localqueues"
FINALIZER = "kueue.x-k8s.io/managed"


@pytest.fixture(scope="module")
def kinds(control_plane):
    """Install the CRDs of Volcano and Kueue, and of no other scheduler."""
    for name in ("volcano", "kueue"):
        control_plane.install_crd(FOLDER / f"{name}.yaml")
    yield
    for name in ("podgroups.scheduling.volcano.sh", "localqueues.kueue.x-k8s.io"):
        control_plane.admin.delete("customresourcedefinitions", name)


@pytest.fixture
def team(admin, namespace, kinds, operator):
    admin.make_claim("claim", namespace)
    return Team(admin, namespace)


class Team:
    """The jobs of a namespace, and their objects."""

    def __init__(self, admin, namespace):
        self.admin, self.namespace = admin, namespace

    def create(self, name, **scheduling):
        job = document(
            name,
            ON_CPU,
            namespace=self.namespace,
            mesh={"nodes": 2},
            checkpoint={"volume": "claim"},
            scheduling=scheduling,
        )
        return self.admin.create(job)["metadata"]["uid"]

    def status(self, name):
        return self.admin.get("hftitanjobs", name, self.namespace).get("status", {})

    def until(self, name, condition, what):
        wait(lambda: condition(self.status(name)), what)
        return self.status(name)

    def pods(self, name, attempt):
        selector = f"hftitan.io/job={name},hftitan.io/attempt={attempt}"
        return self.admin.list("pods", self.namespace, labels=selector)

    def gang(self, name, attempt):
        """Wait for the pods of an attempt and return them."""
        wait(lambda: len(self.pods(name, attempt)) == 2, f"the pods of attempt {attempt} of {name}")
        return self.pods(name, attempt)

    def groups(self):
        items = self.admin.request("GET", VOLCANO.format(self.namespace))["items"]
        return {item["metadata"]["name"]: item for item in items}

    def bind(self, pods, node):
        """Bind pods to a node, as a scheduler does."""
        for pod in pods:
            name = pod["metadata"]["name"]
            binding = {"apiVersion": "v1", "kind": "Binding", "metadata": {"name": name}, "target": {"name": node}}
            self.admin.request("POST", f"/api/v1/namespaces/{self.namespace}/pods/{name}/binding", binding)


def test_volcano_job_has_a_pod_group_for_each_attempt(team, kubelet):
    kubelet("gang-a", fake={})
    uid = team.create("x", gang="volcano", queue="research", topologyKey="kubernetes.io/hostname")
    pods = team.gang("x", 1)
    first, second = (f"x-{uid[:8]}-{attempt}" for attempt in (1, 2))
    (name, group), *others = team.groups().items()
    assert (name, others) == (first, [])
    assert group["spec"] == {"minMember": 2, "queue": "research"}
    assert [owner["uid"] for owner in group["metadata"]["ownerReferences"]] == [uid]
    assert {pod["metadata"]["annotations"]["scheduling.k8s.io/group-name"] for pod in pods} == {first}
    assert {(pod["spec"]["schedulerName"], pod["spec"].get("nodeName")) for pod in pods} == {("volcano", None)}
    team.bind(pods, "gang-a")
    team.until("x", lambda s: s.get("phase") == "Starting", "the gang to run")
    team.admin.delete("pods", pods[0]["metadata"]["name"], team.namespace)
    again = team.gang("x", 2)
    assert {pod["metadata"]["annotations"]["scheduling.k8s.io/group-name"] for pod in again} == {second}
    assert set(team.groups()) == {second}
    team.admin.patch("hftitanjobs", "x", {"spec": {"runPolicy": {"suspend": True}}}, team.namespace)
    wait(lambda: not team.groups(), "the group of the suspended job to be deleted")


def test_job_fails_if_its_scheduler_is_not_installed(team, kubelet):
    kubelet("gang-b", fake={"endsAfter": 0.2})
    team.create("refused", gang="coscheduling")
    team.create("fine")
    status = team.until("refused", lambda s: s.get("phase") == "Failed", "the failure")
    message = (
        "spec.scheduling.gang: coscheduling needs podgroups of scheduling.x-k8s.io/v1alpha1, which this cluster does "
        "not have; install the scheduler-plugins chart, or use gang: none"
    )
    accepted = next(c for c in status["conditions"] if c["type"] == "Accepted")
    assert (accepted["status"], accepted["reason"], accepted["message"]) == ("False", "NoGangScheduler", message)
    assert status["message"] == message
    for resource in ("pods", "services", "configmaps"):
        assert team.admin.list(resource, team.namespace, labels="hftitan.io/job=refused") == []
    team.until("fine", lambda s: s.get("phase") == "Succeeded", "the other job")


def test_pods_held_by_kueues_finalizer_do_not_delay_the_next_attempt(team):
    queue = {"apiVersion": "kueue.x-k8s.io/v1beta2", "kind": "LocalQueue", "metadata": {"name": "team-queue"}}
    team.admin.request("POST", KUEUE.format(team.namespace), {**queue, "spec": {"clusterQueue": "all"}})
    uid = team.create("x", gang="kueue", queue="team-queue")
    for pod in (pods := team.gang("x", 1)):
        assert pod["metadata"]["labels"]["kueue.x-k8s.io/queue-name"] == "team-queue"
        assert pod["metadata"]["annotations"]["kueue.x-k8s.io/pod-group-total-count"] == "2"
    names = [pod["metadata"]["name"] for pod in pods]
    fields = "involvedObject.name=x,reason=NotQueued"
    wait(lambda: team.admin.list("events", team.namespace, fields=fields), "the event that no Kueue manages these pods")
    for name in names:
        team.admin.patch("pods", name, {"metadata": {"finalizers": [FINALIZER]}}, team.namespace)
    for name in names:
        team.admin.delete("pods", name, team.namespace)
    again = team.gang("x", 2)
    assert {p["metadata"]["labels"]["kueue.x-k8s.io/pod-group-name"] for p in again} == {f"x-{uid[:8]}-2"}
    assert [p["metadata"]["name"] for p in team.pods("x", 1)] == names, "the old pods still exist"
    history = team.until("x", lambda s: s.get("attempt") == 2, "the second attempt")["restartHistory"]
    assert [(r["attempt"], r["reason"], r["counted"]) for r in history] == [(1, "PodDeleted", False)]
    for name in names:
        team.admin.patch("pods", name, {"metadata": {"finalizers": []}}, team.namespace)


def test_job_with_a_missing_queue_creates_no_objects(team):
    team.create("x", gang="kueue", queue="nowhere")
    status = team.until("x", lambda s: "nowhere" in (s.get("message") or ""), "the message")
    assert status["phase"] == "Pending"
    assert status["message"] == (
        "the cluster rejected an object of attempt 1: "
        f'namespace {team.namespace}: localqueues.kueue.x-k8s.io "nowhere" not found'
    )
    assert team.admin.list("pods", team.namespace) == []
    with pytest.raises(ApiError, match="404"):
        team.admin.get("services", "x", team.namespace)
