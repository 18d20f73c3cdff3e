"""Every dashboard query, sent to a real Prometheus that scrapes the real operator and a real training run.

The run continues until every query has data, so the tests do not depend on its speed.
"""

import json
import os
import time
import urllib.request
from pathlib import Path

import helm_python as helm
import pytest
import yaml
from dashboard_data import record
from kubectl import wait
from kubelet_fake import SCRIPT
from kubelets import KubeletProcess
from operator_process import OperatorProcess
from paths import ROOT
from processes import free_ports
from promql import Prometheus, Query, all_queries, discover, scrape_jobs
from tiny import make_model, make_text

from hftitan_api.wire import ExitReport
from hftitan_operator.core.rendering import access
from hftitan_operator.kube.operator import LEASE_NAME

DOCUMENT = ROOT / "docs" / "monitoring.md"
CHART = ROOT / "charts" / "hftitan"
ACCOUNT = access.Account()
WITHOUT_DATA = {
    "HFTitanJob / Job: MFU A": "the peak FLOPs of a CPU are not known, so the trainer does not export the ratio",
}
"""Panels without data in this test, with the reason."""
SECONDS = 120.0
JOB = "live"
KEEP = "HFTITAN_DASHBOARD_DATA"
"""Set by `make pictures`: a folder for the answers. The run is then longer and is interrupted once."""
PICTURE_SECONDS = 120.0


def document(namespace, name, **spec):
    base = {
        "model": {"name": "/inputs/model"},
        "dataset": {"path": "/inputs/text.jsonl"},
        "mesh": {"device": "cpu"},
        "training": {"steps": 100_000, "seqLen": 64},
    }
    metadata = {"name": name, "namespace": namespace}
    return {"apiVersion": "hftitan.io/v1alpha1", "kind": "HFTitanJob", "metadata": metadata, "spec": base | spec}


def played(namespace, name, script, **spec):
    """Return a GPU job whose pods follow a script (kubelet_fake.py)."""
    pod = {
        "annotations": {SCRIPT: json.dumps(script)},
        "nodeSelector": {"kubernetes.io/hostname": "played-node"},
    }
    return document(namespace, name, mesh={"gpusPerNode": 2}, pod=pod, **spec)


def live(namespace):
    mount = {"name": "inputs", "mountPath": "/inputs", "readOnly": True}
    claim = {"name": "inputs", "persistentVolumeClaim": {"claimName": "inputs", "readOnly": True}}
    pod = {"volumes": [claim], "volumeMounts": [mount], "nodeSelector": {"kubernetes.io/hostname": "trainer-node"}}
    return document(
        namespace, JOB, pod=pod,
        checkpoint={"volume": "results", "interval": 100},
        validation={"dataset": {"path": "/inputs/text.jsonl"}, "interval": 25, "steps": 1},
    )  # fmt: skip


@pytest.fixture(scope="module")
def namespace(control_plane, operator, tmp_path_factory):
    """A namespace with a job that trains, one that failed, one that is suspended, and one that fits on no node."""
    admin = control_plane.admin
    inputs, nodes = tmp_path_factory.mktemp("inputs"), tmp_path_factory.mktemp("nodes")
    make_model(inputs / "model")
    make_text(inputs / "text.jsonl")
    name = admin.make_namespace("monitoring")
    for claim in ("inputs", "results"):
        admin.make_claim(claim, name)
    trainers = KubeletProcess(control_plane, "trainer-node", nodes / "a", gpus=0, environ={"HF_HUB_OFFLINE": "1"})
    players = KubeletProcess(control_plane, "played-node", nodes / "b", fake={})
    (nodes / "a" / "claims" / name).mkdir(parents=True)
    (nodes / "a" / "claims" / name / "inputs").symlink_to(inputs)
    report = ExitReport(reason="UserError", message="spec.dataset: no such file", retryable=False)
    user_error = {"endsAfter": 0, "exitCode": 1, "message": report.model_dump_json(by_alias=True)}
    admin.create(live(name))
    admin.create(played(name, "failed", user_error))
    admin.create(played(name, "suspended", {}, runPolicy={"suspend": True}))
    admin.create(played(name, "waits", {}) | {"spec": document(name, "", mesh={"gpusPerNode": 64})["spec"]})
    yield name
    admin.delete("namespaces", name)
    players.close()
    trainers.close()


@pytest.fixture(scope="module")
def targets(tmp_path_factory):
    folder = tmp_path_factory.mktemp("targets")
    return {name: folder / f"{name}.json" for name in ("hftitan-trainers", "hftitan-operator")}


@pytest.fixture(scope="module")
def find_pods(control_plane, namespace, targets):
    """Function: write the current pods to the target files; return whether a pod of the training run is among them."""

    def find():
        found = discover(DOCUMENT, lambda place, selector: control_plane.admin.list("pods", place, labels=selector))
        for job, path in targets.items():
            path.write_text(json.dumps(found[job]))
        live = {"__meta_kubernetes_namespace": namespace, "__meta_kubernetes_pod_label_hftitan_io_job": JOB}
        return any(live.items() <= target["labels"].items() for target in found["hftitan-trainers"])

    return find


@pytest.fixture(scope="module")
def operators_pod(control_plane, operator):
    """A pod as in the chart, with the address of the operator, which runs outside of pods here."""
    with helm.Chart.load(CHART) as chart:
        rendered = chart.render({}, name="hftitan", namespace=ACCOUNT.namespace)
    deployment = yaml.safe_load(rendered["hftitan/templates/deployment.yaml"])
    template = deployment["spec"]["template"]
    [container] = template["spec"]["containers"]
    [port] = container["ports"]
    spec = {
        "nodeSelector": {"no": "where"},
        "containers": [{**container, "volumeMounts": [], "ports": [{**port, "containerPort": operator.port}]}],
    }
    metadata = {"name": "hftitan-operator-0", "namespace": ACCOUNT.namespace, "labels": template["metadata"]["labels"]}
    admin = control_plane.admin
    admin.create({"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": spec})
    where = {"phase": "Running", "podIP": "127.0.0.1", "podIPs": [{"ip": "127.0.0.1"}]}
    yield admin.patch("pods", metadata["name"], {"status": where}, ACCOUNT.namespace, subresource="status")
    admin.delete("pods", metadata["name"], ACCOUNT.namespace, grace=0)


@pytest.fixture(scope="module")
def prometheus(operators_pod, targets, find_pods, prometheus_programs, tmp_path_factory):
    """Prometheus with the scrape jobs of docs/monitoring.md. The test discovers their pods."""
    wait(find_pods, "the pod of the training run", 30.0)
    often = {"scrape_interval": "500ms", "scrape_timeout": "500ms"}
    config = {"global": often, "scrape_configs": scrape_jobs(DOCUMENT, targets)}
    folder = tmp_path_factory.mktemp("prometheus") / "server"
    with Prometheus(prometheus_programs / "prometheus", folder, config, free_ports(1)[0]) as server:
        yield server


def refuse_writes(admin, refused):
    """Remove the operator's permission to write a status, or restore it."""
    [role] = (m for m in access.cluster_wide(access.Account()) if m["kind"] == "ClusterRole")
    rules = [rule for rule in role["rules"] if not (refused and "hftitanjobs/status" in rule["resources"])]
    admin.apply({**role, "rules": rules})


def until(done, prometheus, what):
    """Like `wait`, but the error includes the end of Prometheus' log."""
    deadline = time.monotonic() + SECONDS
    while not done():
        assert time.monotonic() < deadline, f"{what()}\n{prometheus.log[-1500:]}"
        time.sleep(0.3)


def keep_for_pictures(folder, admin, namespace, prometheus, find_pods, began):
    """Record the answers for PICTURE_SECONDS of the run, with a deleted pod half-way."""

    def keep_scraping(end):
        while time.time() < end:
            find_pods()
            time.sleep(0.5)

    keep_scraping(began + PICTURE_SECONDS / 2)
    [pod] = admin.list("pods", namespace, labels=f"hftitan.io/job={JOB}")
    admin.delete("pods", pod["metadata"]["name"], namespace)
    keep_scraping(began + PICTURE_SECONDS)
    variables = {"namespace": namespace, "job": JOB, "__rate_interval": "10s"}
    record(prometheus, Path(folder), variables, began, began + PICTURE_SECONDS)


def test_every_query_of_the_dashboards_has_data(control_plane, namespace, prometheus, find_pods, say):
    began, epoch = time.monotonic(), time.time()
    variables = {"namespace": namespace, "job": JOB, "__rate_interval": "1m", "__interval": "1m"}
    asked = [query.filled(variables) for query in all_queries()]
    assert {query.where for query in asked} >= WITHOUT_DATA.keys()
    pending = [query for query in asked if query.where not in WITHOUT_DATA]

    # Counters that grow before the first scrape show no increase.
    until(
        lambda: prometheus.values("hftitan_operator_restarts_total"), prometheus, lambda: "no metrics of the operator"
    )
    killed = {"attempt": 1, "endsAfter": 1, "exitCode": 137, "reason": "OOMKilled"}
    control_plane.admin.create(played(namespace, "restarted", [killed]))
    restarts = 'hftitan_operator_restarts_total{reason="OOMKilled"} > 0'
    until(lambda: prometheus.values(restarts), prometheus, lambda: "no restart")

    fails = 'hftitan_operator_reconcile_errors_total{reason="Forbidden"}'
    refuse_writes(control_plane.admin, True)
    try:
        until(lambda: prometheus.values(fails), prometheus, lambda: "no pass fails")
    finally:
        refuse_writes(control_plane.admin, False)

    def all_have_data():
        pending[:] = [query for query in pending if not prometheus.has_data(query)]
        return not pending

    until(all_have_data, prometheus, lambda: "no data: " + "\n".join(f"{q.where}: {q.expr}" for q in pending))
    seconds = time.monotonic() - began
    answered = len(asked) - len(WITHOUT_DATA)
    say(f"{answered} dashboard queries have data in Prometheus, {len(WITHOUT_DATA)} cannot have any, {seconds:.0f} s")
    for where in WITHOUT_DATA:
        [query] = (query for query in asked if query.where == where)
        assert not prometheus.has_data(query), f"{where} has data: remove it from WITHOUT_DATA"
    if folder := os.environ.get(KEEP):
        keep_for_pictures(folder, control_plane.admin, namespace, prometheus, find_pods, epoch)


def test_documented_scrape_jobs_select_the_metrics_ports_of_running_pods(
    namespace, operators_pod, find_pods, prometheus
):
    """They select the operator, and only the metrics port of each pod that may answer."""

    def of_each_job():
        find_pods()
        found = {}
        for target in prometheus.ask("targets", state="active")["activeTargets"]:
            found.setdefault(target["labels"]["job"], []).append(target)
        return found

    def up():
        found = of_each_job()
        return found.keys() == targets_of and all(target["health"] != "unknown" for t in found.values() for target in t)

    targets_of = {"hftitan-trainers", "hftitan-operator"}
    until(up, prometheus, lambda: f"targets {of_each_job()}")
    found = of_each_job()
    [operator] = found["hftitan-operator"]
    where = {"namespace": ACCOUNT.namespace, "pod": operators_pod["metadata"]["name"]}
    assert (operator["health"], where.items() <= operator["labels"].items()) == ("up", True), operator
    mine = [target for target in found["hftitan-trainers"] if target["labels"]["namespace"] == namespace]
    assert {target["discoveredLabels"]["__meta_kubernetes_pod_container_port_name"] for target in mine} == {"metrics"}
    phases = {target["discoveredLabels"]["__meta_kubernetes_pod_phase"] for target in mine}
    assert phases <= {"Running", "Pending"}
    [pod] = [target for target in mine if target["labels"]["pod"].startswith(f"{JOB}-")]
    assert pod["health"] == "up", pod["lastError"]
    labels = {"namespace": namespace, "pod": pod["labels"]["pod"], "job_namespace": namespace, "job_name": JOB}
    chosen = ",".join(f"{key}={json.dumps(value)}" for key, value in labels.items())
    until(lambda: prometheus.values(f"hftitan_step{{{chosen}}}"), prometheus, lambda: f"no hftitan_step of {labels}")


def test_query_without_data_is_detected(prometheus):
    assert not prometheus.has_data(Query("none", "max(hftitan_no_such_metric)"))
    assert not prometheus.has_data(Query("not a number", "0 * max(hftitan_step) / 0"))
    assert not prometheus.has_data(Query("no choice", "hftitan_no_such_metric", "job_name"))
    with pytest.raises(ValueError, match="parse error"):
        prometheus.has_data(Query("no PromQL", "max("))


def test_metrics_equal_the_job_statuses(control_plane, namespace, prometheus):

    def values(metric, job, **labels):
        labels |= {"job_namespace": namespace, "job_name": job}
        return prometheus.values(
            f"{metric}{{{','.join(f'{key}={json.dumps(value)}' for key, value in labels.items())}}}"
        )

    failure = {"reason": "UserError"}
    until(lambda: values("hftitan_job_failure_info", "failed", **failure) == [1], prometheus, lambda: "the failed job")
    until(lambda: values("hftitan_job_restarts_total", "restarted") == [1], prometheus, lambda: "the restarted job")
    assert control_plane.admin.get("hftitanjobs", "restarted", namespace)["status"]["restarts"] == 1
    assert values("hftitan_job_phase", "suspended", phase="Suspended") == [1]
    assert prometheus.values(f'count(hftitan_job_phase{{job_namespace="{namespace}"}})') == [5]
    [created] = values("hftitan_job_created_timestamp_seconds", JOB)
    assert time.time() - 600 < created <= time.time()


def test_standby_replica_exports_no_job_metrics(control_plane, namespace, tmp_path):
    """Otherwise a sum over the replicas would count each job twice."""
    lease = {
        "apiVersion": "coordination.k8s.io/v1",
        "kind": "Lease",
        "metadata": {"name": LEASE_NAME, "namespace": namespace},
        "spec": {"holderIdentity": "another", "leaseDurationSeconds": 3600},
    }
    control_plane.admin.create(lease)
    options = ("--leader-elect", "--lease-namespace", namespace)
    replica = OperatorProcess(control_plane.kubeconfig("admin"), tmp_path / "log", *options).start()
    try:
        replica.wait_ready()
        with urllib.request.urlopen(f"http://127.0.0.1:{replica.port}/metrics") as answer:
            text = answer.read().decode()
    finally:
        replica.kill()
    assert "\nhftitan_operator_leader 0.0\n" in text
    assert "hftitan_job" not in text.replace("hftitan_operator_job_events", "")
