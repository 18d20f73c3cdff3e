"""Typical values render to valid Kubernetes objects; invalid values are rejected."""

import functools
import json
import shutil

import helm_python as helm
import kubernetes_validate
import pytest
import yaml
from helm_chart import CHART, MATRIX, files, objects, of_kind

VERSIONS = [f"1.{minor}" for minor in range(28, 38)]


@pytest.mark.parametrize("values", MATRIX.values(), ids=MATRIX)
def test_lint_reports_no_errors_or_warnings(values):
    report = helm.lint(CHART, values, strict=True, namespace="hftitan-system", kube_version="v1.28.0")
    assert report["errors"] == []
    # Severity 1 is information (the chart has no icon).
    assert [m for m in report["messages"] if m["severity"] > 1] == []


@functools.cache
def validate(text):
    """Validate one object. Cached, because most objects are the same for most values."""
    for version in VERSIONS:
        kubernetes_validate.validate(json.loads(text), version, strict=True)


@pytest.mark.parametrize("values", MATRIX.values(), ids=MATRIX)
def test_rendered_objects_are_valid_and_unique(chart_copy, values):
    rendered = objects(chart_copy, **values)
    assert rendered
    for thing in rendered:
        if "monitoring.coreos.com" not in thing["apiVersion"]:
            validate(json.dumps(thing))
    names = [(t["kind"], t["metadata"].get("namespace"), t["metadata"]["name"]) for t in rendered]
    assert len(names) == len(set(names))


def test_validation_detects_an_unknown_field():
    (deployment,) = of_kind(objects(), "Deployment")
    deployment["spec"]["template"]["spec"]["containers"][0]["image_pull_policy"] = "Always"
    with pytest.raises(kubernetes_validate.ValidationError, match="image_pull_policy"):
        kubernetes_validate.validate(deployment, "1.28", strict=True)


REJECTED = {
    "unknown key": ({"replicaCount": 3}, "replicaCount"),
    "unknown nested key": ({"image": {"name": "x"}}, "name"),
    "misspelled jobDefaults": ({"jobs": {"image": "x"}}, "jobs"),
    "unknown job default": ({"jobDefaults": {"hostNetwork": True}}, "hostNetwork"),
    "value of a job default": ({"jobDefaults": {"imagePullPolicy": "Sometimes"}}, "imagePullPolicy"),
    "toleration of job defaults": ({"jobDefaults": {"tolerations": [{"effect": "No"}]}}, "effect"),
    "claim of job defaults": ({"jobDefaults": {"cacheVolume": "Models"}}, "cacheVolume"),
    "token key without a Secret": ({"jobDefaults": {"hfTokenSecret": {"key": "token"}}}, "hfTokenSecret"),
    "replicas as text": ({"replicas": "two"}, "replicas"),
    "too many replicas": ({"replicas": 11}, "replicas"),
    "namespaces as text": ({"namespaces": "a"}, "namespaces"),
    "invalid name of a namespace": ({"namespaces": ["Team A"]}, "namespaces"),
    "log level": ({"logLevel": "verbose"}, "logLevel"),
    "digest": ({"image": {"digest": "sha256:12"}}, "digest"),
    "tag with a colon": ({"image": {"tag": "a:b"}}, "tag"),
    "no service account": ({"serviceAccount": {"create": False}}, "serviceAccount"),
    "memory": ({"resources": {"limits": {"memory": "1 GB"}}}, "memory"),
    "GPU for the operator": ({"resources": {"limits": {"nvidia.com/gpu": 1}}}, "nvidia.com/gpu"),
    "the chart's own label": ({"podLabels": {"app.kubernetes.io/name": "x"}}, "podLabels"),
    "the chart's own annotation": ({"podAnnotations": {"prometheus.io/port": "1"}}, "podAnnotations"),
    "scrape interval": ({"monitoring": {"podMonitor": {"interval": "15"}}}, "interval"),
    "invalid port": ({"networkPolicy": {"apiServerPorts": [0]}}, "apiServerPorts"),
    "no port": ({"networkPolicy": {"apiServerPorts": []}}, "apiServerPorts"),
    "label of dashboards": ({"dashboards": {"label": "a b"}}, "label"),
    "boolean as text": ({"crds": {"enabled": "no"}}, "enabled"),
    "misspelled toleration": ({"tolerations": [{"key": "a", "operater": "Exists"}]}, "operater"),
    "name with a dot": ({"fullnameOverride": "a.b"}, "fullnameOverride"),
}  # fmt: skip


@pytest.mark.parametrize(("values", "field"), REJECTED.values(), ids=REJECTED)
def test_chart_rejects_invalid_values_and_names_the_field(values, field):
    with pytest.raises(helm.HelmValuesError, match=field):
        files(**values)


def test_a_null_value_removes_the_default():
    (deployment,) = of_kind(objects(resources={"limits": None}), "Deployment")
    container = deployment["spec"]["template"]["spec"]["containers"][0]
    assert container["resources"] == {"requests": {"cpu": "100m", "memory": "256Mi"}}


def test_chart_works_as_a_subchart(tmp_path):
    """Helm passes `global` and the key of the condition to a subchart. The schema must accept both."""
    parent = tmp_path / "platform"
    (parent / "charts").mkdir(parents=True)
    shutil.copytree(CHART, parent / "charts" / "hftitan")
    dependency = {"name": "hftitan", "version": "0.1.0", "condition": "hftitan.enabled"}
    meta = {"apiVersion": "v2", "name": "platform", "version": "1.0.0", "dependencies": [dependency]}
    (parent / "Chart.yaml").write_text(yaml.safe_dump(meta))
    values = {"global": {"registry": "x"}, "hftitan": {"enabled": True, "replicas": 3}}
    (deployment,) = of_kind(objects(parent, **values), "Deployment")
    assert deployment["spec"]["replicas"] == 3
    with pytest.raises(helm.HelmValuesError, match="replicaCount"):
        files(parent, hftitan={"replicaCount": 3})


def test_packaged_chart_renders_the_same(tmp_path):
    archive = helm.package(CHART, destination=tmp_path)
    with helm.Chart.load(archive) as packed, helm.Chart.load(CHART) as chart:
        assert packed.render({}, name="x") == chart.render({}, name="x")
