"""Every dashboard query, sent to a real Prometheus that scrapes the real operator and a real training run.

Prometheus finds the pods on the API server, with the scrape jobs of the documents. The run continues until every query
has data, so the tests do not depend on its speed.
"""

import json
import os
import subprocess
import time
import urllib.request
from pathlib import Path

import helm_python as helm
import pytest
import yaml
from dashboard_data import record
from helm_chart import MATRIX, objects, one
from kubectl import ApiError
from kubelet_fake import SCRIPT
from kubelets import KubeletProcess
from operator_process import OperatorProcess
from paths import ROOT
from processes import free_ports
from promql import Prometheus, Query, all_queries, discovers_pods, scrape_jobs
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
READS = ["get", "list", "watch"]
ANNOTATION = "__meta_kubernetes_pod_annotation_prometheus_io_"
ANNOTATED = [
    {"source_labels": [f"{ANNOTATION}scrape"], "regex": "true", "action": "keep"},
    {"source_labels": [f"{ANNOTATION}path"], "regex": "(.+)", "target_label": "__metrics_path__"},
    {
        "source_labels": ["__address__", f"{ANNOTATION}port"],
        "regex": r"(.+?)(?::\d+)?;(\d+)",
        "replacement": "$1:$2",
        "target_label": "__address__",
    },
    {"source_labels": ["__meta_kubernetes_namespace"], "target_label": "namespace"},
    {"source_labels": ["__meta_kubernetes_pod_name"], "target_label": "pod"},
]
"""The scrape job of many Prometheus installations (prometheus-community's chart), as far as the annotations matter."""
MONITORS = {"servicemonitors": "ServiceMonitor", "podmonitors": "PodMonitor", "prometheusrules": "PrometheusRule"}
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
    labels, annotations = template["metadata"]["labels"], template["metadata"]["annotations"]
    annotations |= {"prometheus.io/port": str(operator.port)}
    metadata = {"name": "hftitan-operator-0", "namespace": ACCOUNT.namespace, "labels": labels}
    metadata["annotations"] = annotations
    admin = control_plane.admin
    admin.create({"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": spec})
    where = {"phase": "Running", "podIP": "127.0.0.1", "podIPs": [{"ip": "127.0.0.1"}]}
    yield admin.patch("pods", metadata["name"], {"status": where}, ACCOUNT.namespace, subresource="status")
    admin.delete("pods", metadata["name"], ACCOUNT.namespace, grace=0)


@pytest.fixture(scope="module")
def reader(control_plane):
    """The kubeconfig of a service account that may only read pods."""
    name, namespace = "prometheus", "monitoring"
    subject = {"kind": "ServiceAccount", "name": name, "namespace": namespace}
    role = {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "prometheus"}
    rbac = {"apiVersion": "rbac.authorization.k8s.io/v1", "metadata": {"name": "prometheus"}}
    for thing in (
        {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": name, "namespace": namespace}},
        {**rbac, "kind": "ClusterRole", "rules": [{"apiGroups": [""], "resources": ["pods"], "verbs": READS}]},
        {**rbac, "kind": "ClusterRoleBinding", "roleRef": role, "subjects": [subject]},
    ):
        control_plane.admin.apply(thing)
    return control_plane.kubeconfig(f"system:serviceaccount:{namespace}:{name}")


@pytest.fixture(scope="module")
def prometheus(namespace, operators_pod, reader, prometheus_programs, tmp_path_factory):
    """Prometheus with the documented scrape jobs and one for annotations. It finds the pods on the API server."""
    if not discovers_pods(prometheus_programs):
        pytest.skip("this Prometheus has no Kubernetes service discovery")
    often = {"scrape_interval": "500ms", "scrape_timeout": "500ms"}
    discovery = [{"role": "pod", "kubeconfig_file": str(reader)}]
    annotated = {"job_name": "annotated", "kubernetes_sd_configs": discovery, "relabel_configs": ANNOTATED}
    others = [*scrape_jobs(CHART / "README.md", reader), annotated]
    for job in others:  # they find the same pods, whose metrics must not count twice
        job["metric_relabel_configs"] = [{"source_labels": ["__name__"], "regex": ".*", "action": "drop"}]
    folder = tmp_path_factory.mktemp("prometheus") / "server"
    config = {"global": often, "scrape_configs": [*scrape_jobs(DOCUMENT, reader), *others]}
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


def keep_for_pictures(folder, admin, namespace, prometheus, began):
    """Record the answers for PICTURE_SECONDS of the run, with a deleted pod half-way."""
    time.sleep(max(0.0, began + PICTURE_SECONDS / 2 - time.time()))
    [pod] = admin.list("pods", namespace, labels=f"hftitan.io/job={JOB}")
    admin.delete("pods", pod["metadata"]["name"], namespace)
    time.sleep(max(0.0, began + PICTURE_SECONDS - time.time()))
    variables = {"namespace": namespace, "job": JOB, "__rate_interval": "10s"}
    record(prometheus, Path(folder), variables, began, began + PICTURE_SECONDS)


def test_every_query_of_the_dashboards_has_data(control_plane, namespace, prometheus, say):
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
        keep_for_pictures(folder, control_plane.admin, namespace, prometheus, epoch)


def test_each_scrape_job_finds_the_metrics_ports_of_its_pods(namespace, operators_pod, prometheus):
    """Prometheus finds the pods on the API server, and only those that may answer."""
    mine, operators = f"{namespace}/{JOB}-", f"{ACCOUNT.namespace}/{operators_pod['metadata']['name']}"
    expected = {
        ("hftitan-trainers", mine): "up",
        ("hftitan-jobs", mine): "up",
        ("hftitan-operator", operators): "up",
        ("annotated", operators): "up",
    }

    def of_each_job():
        found = {}
        for target in prometheus.ask("targets", state="active")["activeTargets"]:
            labels, meta = target["labels"], target["discoveredLabels"]
            assert meta["__meta_kubernetes_pod_phase"] in ("Running", "Pending"), target
            assert meta["__meta_kubernetes_pod_container_port_name"] == "metrics", target
            pod = f"{labels['namespace']}/{labels['pod']}"
            if pod.startswith((mine, operators)):
                found[labels["job"], mine if pod.startswith(mine) else pod] = target["health"]
        return found

    until(lambda: of_each_job() == expected, prometheus, lambda: f"targets {of_each_job()}")
    labels = {"namespace": namespace, "job": "hftitan-trainers", "job_namespace": namespace, "job_name": JOB}
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


@pytest.fixture(scope="module")
def monitors(control_plane):
    """Install the Prometheus operator's CRDs. Return a function from a resource to its URL path."""
    done = subprocess.run([ROOT / "hack/prometheus", "crds"], stdout=subprocess.PIPE, text=True, check=True)
    for resource in MONITORS:
        control_plane.install_crd(Path(done.stdout.strip()) / f"monitoring.coreos.com_{resource}.yaml")
    yield lambda resource: f"/apis/monitoring.coreos.com/v1/namespaces/default/{resource}"
    for resource in MONITORS:
        control_plane.admin.delete("customresourcedefinitions", f"{resource}.monitoring.coreos.com")


@pytest.mark.parametrize("more", [{}, {"namespaces": ["a"]}])
def test_monitors_and_rules_of_the_chart_fit_the_prometheus_operators_crds(control_plane, monitors, more):
    strict = {"fieldValidation": "Strict", "dryRun": "All"}
    rendered = objects(**MATRIX["monitors"], **more)
    for resource, kind in MONITORS.items():
        document = {**one(rendered, kind), "metadata": {"name": "x", "namespace": "default"}}
        stored = control_plane.admin.request("POST", monitors(resource), document, query=strict)
        assert stored["spec"] == document["spec"], "no field is dropped or defaulted"
        wrong = {**document, "spec": {**document["spec"], "selectors": {}}}
        with pytest.raises(ApiError, match=r'unknown field "spec\.selectors"'):
            control_plane.admin.request("POST", monitors(resource), wrong, query=strict)
