"""Fixtures for tests on real nodes: one cluster with the chart installed, shared by all tests of this folder."""

import json
import os
import signal
import subprocess
import uuid

import pytest
import real_cluster
from kubectl import wait
from paths import ROOT
from tiny import make_model, make_text

from hftitan_api import yamltext

EXAMPLE = ROOT / "examples" / "claims-cpu.yaml"
ENDLESS = 1_000_000
SMALL = {"requests": {"cpu": "100m", "memory": "1Gi"}}
"""The default is a core per rank. With this, all pods of a job fit on one node."""
SECONDS = 120.0
"""Time limit for a start of the trainer, on a busy machine."""


@pytest.fixture(scope="session")
def cluster(tmp_path_factory, say):
    if obstacle := real_cluster.obstacle():
        pytest.skip(obstacle)
    with real_cluster.built(tmp_path_factory.mktemp("nodes")) as cluster:
        cluster.install_chart()
        versions = {node["status"]["nodeInfo"]["containerRuntimeVersion"] for node in cluster.admin.list("nodes")}
        say(
            f"Kubernetes {'.'.join(map(str, cluster.plane.version))}, {', '.join(versions)}: {', '.join(cluster.nodes)}"
        )
        yield cluster


@pytest.fixture(scope="session")
def inputs(tmp_path_factory):
    """A folder with a tiny model and a text that every user can read."""
    folder = tmp_path_factory.mktemp("inputs")
    make_model(folder / "model")
    make_text(folder / "text.jsonl")
    subprocess.run(["chmod", "-R", "a+rX", folder], check=True)
    return folder


@pytest.fixture
def shell(cluster, namespace):
    """Function: run a command line with kubectl, in a namespace of the test."""
    environ = {
        "PATH": f"{cluster.assets}:/usr/bin:/bin", "HOME": str(cluster.folder),
        "KUBECONFIG": str(cluster.plane.kubeconfig("admin")),
    }  # fmt: skip

    def run(line):
        words = ["bash", "-euo", "pipefail", "-c", line.replace("kubectl ", f"kubectl -n {namespace} ")]
        done = subprocess.run(words, cwd=ROOT, env=environ, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, f"{line}: {done.stdout}{done.stderr}"
        return done.stdout

    return run


@pytest.fixture
def namespace(cluster, inputs, tmp_path):
    """A new namespace with volumes for the claims of the examples."""
    name = f"test-{uuid.uuid4().hex[:8]}"
    cluster.admin.make_namespace(name)
    cluster.make_volume(f"{name}-inputs", inputs, (name, "inputs"))
    cluster.make_volume(f"{name}-results", tmp_path / "results", (name, "results"))
    yield name
    cluster.admin.delete("namespaces", name)


@pytest.fixture
def job(cluster, namespace, shell, tmp_path):
    shell("kubectl apply -f examples/cluster/claims.yaml")
    job = Job(cluster, namespace, tmp_path / "results" / "claims")
    yield job
    job.delete()
    cluster.heal()


class Job:
    """examples/claims-cpu.yaml with changed fields, in the namespace of a test."""

    def __init__(self, cluster, namespace, folder):
        self.cluster, self.admin, self.namespace, self.folder = cluster, cluster.admin, namespace, folder

    def create(self, **changes):
        document = yamltext.parse(EXAMPLE.read_text()).value
        document["metadata"]["namespace"] = self.namespace
        document["spec"]["pod"]["resources"] = SMALL
        for section, values in changes.items():
            document["spec"][section] = {**document["spec"].get(section, {}), **values}
        self.admin.create(document)
        return self

    def train(self, **changes):
        """Create a job that never ends, and wait until it has saved a checkpoint."""
        self.create(**{"training": {"steps": ENDLESS, "seqLen": 128}, **changes})
        return self.until(lambda s: s.get("checkpoint", {}).get("step", 0) >= 10, "a checkpoint")

    @property
    def status(self):
        return self.admin.get("hftitanjobs", "claims", self.namespace).get("status", {})

    def until(self, condition, what, timeout=SECONDS):
        found = {}

        def holds():
            found["status"] = self.status
            return condition(found["status"])

        try:
            wait(holds, what, timeout)
        except AssertionError as error:
            pods = [pod.get("status") for pod in self.pods()]
            raise AssertionError(f"{error}: {json.dumps(found, indent=1)}\n{json.dumps(pods)}") from None
        return found["status"]

    def restarted(self, attempt=2):
        """Wait until the next attempt trains; return the record of the last restart and the status."""
        step = lambda s: s.get("progress", {}).get("step", 0)  # noqa: E731
        status = self.until(lambda s: s.get("attempt") == attempt and s["phase"] == "Running" and step(s) > 0, "a step")
        return status["restartHistory"][-1], status

    def messages(self, reason):
        """Return the messages of the job's events with a reason."""
        events = self.admin.list("events", self.namespace)
        return [event["message"] for event in events if event["reason"] == reason]

    def pods(self, attempt=None):
        selector = "hftitan.io/job=claims" + (f",hftitan.io/attempt={attempt}" if attempt else "")
        return sorted(self.admin.list("pods", self.namespace, labels=selector), key=lambda pod: pod["metadata"]["name"])

    def node_of(self, pod):
        return self.cluster.nodes[pod["spec"]["nodeName"]]

    def kill(self, pod):
        """Kill the processes of a pod's trainer container, as the kernel would."""
        for pid in self.node_of(pod).processes_of(pod):
            with open(f"/proc/{pid}/cmdline", "rb") as line:
                if b"hftitan" in line.read():
                    os.kill(pid, signal.SIGKILL)

    def step(self):
        return self.status.get("progress", {}).get("step", 0)

    def goes_on(self):
        """Wait until the status shows a later step."""
        before = self.step()
        return self.until(lambda s: s["progress"]["step"] > before, "a later step")["progress"]["step"]

    def delete(self):
        self.admin.delete_quietly("hftitanjobs", "claims", self.namespace)
        wait(lambda: not self.pods(), "the pods to be removed", SECONDS)
