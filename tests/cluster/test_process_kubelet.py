"""The process kubelet runs pods bound by the real scheduler and reports their ends as a kubelet does."""

import sys
from pathlib import Path

from kubectl import wait
from kubelets import is_ready
from paths import FAKE_TRAINER
from processes import alive

from hftitan_api.mesh import plan
from hftitan_api.models import HFTitanJob
from hftitan_api.wire import ExitReport
from hftitan_operator.core.rendering.render import render

PYTHON = sys.executable
TRAP = """
import os, signal, sys, time
def stop(*_):
    open(os.environ["LOG"], "w").write("saved at SIGTERM")
    sys.exit(3)
signal.signal(signal.SIGTERM, stop)
open(os.environ["MARK"], "w").write(str(os.getpid()))
time.sleep(600)
"""


def pod(namespace, *command, name="one", env=None, gpus=1, **spec):
    container = {
        "name": "main",
        "image": "none",
        "command": list(command),
        "env": [{"name": key, "value": str(value)} for key, value in (env or {}).items()],
        "resources": {"limits": {"nvidia.com/gpu": str(gpus)}},
    }
    base = {"restartPolicy": "Never", "automountServiceAccountToken": False, "containers": [container]}
    metadata = {"name": name, "namespace": namespace}
    return {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": {**base, **spec}}


def terminated(found):
    return found["status"]["containerStatuses"][0]["state"]["terminated"]


def test_bound_pod_runs_and_its_termination_message_is_reported(admin, namespace, kubelet):
    kubelet()
    command = ("sh", "-c", 'printf "on $POD_IP $CUDA_VISIBLE_DEVICES" >$LOG')
    manifest = pod(namespace, *command, gpus=2, env={"LOG": "/dev/termination-log"})
    field = {"fieldRef": {"fieldPath": "status.podIP"}}
    manifest["spec"]["containers"][0]["env"].append({"name": "POD_IP", "valueFrom": field})
    admin.create(manifest)
    found = admin.wait_for("pods", "one", lambda p: p["status"]["phase"] == "Succeeded", namespace)
    assert found["spec"]["nodeName"] == "node-a"
    end = terminated(found)
    assert (end["exitCode"], end["reason"]) == (0, "Completed")
    assert end["message"] == f"on {found['status']['podIP']} 0,1"


def test_exit_code_of_a_failed_pod_is_reported(admin, namespace, kubelet):
    kubelet()
    admin.create(pod(namespace, "sh", "-c", "exit 7"))
    found = admin.wait_for("pods", "one", lambda p: p["status"]["phase"] == "Failed", namespace)
    assert (terminated(found)["exitCode"], terminated(found)["reason"]) == (7, "Error")


def test_pod_that_needs_too_many_devices_stays_pending(admin, namespace, kubelet):
    kubelet(gpus=2)
    admin.create(pod(namespace, "sleep", "600", gpus=3))

    def unschedulable(found):
        return any(c.get("reason") == "Unschedulable" for c in found["status"].get("conditions", []))

    assert admin.wait_for("pods", "one", unschedulable, namespace)["status"]["phase"] == "Pending"


def test_deleted_pod_gets_its_grace_period(admin, namespace, kubelet, tmp_path):
    kubelet()
    env = {"LOG": "/dev/termination-log", "MARK": tmp_path / "mark"}
    manifest = pod(namespace, PYTHON, "-c", TRAP, env=env, terminationGracePeriodSeconds=20)
    manifest["metadata"]["finalizers"] = ["test.hftitan.io/look-at-the-end"]
    admin.create(manifest)
    admin.wait_for("pods", "one", is_ready, namespace)
    wait(lambda: written(tmp_path / "mark"), "the process")
    admin.delete("pods", "one", namespace)
    end = terminated(admin.wait_for("pods", "one", lambda p: p["status"]["phase"] == "Failed", namespace))
    assert (end["exitCode"], end["message"]) == (3, "saved at SIGTERM")
    assert not running(tmp_path / "mark")
    admin.patch("pods", "one", {"metadata": {"finalizers": None}}, namespace)
    admin.wait_gone("pods", "one", namespace)


def test_lost_node_is_not_ready_and_its_pods_are_evicted(admin, namespace, kubelet, tmp_path):
    kubelet("spare")  # Kubernetes evicts no pods while all nodes are lost
    lost = kubelet("doomed")
    toleration = {"key": "node.kubernetes.io/unreachable", "operator": "Exists", "effect": "NoExecute"}
    chosen = {
        "nodeSelector": {"kubernetes.io/hostname": "doomed"},
        "tolerations": [{**toleration, "tolerationSeconds": 1}],
    }
    env = {"LOG": "/dev/termination-log", "MARK": tmp_path / "mark"}
    admin.create(pod(namespace, PYTHON, "-c", TRAP, env=env, **chosen))
    wait(lambda: written(tmp_path / "mark"), "the process")
    lost.kill()
    wait(lambda: not running(tmp_path / "mark"), "the process to end with its node", 5)
    admin.wait_for("nodes", "doomed", lambda node: not is_ready(node))
    found = admin.wait_for("pods", "one", lambda p: "deletionTimestamp" in p["metadata"], namespace)
    assert found["status"]["phase"] == "Running"  # no kubelet is left to report another phase


def test_restarted_node_reports_its_pods_as_failed(admin, namespace, kubelet, tmp_path):
    first = kubelet()
    env = {"LOG": "/dev/termination-log", "MARK": tmp_path / "mark"}
    admin.create(pod(namespace, PYTHON, "-c", TRAP, env=env))
    admin.wait_for("pods", "one", is_ready, namespace)
    first.kill()
    kubelet()
    found = admin.wait_for("pods", "one", lambda p: p["status"]["phase"] == "Failed", namespace)
    assert (terminated(found)["exitCode"], terminated(found)["reason"]) == (137, "ContainerStatusUnknown")


def test_processes_of_a_partitioned_node_keep_running(admin, namespace, kubelet, tmp_path):
    kubelet("spare")
    cut = kubelet("far")
    env = {"LOG": "/dev/termination-log", "MARK": tmp_path / "mark"}
    admin.create(pod(namespace, PYTHON, "-c", TRAP, env=env, nodeSelector={"kubernetes.io/hostname": "far"}))
    wait(lambda: written(tmp_path / "mark"), "the process")
    cut.freeze()
    admin.wait_for("nodes", "far", lambda node: not is_ready(node))
    assert running(tmp_path / "mark")
    cut.thaw()
    admin.wait_for("nodes", "far", is_ready)
    admin.wait_for("pods", "one", is_ready, namespace)


def test_rendered_pods_of_a_job_succeed_on_two_nodes(admin, namespace, kubelet):
    """With the fake trainer instead of torchrun."""
    nodes = kubelet("node-a,node-b", gpus=2, programs={"hftitan-agent": [PYTHON, str(FAKE_TRAINER)]})
    created = admin.create(
        {
            "apiVersion": "hftitan.io/v1alpha1",
            "kind": "HFTitanJob",
            "metadata": {"name": "tiny", "namespace": namespace},
            "spec": {
                "model": {"name": "org/model"},
                "dataset": {"name": "org/data"},
                "mesh": {"nodes": 2, "gpusPerNode": 2},
                "training": {"steps": 5, "seqLen": 64},
                "checkpoint": {"interval": 2, "volume": admin.make_claim("shared", namespace)},
            },
        }
    )
    job = HFTitanJob.model_validate({key: created[key] for key in ("apiVersion", "kind", "metadata", "spec")})
    for manifest in render(job, plan(job.spec), 1).objects:
        admin.create(manifest)
    for index in range(2):
        name = f"tiny-1-{index}"
        found = admin.wait_for("pods", name, lambda p: p["status"]["phase"] == "Succeeded", namespace)
        assert ExitReport.model_validate_json(terminated(found)["message"]).reason == "Completed"
    pods = admin.list("pods", namespace, labels="hftitan.io/job=tiny")
    assert {found["spec"]["nodeName"] for found in pods} == {"node-a", "node-b"}
    assert len({found["status"]["podIP"] for found in pods}) == 2
    output = nodes.workdir / "claims" / namespace / "shared" / "tiny"
    assert (output / "checkpoint" / "step-5").exists()


def test_scripted_pods_end_as_the_script_says(admin, namespace, kubelet):
    script = [
        {"index": 0, "endsAfter": 0.2, "exitCode": 1, "reason": "OOMKilled", "message": "told"},
        {"readyAfter": 0.1, "stopMessage": "stopped"},
    ]
    kubelet(fake=script)
    for index in range(2):
        manifest = pod(namespace, "true", name=f"p{index}")
        manifest["metadata"]["labels"] = {"hftitan.io/node-index": str(index)}
        admin.create(manifest)
    end = terminated(admin.wait_for("pods", "p0", lambda p: p["status"]["phase"] == "Failed", namespace))
    assert (end["exitCode"], end["reason"], end["message"]) == (1, "OOMKilled", "told")
    admin.wait_for("pods", "p1", is_ready, namespace)
    admin.delete("pods", "p1", namespace)
    admin.wait_gone("pods", "p1", namespace)


def written(mark: Path) -> bool:
    return mark.exists() and bool(mark.read_text())


def running(mark: Path) -> bool:
    """Whether the process that wrote its id to `mark` is running."""
    return alive(int(mark.read_text()))
