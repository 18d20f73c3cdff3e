"""The operator as a process on a real API server, with exactly the permissions of `hftitan rbac`.

The pods run a fake trainer that follows the wire contract without torch. test_e2e_trainer.py runs the real trainer.
"""

import json
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest
import yaml
from kubectl import ApiError, wait
from kubelets import KubeletProcess
from paths import FAKE_TRAINER

from hftitan_operator.core.rendering import access

pytestmark = pytest.mark.oldest

STEP = 0.05


@pytest.fixture(scope="module")
def nodes(control_plane, tmp_path_factory):
    """Two nodes whose pods run the fake trainer. A job sets its faults in the environment variable FAKE."""
    process = KubeletProcess(
        control_plane,
        "e2e-a,e2e-b",
        tmp_path_factory.mktemp("nodes"),
        programs={"hftitan-agent": (sys.executable, str(FAKE_TRAINER))},
        environ={"FAKE_STEP": str(STEP)},
    )
    yield process
    process.close()


class Job:
    """One job of a test, as a user sees it."""

    def __init__(self, admin, namespace, folder):
        self.admin, self.namespace, self.folder = admin, namespace, folder

    def create(self, fake="", **spec):
        body = {
            "model": {"name": "org/model"},
            "dataset": {"name": "org/data"},
            "mesh": {"nodes": 2, "device": "cpu"},
            "training": {"steps": 30, "seqLen": 64},
            "checkpoint": {"volume": "claim", "interval": 5},
            "pod": {"env": [{"name": "FAKE", "value": fake}]},
        }
        for section, values in spec.items():
            body[section] = {**body.get(section, {}), **values}
        document = {
            "apiVersion": "hftitan.io/v1alpha1",
            "kind": "HFTitanJob",
            "metadata": {"name": "x", "namespace": self.namespace},
            "spec": body,
        }
        self.admin.create(document)
        return self

    def get(self):
        return self.admin.get("hftitanjobs", "x", self.namespace)

    @property
    def status(self):
        return self.get().get("status", {})

    def patch(self, **run_policy):
        self.admin.patch("hftitanjobs", "x", {"spec": {"runPolicy": run_policy}}, self.namespace)

    def phase(self, *phases, timeout=30.0):
        """Wait for one of these phases; return the status."""
        return self.until(lambda s: s.get("phase") in phases, f"phase {' or '.join(phases)}", timeout)

    def until(self, condition, what, timeout=30.0):
        found = {}

        def there():
            found.update(status=self.status)
            return condition(found["status"])

        try:
            wait(there, what, timeout)
        except AssertionError as error:
            raise AssertionError(f"{error}: {json.dumps(found['status'], indent=1)}") from None
        return found["status"]

    def pods(self, attempt=None):
        selector = "hftitan.io/job=x" + (f",hftitan.io/attempt={attempt}" if attempt else "")
        return self.admin.list("pods", self.namespace, labels=selector)

    def wait_collected(self):
        """Wait until every object that the job owned is deleted."""
        for resource in ("pods", "services", "configmaps"):
            wait(
                lambda resource=resource: not self.admin.list(resource, self.namespace, labels="hftitan.io/job=x"),
                f"the garbage collection of {resource}",
            )

    def events(self):
        found = self.admin.list("events", self.namespace)
        mine = [event for event in found if event["involvedObject"]["kind"] == "HFTitanJob"]
        return [event["reason"] for event in sorted(mine, key=lambda e: int(e["metadata"]["resourceVersion"]))]

    def condition(self, kind):
        return next(c for c in self.status["conditions"] if c["type"] == kind)

    def steps(self, attempt):
        """Return the steps that an attempt wrote to metrics.jsonl."""
        lines = map(json.loads, (self.folder / "metrics.jsonl").read_text().splitlines())
        return [line["step"] for line in lines if line["attempt"] == attempt]


@pytest.fixture
def job(admin, namespace, nodes, operator):
    admin.make_claim("claim", namespace)
    return Job(admin, namespace, nodes.workdir / "claims" / namespace / "claim" / "x")


def test_successful_job_has_progress_conditions_and_events(job, admin):
    job.create(training={"steps": 120})
    running = job.until(lambda s: s.get("progress", {}).get("step", 0) > 0, "progress in the status")
    assert running["phase"] == "Running"
    assert running["progress"]["steps"] == 120
    assert running["progress"]["loss"] > 0
    assert running["pods"] == {"active": 2, "ready": 2, "succeeded": 0, "failed": 0}
    status = job.phase("Succeeded")
    assert (status["attempt"], status["restarts"], status["mesh"], status["worldSize"]) == (1, 0, "2x1: dp2", 2)
    assert status["progress"]["step"] == 120
    assert status["checkpoint"]["step"] == 120
    assert status["exportPath"]
    values = {c["type"]: c["status"] for c in status["conditions"]}
    assert values == {
        "Accepted": "True",
        "PodsCreated": "True",
        "Running": "False",
        "Suspended": "False",
        "Succeeded": "True",
        "Failed": "False",
    }
    assert {c["observedGeneration"] for c in status["conditions"]} == {1}
    wait(lambda: "Succeeded" in job.events(), "the last event")
    events = job.events()
    assert [e for e in events if e != "CheckpointSaved"] == [
        "Accepted",
        "AttemptCreated",
        "PodsRunning",
        "Training",
        "Succeeded",
    ]
    assert events.count("CheckpointSaved") <= 2, "at most one in ten minutes"
    assert job.get()["metadata"].get("finalizers") is None
    assert set(job.get()["metadata"].get("annotations") or {}) == set()


def test_kubectl_get_shows_the_columns(job, admin):
    job.create(training={"steps": 100_000})
    job.until(lambda s: s.get("progress", {}).get("tokensPerSecond"), "tokens per second")
    table = admin.request(
        "GET",
        f"/apis/hftitan.io/v1alpha1/namespaces/{job.namespace}/hftitanjobs",
        accept="application/json;as=Table;v=v1;g=meta.k8s.io",
    )
    names = [column["name"] for column in table["columnDefinitions"]]
    row = dict(zip(names, table["rows"][0]["cells"], strict=True))
    assert names == ["Name", "PHASE", "MODEL", "MESH", "STEP", "LOSS", "TOK/S", "RESTARTS", "AGE"]
    assert (row["PHASE"], row["MODEL"], row["MESH"], row["RESTARTS"]) == ("Running", "org/model", "2x1: dp2", 0)
    assert row["STEP"] > 0
    assert row["LOSS"] > 0
    assert row["TOK/S"] > 0


def test_crashed_pod_starts_a_new_attempt_from_the_newest_checkpoint(job):
    job.create(fake="crash:1:12")
    status = job.phase("Succeeded")
    assert (status["attempt"], status["restarts"]) == (2, 1)
    assert [(r["attempt"], r["reason"], r["counted"]) for r in status["restartHistory"]] == [
        (1, "ExitedWithoutReport", True)
    ]
    assert {pod["metadata"]["labels"]["hftitan.io/attempt"] for pod in job.pods()} == {"1", "2"}, "logs are kept"
    assert "ExitedWithoutReport" in job.events()
    assert job.steps(2)[0] == 11


def test_user_error_fails_the_job_without_restart(job):
    job.create(fake="user:1:3")
    status = job.phase("Failed")
    assert (status["attempt"], status["restarts"]) == (1, 0)
    assert "no such dataset" in status["message"]
    assert job.condition("Failed")["reason"] == "UserError"


def test_impossible_mesh_is_rejected_or_fails_the_job_without_pods(job, control_plane):
    mesh = {"tp": 3, "gpusPerNode": 4}
    if control_plane.checks_rules:
        with pytest.raises(ApiError, match="nodes x gpusPerNode must equal"):
            job.create(mesh=mesh)
        return
    job.create(mesh=mesh)
    status = job.phase("Failed")
    assert "spec.mesh" in status["message"]
    assert job.condition("Accepted")["status"] == "False"
    assert job.pods() == []


def test_hang_timeout_restarts_the_job(job):
    job.create(fake="hang:1:7", runPolicy={"hangTimeoutSeconds": 3, "startupTimeoutSeconds": 60})
    status = job.phase("Succeeded", timeout=60)
    assert [r["reason"] for r in status["restartHistory"]] == ["Hung"]
    assert status["attempt"] == 2


def test_suspend_saves_a_checkpoint_and_resume_continues_from_it(job):
    job.create(training={"steps": 100_000})
    job.until(lambda s: s.get("progress", {}).get("step", 0) >= 1, "a step")
    job.patch(suspend=True)
    job.until(lambda s: s["phase"] == "Suspended" and not job.pods(), "its pods to go")
    saved = max(int(path.name.removeprefix("step-")) for path in (job.folder / "checkpoint").glob("step-*"))
    before = job.status
    assert "activeSince" not in before
    assert job.condition("Suspended")["status"] == "True"
    time.sleep(1.2)
    assert job.status["activeSeconds"] == before["activeSeconds"], "active time does not grow while suspended"
    job.patch(suspend=False)
    status = job.until(lambda s: s["phase"] == "Running", "phase Running")
    assert (status["attempt"], status["restarts"], status.get("restartHistory") or []) == (2, 0, [])
    assert job.condition("Suspended")["status"] == "False"
    wait(lambda: job.steps(2), "a step of the new attempt")
    assert job.steps(2)[0] == saved + 1


def test_active_deadline_does_not_count_suspended_time(job):
    job.create(training={"steps": 100_000}, runPolicy={"activeDeadlineSeconds": 4, "suspend": True})
    job.phase("Suspended")
    assert job.pods() == []
    time.sleep(4.5)
    assert job.status["phase"] == "Suspended"
    job.patch(suspend=False)
    job.until(lambda s: s["phase"] in ("Starting", "Running"), "its pods to run")
    status = job.phase("Failed")
    assert job.condition("Failed")["reason"] == "DeadlineExceeded"
    wait(lambda: not any(p["status"]["phase"] == "Running" for p in job.pods()), "its pods to end")
    assert status["activeSeconds"] < 8


def test_finished_job_is_deleted_after_its_ttl_with_its_objects(job, admin):
    job.create(training={"steps": 2}, runPolicy={"ttlSecondsAfterFinished": 1})
    admin.wait_gone("hftitanjobs", "x", job.namespace)
    job.wait_collected()


def test_objects_of_a_deleted_job_are_garbage_collected(job, admin):
    job.create(training={"steps": 100_000})
    job.phase("Running")
    admin.delete("hftitanjobs", "x", job.namespace)
    job.wait_collected()


def restarted_without_count(job):
    """Wait for the next attempt, check that the restart does not count against maxRestarts, and return its reason."""
    status = job.until(lambda s: s["attempt"] == 2 and s["phase"] == "Running", "the next attempt")
    assert [r["counted"] for r in status["restartHistory"]] == [False]
    return status["restartHistory"][0]["reason"]


def test_deleted_pod_does_not_count_against_max_restarts(job, admin):
    job.create(training={"steps": 100_000})
    job.phase("Running")
    admin.delete("pods", "x-1-1", job.namespace)
    # The pod reports Preempted when it ends; if it is gone before the operator sees that, the reason is PodDeleted.
    assert restarted_without_count(job) in ("PodDeleted", "Preempted")


def test_evicted_pod_does_not_count_against_max_restarts(job, admin):
    job.create(training={"steps": 100_000})
    job.phase("Running")
    eviction = {
        "apiVersion": "policy/v1beta1",
        "kind": "Eviction",
        "metadata": {"name": "x-1-0", "namespace": job.namespace},
    }
    admin.request("POST", f"/api/v1/namespaces/{job.namespace}/pods/x-1-0/eviction", eviction)
    assert restarted_without_count(job) in ("PodDeleted", "Preempted", "Evicted")


def test_changed_mesh_is_rejected_or_fails_the_job(job, control_plane):
    job.create(training={"steps": 100_000})
    job.phase("Running")
    changes = {"spec": {"mesh": {"nodes": 3}}}
    if control_plane.checks_rules:
        with pytest.raises(ApiError, match="mesh cannot change while the job exists"):
            job.admin.patch("hftitanjobs", "x", changes, job.namespace)
        return
    job.admin.patch("hftitanjobs", "x", changes, job.namespace)
    status = job.phase("Failed")
    assert job.condition("Failed")["reason"] == "MeshChanged"
    assert "a job's mesh is immutable" in status["message"]


def test_job_waits_for_a_service_name_in_use(job, admin):
    spec = {"clusterIP": "None", "ports": [{"port": 80}]}
    admin.create(
        {
            "apiVersion": "v1",
            "kind": "Service",
            "metadata": {"name": "x", "namespace": job.namespace},
            "spec": spec,
        }
    )
    job.create(training={"steps": 2})
    job.until(lambda s: "a Service named x already exists" in s.get("message", ""), "the message")
    assert job.condition("PodsCreated")["reason"] == "Denied"
    assert job.pods() == []
    admin.delete("services", "x", job.namespace)
    job.phase("Succeeded")
    assert job.events().count("Denied") == 1


def test_job_waits_for_quota(job, admin):
    quota = {
        "apiVersion": "v1",
        "kind": "ResourceQuota",
        "metadata": {"name": "none", "namespace": job.namespace},
        "spec": {"hard": {"pods": "0"}},
    }
    admin.create(quota)
    admin.wait_for("resourcequotas", "none", lambda q: q.get("status", {}).get("hard"), job.namespace)
    job.create(training={"steps": 2})
    status = job.until(lambda s: "exceeded quota" in s.get("message", ""), "the message")
    assert status["phase"] == "Pending"
    admin.delete("resourcequotas", "none", job.namespace)
    job.phase("Succeeded")


def test_job_restarts_on_another_node_after_a_node_is_lost(control_plane, job, admin, tmp_path, nodes):
    """The kubelet of one node is killed; another node has room."""
    doomed = KubeletProcess(
        control_plane,
        "e2e-doomed",
        nodes.workdir,
        programs={"hftitan-agent": (sys.executable, str(FAKE_TRAINER))},
        environ={"FAKE_STEP": str(STEP)},
    )
    try:
        prefer = {
            "nodeAffinity": {
                "preferredDuringSchedulingIgnoredDuringExecution": [
                    {
                        "weight": 100,
                        "preference": {
                            "matchExpressions": [
                                {"key": "kubernetes.io/hostname", "operator": "In", "values": ["e2e-doomed"]}
                            ]
                        },
                    }
                ]
            }
        }
        unreachable = {
            "key": "node.kubernetes.io/unreachable",
            "operator": "Exists",
            "effect": "NoExecute",
            "tolerationSeconds": 1,
        }
        job.create(training={"steps": 150}, pod={"affinity": prefer, "tolerations": [unreachable]})
        job.phase("Running")
        assert {pod["spec"]["nodeName"] for pod in job.pods(1)} == {"e2e-doomed"}
        doomed.kill()
        job.until(lambda s: s["attempt"] == 2, "a new attempt", 40)
        assert [(r["reason"], r["counted"]) for r in job.status["restartHistory"]] == [("NodeLost", False)]
        job.phase("Succeeded", timeout=60)
        assert "e2e-doomed" not in {pod["spec"]["nodeName"] for pod in job.pods(2)}
    finally:
        doomed.close()


def test_job_restarts_after_its_node_is_deleted(control_plane, job, admin, nodes):
    doomed = KubeletProcess(
        control_plane,
        "e2e-doomed",
        nodes.workdir,
        programs={"hftitan-agent": (sys.executable, str(FAKE_TRAINER))},
        environ={"FAKE_STEP": str(STEP)},
    )
    try:
        job.create(training={"steps": 100_000}, pod={"nodeSelector": {"kubernetes.io/hostname": "e2e-doomed"}})
        job.phase("Running")
        time.sleep(0.1)
        doomed.kill()
        admin.delete("nodes", "e2e-doomed")
        job.until(lambda s: s["attempt"] == 2, "a new attempt", 60)
        assert job.status["restartHistory"][0]["reason"] in ("NodeLost", "PodDeleted", "Evicted")
        assert job.status["restartHistory"][0]["counted"] is False
    finally:
        doomed.close()


def test_operator_writes_no_secret_to_objects_or_log(job, admin, operator):
    secret = "hf_verysecretverysecretverysecret"
    admin.create(
        {
            "apiVersion": "v1",
            "kind": "Secret",
            "metadata": {"name": "hub", "namespace": job.namespace},
            "stringData": {"token": secret},
        }
    )
    job.create(training={"steps": 3}, pod={"hfTokenSecret": {"name": "hub"}})
    job.phase("Succeeded")
    environment = json.loads((job.folder / "env-1-0.json").read_text())
    assert environment["HF_TOKEN"] == secret, "the process must get the secret"
    written = [job.get(), *job.pods(), *admin.list("events", job.namespace), *admin.list("configmaps", job.namespace)]
    assert secret not in json.dumps(written)
    assert secret not in operator.log.read_text()


def test_operator_metrics_count_the_restarts_of_a_job(job, operator):
    job.create(fake="crash:1:2", training={"steps": 4})
    job.phase("Succeeded")
    with urllib.request.urlopen(f"http://127.0.0.1:{operator.port}/metrics") as answer:
        text = answer.read().decode()
    assert f'hftitan_job_restarts_total{{job_name="x",job_namespace="{job.namespace}"}} 1.0' in text
    assert 'hftitan_operator_restarts_total{reason="ExitedWithoutReport"}' in text
    assert "hftitan_operator_leader 1.0" in text
    assert "is forbidden: User" not in operator.log.read_text(), "a permission is missing"


def test_hftitan_rbac_prints_the_permissions_of_these_tests():
    """The fixture `operator` has exactly these permissions."""
    done = subprocess.run([Path(sys.executable).with_name("hftitan"), "rbac"], stdout=subprocess.PIPE, check=True)
    assert list(yaml.safe_load_all(done.stdout)) == list(access.cluster_wide(access.Account()))


def test_restarted_operator_keeps_the_pods(job, operator):
    """After SIGTERM to the operator the pods keep running, and a new operator process manages the same pods."""
    job.create(training={"steps": 100_000})
    job.phase("Running")
    before = {pod["metadata"]["uid"] for pod in job.pods()}
    operator.terminate()
    assert operator.ended(5) == 0
    assert {pod["metadata"]["uid"] for pod in job.pods()} == before
    operator.start()
    operator.wait_ready()
    job.patch(maxRestarts=5)
    job.until(lambda s: s["observedGeneration"] == job.get()["metadata"]["generation"], "the new operator")
    assert {pod["metadata"]["uid"] for pod in job.pods()} == before
