"""Gangs on Kubernetes' own scheduler, with the feature gates and APIs of its gang scheduling enabled."""

import json
import re
import subprocess
import sys

import pytest
from control_plane import ControlPlane
from job_documents import ON_CPU, document
from kubectl import wait
from operator_process import OperatorProcess
from paths import CRD, FAKE_TRAINER

from hftitan_operator.core.rendering import access

ACCOUNT = access.Account()
RACK = "example.com/rack"
FEATURES = {"--feature-gates": "GenericWorkload=true,TopologyAwareWorkloadScheduling=true"}
OPTIONS = {
    "kube-apiserver": {**FEATURES, "--runtime-config": "api/all=true"},
    "kube-controller-manager": FEATURES,
    "kube-scheduler": FEATURES,
}
PROGRAMS = {"hftitan-agent": (sys.executable, str(FAKE_TRAINER))}


@pytest.fixture(scope="module")
def assets(control_plane_assets):
    """The programs of a Kubernetes that has gang scheduling."""
    words = [control_plane_assets / "kube-apiserver", "--version"]
    version = subprocess.run(words, stdout=subprocess.PIPE, text=True, check=True).stdout
    if int(version.split(".")[1]) < 36:
        pytest.skip(f"{version.strip()} has no gang scheduling")
    return control_plane_assets


@pytest.fixture(scope="module")
def control_plane(assets, tmp_path_factory):
    folder = tmp_path_factory.mktemp("gangs")
    with ControlPlane(folder, assets, crds=[CRD], options=OPTIONS, audited=True) as plane:
        yield plane


@pytest.fixture(scope="module")
def admin(control_plane):
    return control_plane.admin


class Team:
    """The jobs of a namespace."""

    def __init__(self, admin, namespace):
        self.admin, self.namespace = admin, namespace

    def create(self, name, nodes=2, steps=100_000, gang="kubernetes", **scheduling):
        spec = {
            "mesh": {"nodes": nodes, "gpusPerNode": 1, "device": "gpu"},
            "training": {"steps": steps},
            "checkpoint": {"volume": "claim", "interval": 5},
            "runPolicy": {"maxRestarts": 0},
            "scheduling": {"gang": gang, **scheduling},
        }
        self.admin.create(document(name, ON_CPU, namespace=self.namespace, **spec))

    def status(self, name):
        return self.admin.get("hftitanjobs", name, self.namespace).get("status", {})

    def until(self, name, condition, what):
        try:
            wait(lambda: condition(self.status(name)), what, 60.0)
        except AssertionError as error:
            raise AssertionError(f"{error}: {json.dumps(self.status(name), indent=1)}") from None
        return self.status(name)

    def says(self, name, text):
        return self.until(name, lambda s: text in (s.get("message") or ""), f"the message of {name}")["message"]

    def places(self, name):
        pods = self.admin.list("pods", self.namespace, labels=f"hftitan.io/job={name}")
        return sorted(p["spec"].get("nodeName", "") for p in pods if p["status"]["phase"] in ("Pending", "Running"))

    def placed(self, name, nodes):
        wait(lambda: self.places(name) == sorted(nodes), f"the pods of {name} on {nodes}")

    def groups(self):
        """Return the names of the PodGroups, in the version of their API that the server has."""
        for version in self.admin.request("GET", "/apis/scheduling.k8s.io")["versions"]:
            api = f"/apis/{version['groupVersion']}"
            if any(kind["name"] == "podgroups" for kind in self.admin.request("GET", api)["resources"]):
                found = self.admin.request("GET", f"{api}/namespaces/{self.namespace}/podgroups")["items"]
                return [group["metadata"]["name"] for group in found]
        raise AssertionError("this API server has no PodGroups")

    def delete(self, name):
        self.admin.delete("hftitanjobs", name, self.namespace)
        wait(lambda: not self.places(name), f"the pods of {name} to be gone")


@pytest.fixture
def team(admin, namespace, operator):
    admin.make_claim("claim", namespace)
    return Team(admin, namespace)


@pytest.fixture
def node(kubelet, admin):
    """Function: add a node with one GPU."""

    def add(name, rack="none"):
        kubelet(name, gpus=1, programs=PROGRAMS)
        admin.patch("nodes", name, {"metadata": {"labels": {RACK: rack}}})

    return add


def test_a_gang_without_room_binds_no_pod(node, team):
    node("a")
    team.create("plain", gang="none")
    team.placed("plain", ["", "a"])  # holds a GPU in vain
    team.delete("plain")
    team.create("gang", steps=20)
    assert re.fullmatch(
        r"attempt 1: pod gang-1-[01] is not scheduled \(Unschedulable\): 0/1 nodes are available: 1 Insufficient "
        r"nvidia.com/gpu\.",
        team.says("gang", "Insufficient"),
    )
    assert team.places("gang") == ["", ""]
    node("b")
    team.placed("gang", ["a", "b"])
    assert team.until("gang", lambda s: s["phase"] == "Succeeded", "the end")["attempt"] == 1


def test_a_gang_is_placed_within_one_rack(node, team):
    for name in ("r1-a", "r2-a", "r2-b"):
        node(name, rack=name[:2])
    team.create("gang", topologyKey=RACK)
    team.placed("gang", ["r2-a", "r2-b"])
    team.create("other", topologyKey=RACK)
    team.says("other", "Unschedulable")
    assert team.places("other") == ["", ""]


def test_a_preempted_gang_gives_up_all_of_its_nodes(node, team, admin):
    for name, value in (("low", 10), ("high", 100)):
        version = {"apiVersion": "scheduling.k8s.io/v1", "kind": "PriorityClass"}
        admin.create({**version, "metadata": {"name": name}, "value": value})
    for name in "ab":
        node(name)
    team.create("low", priorityClass="low")
    team.until("low", lambda s: s.get("phase") == "Running", "the first job")
    team.create("high", nodes=1, priorityClass="high")
    status = team.until("low", lambda s: s["attempt"] == 2, "the second attempt")
    [record] = status["restartHistory"]
    assert (record["reason"], record["counted"]) == ("Evicted", False)
    team.until("high", lambda s: s.get("phase") == "Running", "the other job")
    team.says("low", "Unschedulable")
    assert team.places("low") == ["", ""]


def test_a_suspended_gang_has_no_group(team, control_plane):
    """The group's deletion needs a permission that test_permissions.py cannot see in use."""
    team.create("gang")
    wait(lambda: len(team.groups()) == 1, "the group")
    team.admin.patch("hftitanjobs", "gang", {"spec": {"runPolicy": {"suspend": True}}}, team.namespace)
    wait(lambda: not team.groups(), "the group to be gone")
    user = f"system:serviceaccount:{ACCOUNT.namespace}:{ACCOUNT.name}"
    decisions = {
        (event["verb"], event["annotations"]["authorization.k8s.io/decision"])
        for event in control_plane.requests(user)
        if event.get("objectRef", {}).get("resource") == "podgroups"
    }
    assert decisions == {("create", "allow"), ("delete", "allow")}


def test_a_topology_that_the_api_server_would_drop_is_refused(assets, tmp_path):
    """Without its feature gate, the API server drops the field without an error."""
    options = {"kube-apiserver": {"--feature-gates": "GenericWorkload=true", "--runtime-config": "api/all=true"}}
    parts = {"controller_manager": False, "scheduler": False}
    with ControlPlane(tmp_path, assets, **parts, crds=[CRD], options=options) as plane:
        operator = OperatorProcess(plane.kubeconfig("admin"), tmp_path / "log").start()
        try:
            team = Team(plane.admin, "default")
            team.create("free")
            team.create("bound", topologyKey=RACK)
            wait(lambda: team.places("free") == ["", ""], "the pods of the other job")
            message = team.says("bound", "topologyKey")
        finally:
            operator.kill()
        assert re.fullmatch(
            r"the cluster rejected an object of attempt 1: PodGroup bound-\w+-1: this API server ignores "
            r"spec.scheduling.topologyKey; enable its feature gate TopologyAwareWorkloadScheduling, or remove the "
            r"field",
            message,
        )
        assert (len(team.groups()), team.places("bound")) == (1, [])
