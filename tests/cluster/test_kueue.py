"""Jobs in queues of the real Kueue, on a control plane of their own: its webhooks would see the pods of other tests.

The scheduler, the nodes' labels and the operator are real as well; the pods run the fake trainer.
"""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from control_plane import ControlPlane
from kubectl import wait
from kubelets import KubeletProcess
from kueue_controller import Kueue
from paths import CRD, FAKE_TRAINER, ROOT

from hftitan_operator.core.rendering import access

ACCOUNT = access.Account()
RACK, HOST = "example.com/rack", "kubernetes.io/hostname"
RACKS = {"rack-1": ("r1-a", "r1-b"), "rack-2": ("r2-a", "r2-b")}
GPUS = 2
"""Per node."""
PLENTY = ("cpu", "memory")
PROGRAMS = {"hftitan-agent": (sys.executable, str(FAKE_TRAINER))}


@pytest.fixture(scope="module")
def kueue_programs():
    if not shutil.which("go"):
        pytest.skip("Kueue is built with Go")
    done = subprocess.run([ROOT / "hack" / "kueue"], stdout=subprocess.PIPE, text=True, check=True)
    return Path(done.stdout.strip())


@pytest.fixture(scope="module")
def control_plane(control_plane_assets, kueue_programs, tmp_path_factory):
    folder = tmp_path_factory.mktemp("kueue")
    with ControlPlane(folder / "plane", control_plane_assets, crds=[CRD], audited=True) as plane:
        if plane.version < (1, 30):
            pytest.skip("this Kueue needs a newer Kubernetes")
        with Kueue(plane, folder, kueue_programs):
            yield plane


@pytest.fixture(scope="module")
def admin(control_plane):
    return control_plane.admin


@pytest.fixture(scope="module")
def nodes(admin, control_plane, tmp_path_factory):
    """Two racks of two nodes each, the flavor of their GPUs with this topology, and two priority classes."""
    kubelet = KubeletProcess(
        control_plane,
        ",".join(node for rack in RACKS.values() for node in rack),
        tmp_path_factory.mktemp("nodes"),
        gpus=GPUS,
        programs=PROGRAMS,
    )
    for rack, names in RACKS.items():
        in_rack(admin, rack, *names)
    levels = [{"nodeLabel": RACK}, {"nodeLabel": HOST}]
    admin.create(of_kueue("Topology", "racks", levels=levels))
    admin.create(of_kueue("ResourceFlavor", "gpus", nodeLabels={"gpus": "yes"}, topologyName="racks"))
    for name, value in (("low", 10), ("high", 100)):
        version = {"apiVersion": "scheduling.k8s.io/v1", "kind": "PriorityClass"}
        admin.create({**version, "metadata": {"name": name}, "value": value})
    yield kubelet
    kubelet.close()


def in_rack(admin, rack, *nodes):
    for name in nodes:
        admin.patch("nodes", name, {"metadata": {"labels": {RACK: rack, "gpus": "yes"}}})


def of_kueue(kind, name, namespace=None, **spec):
    metadata = {"name": name} | ({"namespace": namespace} if namespace else {})
    return {"apiVersion": "kueue.x-k8s.io/v1beta2", "kind": kind, "metadata": metadata, "spec": spec}


class Team:
    """A namespace with a queue, and its jobs."""

    def __init__(self, admin, namespace, workdir, gpus):
        self.admin, self.namespace, self.workdir = admin, namespace, workdir
        amounts = [{"name": "nvidia.com/gpu", "nominalQuota": gpus}]
        amounts += [{"name": name, "nominalQuota": "1000Gi"} for name in PLENTY]
        covered = [amount["name"] for amount in amounts]
        group = {"coveredResources": covered, "flavors": [{"name": "gpus", "resources": amounts}]}
        queue = {"resourceGroups": [group], "preemption": {"withinClusterQueue": "LowerPriority"}}
        admin.create(of_kueue("ClusterQueue", namespace, namespaceSelector={}, **queue))
        admin.create(of_kueue("LocalQueue", "team", namespace, clusterQueue=namespace))

    def create(self, name, *, nodes=2, gpus=1, steps=20, fake="", restarts=0, **scheduling):
        """Create a job. Return a function from an attempt to the name of its Workload."""
        document = {
            "apiVersion": "hftitan.io/v1alpha1",
            "kind": "HFTitanJob",
            "metadata": {"name": name, "namespace": self.namespace},
            "spec": {
                "model": {"name": "org/model"},
                "dataset": {"name": "org/data"},
                "mesh": {"nodes": nodes, "gpusPerNode": gpus},
                "training": {"steps": steps, "seqLen": 64},
                "checkpoint": {"volume": "claim", "interval": 5},
                "runPolicy": {"maxRestarts": restarts},
                "scheduling": {"gang": "kueue", "queue": "team", **scheduling},
                "pod": {"env": [{"name": "FAKE", "value": fake}]},
            },
        }
        uid = self.admin.create(document)["metadata"]["uid"]
        return lambda attempt: f"{name}-{uid[:8]}-{attempt}"

    def status(self, name):
        return self.admin.get("hftitanjobs", name, self.namespace).get("status", {})

    def until(self, name, condition, what, timeout=60.0):
        try:
            wait(lambda: condition(self.status(name)), what, timeout)
        except AssertionError as error:
            raise AssertionError(f"{error}: {json.dumps(self.status(name), indent=1)}") from None
        return self.status(name)

    def phase(self, name, phase):
        return self.until(name, lambda s: s.get("phase") == phase, f"{name} to be {phase}")

    def step(self, name, step):
        return self.until(name, lambda s: s.get("progress", {}).get("step", 0) >= step, f"step {step} of {name}")

    def pods(self, name, attempt=1):
        found = self.admin.list("pods", self.namespace, labels=f"hftitan.io/job={name},hftitan.io/attempt={attempt}")
        return sorted(found, key=lambda pod: int(pod["metadata"]["labels"]["hftitan.io/node-index"]))

    def places(self, name, attempt=1):
        """Return the nodes of the pods, by index."""
        return [pod["spec"].get("nodeName") for pod in self.pods(name, attempt)]

    def placed(self, name, pods):
        """Wait until all pods have a node; return the nodes."""
        wait(lambda: len(places := self.places(name)) == pods and all(places), f"the nodes of {name}")
        return self.places(name)

    def steps(self, name, attempt):
        """Return the steps that an attempt trained."""
        folder = self.workdir / "claims" / self.namespace / "claim" / name
        lines = map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())
        return [line["step"] for line in lines if line["attempt"] == attempt]

    def workload(self, name):
        return self.admin.get("workloads", name, self.namespace)

    def suspend(self, name, value):
        self.admin.patch("hftitanjobs", name, {"spec": {"runPolicy": {"suspend": value}}}, self.namespace)

    def delete(self, name):
        self.admin.delete("hftitanjobs", name, self.namespace)


@pytest.fixture
def team(admin, namespace, nodes, operator):
    """Function: make a queue with a quota of GPUs."""
    admin.make_claim("claim", namespace)
    yield lambda gpus: Team(admin, namespace, nodes.workdir, gpus)
    for job in admin.list("hftitanjobs", namespace):
        admin.delete("hftitanjobs", job["metadata"]["name"], namespace)
    wait(lambda: not admin.list("pods", namespace), "the pods to be gone", 60.0)
    admin.delete("localqueues", "team", namespace)
    admin.delete("clusterqueues", namespace)


def condition(status, kind):
    return next(c for c in status["conditions"] if c["type"] == kind)


def conditions(thing):
    return {c["type"]: (c["status"], c["reason"]) for c in thing["status"]["conditions"]}


def test_a_gang_is_admitted_as_one_group_or_waits_with_kueues_message(team):
    team = team(gpus=2)
    first = team.create("first", steps=100_000)
    team.step("first", 1)
    workload = team.workload(first(1))
    [pods] = workload["spec"]["podSets"]
    assert pods["count"] == 2, "all pods of the gang have one role"
    assert conditions(workload)["Admitted"] == ("True", "Admitted")
    second = team.create("second")
    status = team.until("second", lambda s: "quota" in (s.get("message") or ""), "Kueue's message")
    assert status["phase"] == "Pending"
    assert status["message"] == (
        f"attempt 1: waiting for Kueue to admit the workload {second(1)} from queue team: couldn't assign flavors to "
        f"pod set {pods['name']}: insufficient unused quota for nvidia.com/gpu in flavor gpus, 2 more needed"
    )
    assert team.places("second") == [None, None]
    team.delete("first")
    assert team.phase("second", "Succeeded")["restarts"] == 0
    wait(lambda: conditions(team.workload(second(1))).get("Finished") == ("True", "Succeeded"), "Kueue to finish")
    wait(lambda: not any("finalizers" in pod["metadata"] for pod in team.pods("second")), "Kueue to let the pods go")


def test_a_preempted_gang_is_queued_again_and_resumes_from_its_checkpoint(team):
    team = team(gpus=2)
    low = team.create("low", steps=150, priorityClass="low")
    team.step("low", 10)
    team.create("high", steps=100_000, priorityClass="high")
    status = team.until("low", lambda s: s["attempt"] == 2, "the preemption")
    [record] = status["restartHistory"]
    assert (record["reason"], record["counted"]) == ("Evicted", False)
    assert "Preempted to accommodate a workload" in condition(status, "Running")["message"]
    team.step("high", 1)
    waits = team.until("low", lambda s: "Kueue" in (s.get("message") or ""), "the second attempt in the queue")
    assert (waits["phase"], team.places("low", 2)) == ("Pending", [None, None])
    assert low(2) in waits["message"]
    team.delete("high")
    done = team.phase("low", "Succeeded")
    assert (done["attempt"], done["restarts"]) == (2, 1)
    assert team.steps("low", 2)[0] == team.steps("low", 1)[-1] + 1, "the pods saved their step when Kueue deleted them"


def test_a_gang_is_placed_within_one_rack(team):
    team = team(gpus=100)
    team.create("one", nodes=1, gpus=2, steps=100_000)
    [taken] = team.placed("one", 1)
    here, there = sorted(RACKS.values(), key=lambda rack: taken not in rack)
    team.create("gang", nodes=4, steps=100_000, topologyKey=RACK)
    first, *others = places = team.placed("gang", 4)
    assert set(places) == set(there), "only this rack has room for four pods"
    assert places == [first, first, others[-1], others[-1]], "neighbours in the mesh share a node"
    waits = team.create("pair", gpus=2, topologyKey=RACK)
    status = team.until("pair", lambda s: "topology" in (s.get("message") or ""), "Kueue's message")
    assert waits(1) in status["message"]
    assert team.places("pair") == [None, None]
    team.delete("one")
    assert set(team.placed("pair", 2)) == set(here)


def test_a_failed_gang_releases_its_quota_and_keeps_its_failed_pod(team):
    team = team(gpus=2)
    first = team.create("x", fake="crash:1:7", restarts=1)
    assert team.phase("x", "Succeeded")["attempt"] == 2
    assert conditions(team.workload(first(1)))["Finished"][0] == "True"
    assert "x-1-0" in [pod["metadata"]["name"] for pod in team.pods("x", 1)], "for kubectl logs"


def test_a_gang_suspended_in_the_queue_leaves_the_queue(team, control_plane):
    """Otherwise Kueue would admit it and wait for other pods."""
    team = team(gpus=2)
    team.create("running", steps=100_000)
    team.step("running", 1)
    waits = team.create("waiting", steps=100_000)
    team.until("waiting", lambda s: "quota" in (s.get("message") or ""), "Kueue's message")
    team.suspend("waiting", True)
    wait(lambda: team.admin.find("workloads", waits(1), team.namespace) is None, "the Workload to be gone")
    wait(lambda: not team.pods("waiting"), "the pods to be gone")
    user = f"system:serviceaccount:{ACCOUNT.namespace}:{ACCOUNT.name}"
    decisions = {
        (event["verb"], event["annotations"]["authorization.k8s.io/decision"])
        for event in control_plane.requests(user)
        if event.get("objectRef", {}).get("resource") == "workloads"
    }
    assert decisions == {("get", "allow"), ("delete", "allow")}, "test_permissions.py cannot see these in use"
    assert team.status("waiting")["phase"] == "Suspended"
    team.suspend("waiting", False)
    team.until("waiting", lambda s: waits(2) in s["message"], "the second attempt in the queue")
    team.delete("running")
    team.step("waiting", 1)


def test_a_gang_on_a_lost_node_releases_its_quota(kubelet, team, admin):
    """Its pods never end, so Kueue would keep the quota, which the next attempt needs."""
    team = team(gpus=4)
    doomed = kubelet("doomed", gpus=4, programs=PROGRAMS)
    in_rack(admin, "rack-3", "doomed")
    first = team.create("x", nodes=1, gpus=4, steps=100_000)
    assert team.placed("x", 1) == ["doomed"], "no other node has so many GPUs"
    team.step("x", 1)
    doomed.kill()
    admin.delete("nodes", "doomed")
    status = team.until("x", lambda s: s["attempt"] == 2 and "Kueue" in s["message"], "the second attempt in the queue")
    assert [record["reason"] for record in status["restartHistory"]] == ["NodeLost"]
    wait(lambda: admin.find("workloads", first(1), team.namespace) is None, "the first Workload to be gone")
    kubelet("spare", gpus=4, programs=PROGRAMS)
    in_rack(admin, "rack-3", "spare")
    team.until("x", lambda s: s["phase"] == "Running", "the second attempt")
