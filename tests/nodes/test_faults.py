"""What a job that trains on real nodes does at each fault, as docs/failures.md states."""

import json
import subprocess
import time

import pytest
from kubectl import wait

LEASE = "hftitan-operator"
SYSTEM = "hftitan-system"


def test_gang_trains_over_two_nodes_to_the_end(job, shell, cluster, say):
    operators = cluster.admin.list("pods", SYSTEM)
    assert [pod["status"]["phase"] for pod in operators] == ["Running"] * 2
    shell("kubectl apply -f examples/claims-cpu.yaml")
    job.until(lambda s: s.get("phase") == "Running" and s["progress"]["step"] > 0, "progress")
    assert {pod["spec"]["nodeName"] for pod in job.pods()} == set(cluster.nodes)
    status = job.until(lambda s: s["phase"] in ("Succeeded", "Failed"), "the end")
    assert status["message"] == "finished 30 steps; the model is in claims/export of claim results"
    *_, last = map(json.loads, (job.folder / "metrics.jsonl").read_text().splitlines())
    assert status["progress"]["step"] == 30
    assert status["progress"]["loss"] == pytest.approx(last["loss"] if "loss" in last else status["progress"]["loss"])
    assert (job.folder / "export/model.safetensors").exists()
    say(f"a gang over two nodes: {status['message']}")
    say(shell("kubectl get htj"))


def test_container_is_killed(job, say):
    job.train()
    job.kill(job.pods()[1])
    record, status = job.restarted()
    assert (record["reason"], record["counted"]) == ("Killed", True)
    assert status["progress"]["step"] > 10
    say(f"container killed: {job.messages('Killed')}; attempt 2 is at step {status['progress']['step']}")


def test_pod_is_deleted(job, shell, say):
    job.train()
    shell(f"kubectl delete pod {job.pods()[1]['metadata']['name']}")
    record, status = job.restarted()
    assert (record["reason"], record["counted"]) == ("Preempted", False)
    assert status["progress"]["step"] > record["step"] >= 10
    say(f"pod deleted: {job.messages('Preempted')}; attempt 2 is at step {status['progress']['step']}")


def test_kubelet_is_away_for_a_while(job, cluster, say):
    job.train()
    node = job.node_of(job.pods()[1])
    node.kill_program("kubelet")
    cluster.wait_ready(node.name, ready=False)
    job.goes_on()
    node.start_kubelet()
    cluster.wait_ready(node.name)
    job.goes_on()
    assert (job.status["attempt"], job.status["restartHistory"]) == (1, [])
    say("kubelet away: the job went on training")


def test_node_is_lost_and_removed(job, cluster, say):
    job.train()
    node = job.node_of(job.pods()[1])
    node.lose()
    cluster.wait_ready(node.name, ready=False)
    cluster.admin.delete("nodes", node.name)  # as a cloud's controller does
    record, status = job.restarted()
    assert (record["reason"], record["counted"]) == ("NodeLost", False)
    say(f"node lost: {job.messages('NodeLost')}; attempt 2 is at step {status['progress']['step']}")


def test_node_is_drained(job, shell, say):
    job.train()
    node = job.node_of(job.pods()[1]).name
    shell(f"kubectl drain {node} --ignore-daemonsets --delete-emptydir-data --force --timeout=120s")
    record, status = job.restarted()
    assert (record["reason"], record["counted"]) == ("Evicted", False)
    assert status["progress"]["step"] > record["step"] >= 10
    say(f"node drained: {job.messages('Evicted')}; attempt 2 is at step {status['progress']['step']}")


def test_trainer_exceeds_its_memory(job, say):
    job.create(pod={"resources": {"limits": {"memory": "300Mi"}}}, runPolicy={"maxRestarts": 0})
    status = job.until(lambda s: s.get("phase") == "Failed", "the end")
    assert [record["reason"] for record in status["restartHistory"]] == ["OOMKilled"]
    say(f"out of memory: {status['message']}")


def test_image_does_not_exist(job, say):
    job.create(pod={"image": "registry.invalid/trainer:1"})
    status = job.until(lambda s: "ImagePull" in s.get("message", ""), "the message")
    assert status["phase"] == "Pending"
    assert "registry.invalid" in status["message"]
    say(f"wrong image: {status['message']}")


def test_claim_does_not_exist(job, say):
    job.create(checkpoint={"volume": "nothing"})
    status = job.until(lambda s: 'claim "nothing" not found' in s.get("message", ""), "the message")
    assert status["phase"] == "Pending"
    say(f"missing claim: {status['message']}")


def test_network_policy_cuts_progress(job, cluster, say):
    job.train()
    pod = job.pods()[0]
    [*_, process] = job.node_of(pod).processes_of(pod)
    operators = [operator["status"]["podIP"] for operator in cluster.admin.list("pods", SYSTEM)]
    words = ["nsenter", "--target", str(process), "--net", "iptables", "-A", "INPUT", "-s", ",".join(operators)]
    subprocess.run([*words, "-j", "DROP"], check=True)
    status = job.until(lambda s: "cannot reach its /progress" in s.get("message", ""), "the message")
    assert (status["phase"], status["attempt"]) == ("Running", 1)
    say(f"/progress cut off: {status['message']}")


def test_injected_container_never_ends(job, cluster, inject, say):
    inject("localhost/pause:1")
    job.create()
    status = job.until(lambda s: s.get("phase") == "Succeeded", "the end")
    assert status["restarts"] == 0
    wait(lambda: not job.pods(), "the pods to be removed")
    say(f"injected container: {status['message']}")


@pytest.fixture
def inject(cluster, namespace):
    """Function: add a container with the given image to every pod of the namespace from now on, as a mesh does."""
    name = f"inject-{namespace}"
    api = "/apis/admissionregistration.k8s.io/v1/mutatingadmissionpolic"

    def start(image):
        change = (
            f'Object{{spec: Object.spec{{containers: [Object.spec.containers{{name: "mesh", image: "{image}"}}]}}}}'
        )
        rules = {"apiGroups": [""], "apiVersions": ["v1"], "operations": ["CREATE"], "resources": ["pods"]}
        base = {"apiVersion": "admissionregistration.k8s.io/v1", "metadata": {"name": name}}
        policy = {
            "matchConstraints": {"resourceRules": [rules]}, "reinvocationPolicy": "Never",
            "mutations": [{"patchType": "ApplyConfiguration", "applyConfiguration": {"expression": change}}],
        }  # fmt: skip
        selector = {"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": namespace}}}
        cluster.admin.request("POST", f"{api}ies", {**base, "kind": "MutatingAdmissionPolicy", "spec": policy})
        binding = {**base, "kind": "MutatingAdmissionPolicyBinding"}
        spec = {"policyName": name, "matchResources": selector}
        cluster.admin.request("POST", f"{api}ybindings", {**binding, "spec": spec})

        def injected():
            probe = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "probe", "namespace": namespace}}
            probe["spec"] = {"containers": [{"name": "probe", "image": image}]}
            path = f"/api/v1/namespaces/{namespace}/pods"
            return len(cluster.admin.request("POST", path, probe, query={"dryRun": "All"})["spec"]["containers"]) == 2

        wait(injected, "the policy")

    yield start
    cluster.admin.request("DELETE", f"{api}ies/{name}")
    cluster.admin.request("DELETE", f"{api}ybindings/{name}")


def test_suspend_and_resume(job, say):
    job.train()
    job.admin.patch("hftitanjobs", "claims", {"spec": {"runPolicy": {"suspend": True}}}, job.namespace)
    began = time.monotonic()
    status = job.until(lambda s: s["phase"] == "Suspended" and not job.pods(), "the pods to be removed")
    took = time.monotonic() - began
    saved = max(int(path.name.removeprefix("step-")) for path in (job.folder / "checkpoint").glob("step-*"))
    assert f"step {saved}" in status["message"]
    job.admin.patch("hftitanjobs", "claims", {"spec": {"runPolicy": {"suspend": False}}}, job.namespace)
    status = job.until(lambda s: s["phase"] == "Running" and s["progress"]["step"] > saved, "a later step")
    assert status["restarts"] == 0
    say(f"suspended within {took:.1f} s at step {saved}, resumed to step {status['progress']['step']}")


def test_chart_is_upgraded(job, cluster, say):
    job.train()
    before = {pod["metadata"]["name"] for pod in cluster.admin.list("pods", SYSTEM)}
    cluster.upgrade_chart(logLevel="debug")
    replicas = cluster.admin.list("pods", SYSTEM)
    assert not before & {pod["metadata"]["name"] for pod in replicas}
    assert {pod["spec"]["nodeName"] for pod in replicas} == set(cluster.nodes)
    job.goes_on()
    assert (job.status["attempt"], job.status["restartHistory"]) == (1, [])
    say("chart upgraded: the job went on training")


def test_node_of_the_leader_is_lost(job, cluster, say):
    holder = cluster.admin.get("leases", LEASE, SYSTEM)["spec"]["holderIdentity"]
    [leader] = [pod for pod in cluster.admin.list("pods", SYSTEM) if pod["metadata"]["name"] in holder]
    node = cluster.nodes[leader["spec"]["nodeName"]]
    node.lose()
    began = time.monotonic()
    job.create()
    job.until(lambda s: s.get("phase"), "a phase")
    say(f"the leader's node lost: the other replica started a new job after {time.monotonic() - began:.1f} s")


@pytest.mark.parametrize("end", ["delete", "suspend"])
def test_gang_that_waits_for_a_pod_ends_soon(job, cluster, shell, end, say):
    """The first pod waits in its rendezvous. hftitan-agent is process 1 there and must not ignore SIGTERM."""
    full = next(iter(cluster.nodes))
    shell(f"kubectl cordon {full}")
    job.create(pod={"resources": {"requests": {"cpu": "1100m"}}})  # no room for two on one node
    job.until(lambda s: "is not scheduled" in s.get("message", ""), "the message")
    wait(lambda: any(pod["status"]["phase"] == "Running" for pod in job.pods()), "a running pod")
    time.sleep(5)  # until the agent is in its rendezvous
    began = time.monotonic()
    if end == "delete":
        shell("kubectl delete htj claims --wait=false")
    else:
        job.admin.patch("hftitanjobs", "claims", {"spec": {"runPolicy": {"suspend": True}}}, job.namespace)
    wait(lambda: not job.pods(), "the pods to be removed", 120)
    took = time.monotonic() - began
    assert took < 60, "the pods waited for their grace period"
    say(f"{end} of a gang that waits for a pod: no pod left after {took:.1f} s")
