"""`kubectl apply -f examples/claims-cpu.yaml` with the real trainer, in pods bound by a real scheduler.

Starting torch takes most of the time, so there are few runs.
"""

import json
import os
import signal
import time

import pytest
from kubectl import wait
from kubelets import KubeletProcess
from paths import ROOT
from tiny import make_model, make_text

from hftitan_api import yamltext

EXAMPLE = ROOT / "examples" / "claims-cpu.yaml"


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    """The folder behind the claim `inputs`: a tiny model and a text."""
    folder = tmp_path_factory.mktemp("inputs")
    make_model(folder / "model")
    make_text(folder / "text.jsonl")
    return folder


@pytest.fixture(scope="module")
def node(control_plane, tmp_path_factory):
    process = KubeletProcess(
        control_plane, "trainer-node", tmp_path_factory.mktemp("node"), environ={"HF_HUB_OFFLINE": "1"}
    )
    yield process
    process.close()


class Run:
    """The example, applied in a new namespace."""

    def __init__(self, admin, node, inputs, namespace, **checkpoint):
        self.admin, self.namespace = admin, namespace
        for claim in ("inputs", "results"):
            admin.make_claim(claim, namespace)
        claims = node.workdir / "claims" / namespace
        claims.mkdir(parents=True)
        (claims / "inputs").symlink_to(inputs)
        self.folder = claims / "results" / "claims"
        document = yamltext.parse(EXAMPLE.read_text()).value  # 1e-3 is a number, as it is to kubectl
        document["metadata"]["namespace"] = namespace  # kubectl apply -n
        document["spec"]["checkpoint"] |= checkpoint
        admin.create(document)

    @property
    def status(self):
        return self.admin.get("hftitanjobs", "claims", self.namespace).get("status", {})

    def until(self, condition, what, timeout=180.0):
        try:
            wait(lambda: condition(self.status), what, timeout)
        except AssertionError as error:
            logs = {path.name: path.read_text()[-1500:] for path in self.folder.rglob("*.log")}
            raise AssertionError(f"{error}: {json.dumps(self.status, indent=1)} {logs}") from None
        return self.status

    def succeeded(self):
        return self.until(lambda s: s.get("phase") in ("Succeeded", "Failed"), "the end")

    def losses(self):
        """Return step -> loss. If a step ran twice, the later loss counts."""
        lines = map(json.loads, (self.folder / "metrics.jsonl").read_text().splitlines())
        return {line["step"]: line["loss"] for line in lines if line["kind"] == "step"}

    def agent(self, pod):
        """Return the process id of a pod's torchrun."""
        return int((self.folder / ".pods" / pod / "pid").read_text())


@pytest.fixture(scope="module")
def run(control_plane, operator, node, inputs):
    """Function: apply the example in a namespace of the given name, with changed fields of spec.checkpoint."""
    made = []

    def start(name, **checkpoint):
        namespace = control_plane.admin.make_namespace(f"{name}-{os.getpid()}")
        made.append(namespace)
        return Run(control_plane.admin, node, inputs, namespace, **checkpoint)

    yield start
    for namespace in made:
        control_plane.admin.delete("namespaces", namespace)


@pytest.fixture(scope="module")
def whole(run):
    """The uninterrupted run; `seen` has its statuses over time."""
    job = run("whole")
    seen = []

    def ended(status):
        seen.append(status)
        return status.get("phase") in ("Succeeded", "Failed")

    job.until(ended, "the end")
    job.seen = seen
    return job


def test_job_trains_and_reports_its_progress(whole):
    status = whole.status
    assert status["phase"] == "Succeeded", status["message"]
    assert (status["attempt"], status["restarts"]) == (1, 0)
    assert status["progress"]["step"] == status["progress"]["steps"] == 30
    assert status["checkpoint"]["step"] == 30
    phases = list(dict.fromkeys(s["phase"] for s in whole.seen if s))
    assert [p for p in phases if p != "Running"] == ["Pending", "Starting", "Succeeded"]
    losses = whole.losses()
    assert sorted(losses) == list(range(1, 31))
    assert losses[30] < losses[1]
    assert status["progress"]["loss"] == pytest.approx(losses[30], rel=1e-4), "of the last step, not of the last poll"


def test_exported_model_is_on_the_claim(whole):
    assert whole.status["exportPath"].endswith("/export")
    names = {path.name for path in (whole.folder / "export").iterdir()}
    assert {"config.json", "model.safetensors", "tokenizer.json"} <= names


def test_job_with_a_killed_pod_resumes_with_the_same_losses(run, whole):
    job = run("killed")
    job.until(lambda s: (job.folder / "metrics.jsonl").exists() and max(job.losses(), default=0) >= 13, "step 13")
    os.kill(job.agent("claims-1-1"), signal.SIGKILL)
    status = job.succeeded()
    assert status["phase"] == "Succeeded", status["message"]
    assert status["attempt"] == 2
    [record] = status["restartHistory"]
    assert (record["reason"], record["counted"]) == ("Killed", True)
    assert job.losses() == pytest.approx(whole.losses(), rel=1e-6)


def test_suspended_job_resumes_with_the_same_losses(run, whole):
    job = run("suspended", interval=1000)  # so that only the suspension saves a checkpoint
    job.until(lambda s: (job.folder / "metrics.jsonl").exists() and max(job.losses(), default=0) >= 3, "step 3")
    job.admin.patch("hftitanjobs", "claims", {"spec": {"runPolicy": {"suspend": True}}}, job.namespace)
    pods = "hftitan.io/job=claims"
    job.until(lambda s: not job.admin.list("pods", job.namespace, labels=pods), "the pods to save a checkpoint and end")
    saved = job.status["checkpoint"]["step"]
    assert saved == max(job.losses())
    assert job.status["message"] == f"suspended; will resume from step {saved}"
    time.sleep(0.2)
    job.admin.patch("hftitanjobs", "claims", {"spec": {"runPolicy": {"suspend": False}}}, job.namespace)
    status = job.succeeded()
    assert status["phase"] == "Succeeded", status["message"]
    assert status.get("restartHistory") in (None, [])
    assert job.losses() == pytest.approx(whole.losses(), rel=1e-6)
