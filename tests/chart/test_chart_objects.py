"""The rendered objects: permissions, the operator's pod, network policies, monitoring."""

import json

import pytest
import typer
import yaml
from helm_chart import MATRIX, NAMESPACE, ROOT, objects, of_kind, one
from pod_security import violations

from hftitan_api.load import load_defaults
from hftitan_api.pod import PodDefaults
from hftitan_operator.cli import main
from hftitan_operator.core import naming
from hftitan_operator.core.rendering import access

RBAC = ("Role", "RoleBinding", "ClusterRole", "ClusterRoleBinding", "ServiceAccount")


def key(thing):
    return thing["kind"], thing["metadata"].get("namespace", ""), thing["metadata"]["name"]


def plain(things):
    """Return the objects by key, without labels."""
    return {key(t): {**t, "metadata": {k: v for k, v in t["metadata"].items() if k != "labels"}} for t in things}


# --- permissions -------------------------------------------------------------------------------------------------

ACCOUNT = access.Account(namespace=NAMESPACE)


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ({}, access.cluster_wide(ACCOUNT)),
        ({"namespaces": ["a", "b", "a"]}, access.namespaced(ACCOUNT, ["a", "b"])),
        ({"namespaces": ["a"], "rbac": {"nodes": True}}, access.namespaced(ACCOUNT, ["a"], nodes=True)),
        ({"namespaces": ["a"], "rbac": {"gangs": True}}, access.namespaced(ACCOUNT, ["a"], gangs=True)),
        ({"rbac": {"nodes": True}}, access.cluster_wide(ACCOUNT)),
        ({"serviceAccount": {"name": "x"}}, None),
    ],
)
def test_permissions_match_hftitan_rbac(values, expected):
    values = {**values, "rbac": {"aggregate": False, **values.get("rbac", {})}}
    rendered = of_kind(objects(**values), *RBAC)
    if expected is None:
        subjects = [s for thing in rendered for s in thing.get("subjects", [])]
        assert subjects == [{"kind": "ServiceAccount", "name": "x", "namespace": NAMESPACE}] * 2
    else:
        assert plain(rendered) == plain(expected)


def test_tenant_install_has_no_cluster_scoped_objects():
    rendered = objects(namespaces=["a"], crds={"enabled": False}, rbac={"aggregate": False})
    assert {t["metadata"].get("namespace") for t in rendered} == {"a", NAMESPACE}


def test_no_rbac_objects_when_disabled():
    account = {"create": False, "name": "mine"}
    assert of_kind(objects(serviceAccount=account, rbac={"create": False, "aggregate": False}), *RBAC) == []


def test_aggregated_roles_give_users_permissions_on_jobs():
    rendered = of_kind(objects(rbac={"create": False}), "ClusterRole")
    edit, view = sorted(rendered, key=lambda role: role["metadata"]["name"])
    prefix = "rbac.authorization.k8s.io/aggregate-to-"
    aggregated = [
        {k.removeprefix(prefix) for k in r["metadata"]["labels"] if k.startswith(prefix)} for r in (edit, view)
    ]
    assert aggregated == [{"admin", "edit"}, {"view"}]
    assert {v for rule in view["rules"] for v in rule["verbs"]} == {"get", "list", "watch"}
    assert [rule["resources"] for rule in edit["rules"]] == [["hftitanjobs"]], "only the operator writes the status"


# --- the pod -----------------------------------------------------------------------------------------------------


def pod(**values):
    template = one(objects(**values), "Deployment")["spec"]["template"]
    return {"apiVersion": "v1", "kind": "Pod", **template}


def container(**values):
    return pod(**values)["spec"]["containers"][0]


def test_operator_pod_complies_with_pod_security_restricted():
    assert list(violations(pod())) == []
    assert container()["securityContext"]["readOnlyRootFilesystem"] is True


def test_operator_accepts_its_arguments():
    words = [*(c := container(namespaces=["a", "b"], logLevel="debug"))["command"], *c["args"]]
    assert words[:2] == ["hftitan", "operator"]
    command = typer.main.get_command(main.app).commands["operator"]
    parameters = command.make_context("operator", words[2:]).params
    assert parameters["leader_elect"] is True
    assert list(parameters["namespace"]) == ["a", "b"]
    assert parameters["log_level"] == "debug"
    assert (parameters["kubeconfig"], parameters["host"]) == (None, "0.0.0.0")
    (port,) = c["ports"]
    assert port["containerPort"] == parameters["port"]


def test_scrape_annotations_are_omitted_with_a_service_monitor():
    def scraped(**monitoring):
        return "prometheus.io/scrape" in pod(monitoring=monitoring)["metadata"]["annotations"]

    assert scraped()
    assert not scraped(scrapeAnnotations=False)
    assert not scraped(serviceMonitor={"enabled": True}), "Prometheus would scrape the pod twice"


def test_image_is_built_from_repository_tag_and_digest():
    assert container()["image"] == "ghcr.io/hftitan/operator:0.1.0"
    assert container(image={"repository": "r:5000/o", "tag": "t"})["image"] == "r:5000/o:t"
    digest = f"sha256:{'0' * 64}"
    assert container(image={"tag": "t", "digest": digest})["image"] == f"ghcr.io/hftitan/operator@{digest}"


def test_pod_settings_are_rendered_into_the_pod():
    given = {
        "nodeSelector": {"a": "b"},
        "tolerations": [{"operator": "Exists"}],
        "priorityClassName": "p",
        "podLabels": {"team": "ml"},
        "podAnnotations": {"cost": "ml"},
        "image": {"pullSecrets": [{"name": "registry"}]},
    }
    found = pod(**given)
    assert found["spec"]["nodeSelector"] == given["nodeSelector"]
    *own, last = found["spec"]["tolerations"]
    assert [last] == given["tolerations"]
    assert {(one["key"], one["tolerationSeconds"]) for one in own} == {
        ("node.kubernetes.io/not-ready", 30),
        ("node.kubernetes.io/unreachable", 30),
    }
    assert found["spec"]["priorityClassName"] == "p"
    assert found["spec"]["imagePullSecrets"] == [{"name": "registry"}]
    assert found["metadata"]["labels"]["team"] == "ml"
    assert found["metadata"]["annotations"]["cost"] == "ml"


def test_operator_reads_the_job_defaults_from_the_mounted_file():
    given = {**MATRIX["defaults-for-jobs"]["jobDefaults"]}
    rendered = objects(jobDefaults=given)
    config = one(rendered, "ConfigMap", "hftitan-operator-job-defaults")
    (file,) = config["data"]
    assert load_defaults(config["data"][file]) == (PodDefaults.model_validate(given), ())
    template = one(rendered, "Deployment")["spec"]["template"]
    (volume,) = (v for v in template["spec"]["volumes"] if "configMap" in v)
    assert volume["configMap"] == {"name": config["metadata"]["name"]}
    (inside,) = template["spec"]["containers"]
    (mount,) = (m for m in inside["volumeMounts"] if m["name"] == volume["name"])
    assert f"--job-defaults={mount['mountPath']}/{file}" in inside["args"]
    assert mount["readOnly"] is True


def test_changed_job_defaults_restart_the_operator_and_empty_ones_render_nothing():
    def annotation(**defaults):
        return pod(jobDefaults=defaults)["metadata"]["annotations"].get("hftitan.io/job-defaults")

    assert annotation(image="a:1") != annotation(image="a:2")
    assert annotation() is annotation(image="", nodeSelector={}, hfTokenSecret={}) is None
    assert objects() == objects(jobDefaults={"image": "", "tolerations": []})
    assert [v["name"] for v in pod()["spec"]["volumes"]] == ["tmp"]


def selects(selector, labels):
    return selector["matchLabels"].items() <= labels.items()


def test_selectors_match_the_operator_and_no_job():
    rendered = objects(networkPolicy={"enabled": True}, monitoring={"serviceMonitor": {"enabled": True}})
    mine = pod()["metadata"]["labels"]
    jobs = naming.pod_labels("x", 1, 0)
    service = one(rendered, "Service")
    template = one(rendered, "Deployment")["spec"]["template"]["spec"]
    (spread,) = template["topologySpreadConstraints"]
    selectors = [
        one(rendered, "Deployment")["spec"]["selector"],
        one(rendered, "PodDisruptionBudget")["spec"]["selector"],
        one(rendered, "NetworkPolicy", "hftitan-operator")["spec"]["podSelector"],
        {"matchLabels": service["spec"]["selector"]},
        spread["labelSelector"],
    ]
    for selector in selectors:
        assert selects(selector, mine)
        assert not selects(selector, jobs)
    assert selects(one(rendered, "ServiceMonitor")["spec"]["selector"], service["metadata"]["labels"])


# --- the CRD -----------------------------------------------------------------------------------------------------

CRD = yaml.safe_load((ROOT / "crds" / "hftitanjobs.yaml").read_text())


@pytest.mark.parametrize("keep", [True, False])
def test_crd_is_the_same_for_every_release(keep):
    crds = [
        one(objects(name=name, crds={"keep": keep}, replicas=replicas), "CustomResourceDefinition")
        for name, replicas in (("hftitan", 2), ("other", 1))
    ]
    for crd in crds:
        assert crd["spec"] == CRD["spec"]
        assert crd["metadata"]["name"] == CRD["metadata"]["name"]
        assert crd["metadata"].get("annotations", {}) == ({"helm.sh/resource-policy": "keep"} if keep else {})


def test_crd_is_omitted_when_disabled():
    assert of_kind(objects(crds={"enabled": False}), "CustomResourceDefinition") == []


# --- the network -------------------------------------------------------------------------------------------------


def policies(**values):
    return of_kind(objects(**values), "NetworkPolicy")


def test_network_policies_are_disabled_by_default():
    assert policies() == []
    (operator,) = policies(networkPolicy={"enabled": True})
    assert operator["metadata"]["name"] == "hftitan-operator"


def test_job_policies_are_created_in_the_job_namespaces():
    def where(**values):
        return {p["metadata"]["namespace"] for p in policies(**values) if p["metadata"]["name"].endswith("-jobs")}

    assert where(networkPolicy={"enabled": True, "jobNamespaces": ["a", "b"]}) == {"a", "b"}
    assert where(networkPolicy={"enabled": True}, namespaces=["t"]) == {"t"}
    assert where(networkPolicy={"enabled": True, "jobNamespaces": ["a"]}, namespaces=["t"]) == {"a"}


def test_policies_allow_traffic_between_jobs_and_from_the_operator():
    operator, jobs = policies(networkPolicy={"enabled": True, "jobNamespaces": ["a"], "metricsFrom": ["prom"]})
    job, mine = naming.pod_labels("x", 1, 0), pod()["metadata"]["labels"]
    assert selects(jobs["spec"]["podSelector"], job)
    assert jobs["spec"]["policyTypes"] == ["Ingress"]
    peers, progress, metrics = jobs["spec"]["ingress"]
    assert "ports" not in peers, "NCCL uses random ports"
    assert selects(peers["from"][0]["podSelector"], job)
    assert "namespaceSelector" not in peers["from"][0], "pods of the same namespace only"
    assert selects(progress["from"][0]["podSelector"], mine)
    assert progress["from"][0]["namespaceSelector"]["matchLabels"] == {"kubernetes.io/metadata.name": NAMESPACE}
    (prometheus,) = metrics["from"]
    assert prometheus["namespaceSelector"]["matchExpressions"][0]["values"] == ["prom"]
    assert progress["ports"] == metrics["ports"] == [{"port": "metrics", "protocol": "TCP"}]
    dns, api, out = operator["spec"]["egress"]
    assert {p["port"] for p in dns["ports"]} == {53}
    assert {p["port"] for p in api["ports"]} == {443, 6443}
    assert out["to"][0]["namespaceSelector"] == {}
    assert selects(out["to"][0]["podSelector"], job)


def test_all_namespaces_may_read_metrics_by_default():
    for policy in policies(networkPolicy={"enabled": True, "jobNamespaces": ["a"]}):
        assert {"ports": [{"port": "metrics", "protocol": "TCP"}]} in policy["spec"]["ingress"]


# --- monitoring --------------------------------------------------------------------------------------------------


def test_monitors_are_disabled_by_default():
    assert of_kind(objects(), "ServiceMonitor", "PodMonitor", "PrometheusRule") == []


def test_pod_monitor_selects_the_jobs():
    def monitor(**values):
        return one(objects(monitoring={"podMonitor": {"enabled": True, "labels": {"r": "p"}}}, **values), "PodMonitor")

    everywhere = monitor()
    assert everywhere["metadata"]["labels"]["r"] == "p"
    assert selects(everywhere["spec"]["selector"], naming.pod_labels("x", 1, 0))
    assert not selects(everywhere["spec"]["selector"], pod()["metadata"]["labels"])
    assert everywhere["spec"]["namespaceSelector"] == {"any": True}
    assert everywhere["spec"]["podMetricsEndpoints"] == [{"port": "metrics", "path": "/metrics", "interval": "15s"}]
    assert monitor(namespaces=["a"])["spec"]["namespaceSelector"] == {"matchNames": ["a"]}


def test_service_monitor_selects_the_operator():
    rendered = objects(monitoring={"serviceMonitor": {"enabled": True, "interval": "1m"}})
    spec = one(rendered, "ServiceMonitor")["spec"]
    (port,) = one(rendered, "Service")["spec"]["ports"]
    assert spec["endpoints"] == [{"port": port["name"], "path": "/metrics", "interval": "1m"}]
    assert spec["namespaceSelector"] == {"matchNames": [NAMESPACE]}


def test_rule_files_and_dashboards_are_rendered_unchanged(chart_copy):
    (chart_copy / "rules" / "alerts.yaml").write_text(
        "# Alerts.\ngroups:\n  - name: g\n    rules:\n      - alert: A\n        expr: up == 0\n"
        "        annotations: {summary: '{{ $labels.job }} is down'}\n"
    )
    rendered = objects(
        chart_copy,
        monitoring={"prometheusRule": {"enabled": True, "labels": {"r": "p"}}},
        dashboards={"namespace": "grafana", "label": "dash", "labelValue": "yes", "folder": "ML"},
    )
    rule = one(rendered, "PrometheusRule")
    assert rule["metadata"]["labels"]["r"] == "p"
    assert rule["spec"] == yaml.safe_load((chart_copy / "rules" / "alerts.yaml").read_text())
    dashboard = one(rendered, "ConfigMap")
    assert dashboard["metadata"]["namespace"] == "grafana"
    assert dashboard["metadata"]["labels"]["dash"] == "yes"
    assert dashboard["metadata"]["annotations"] == {"grafana_folder": "ML"}
    assert json.loads(dashboard["data"]["fleet.json"]) == {"title": "{{ fleet }}", "uid": "x"}
    off = objects(chart_copy, dashboards={"enabled": False})
    assert of_kind(off, "ConfigMap", "PrometheusRule") == []


def test_the_charts_alerts_and_dashboards_are_rendered():
    chart = ROOT / "charts" / "hftitan"
    rendered = objects(monitoring={"prometheusRule": {"enabled": True}})
    shown = [json.loads(text) for c in of_kind(rendered, "ConfigMap") for text in c["data"].values()]
    rules = [rule["spec"] for rule in of_kind(rendered, "PrometheusRule")]
    assert shown == [json.loads(path.read_text()) for path in sorted(chart.glob("dashboards/*.json"))]
    assert rules == [yaml.safe_load(path.read_text()) for path in sorted(chart.glob("rules/*.yaml"))]
    # The size limit of a ConfigMap is 1 MiB.
    assert all(len(json.dumps(c)) < 1_000_000 for c in of_kind(rendered, "ConfigMap"))
