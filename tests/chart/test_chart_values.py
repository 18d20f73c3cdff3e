"""Every combination of values that people use renders to objects which Kubernetes takes; every mistake is refused."""

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
def test_lint_is_content(values):
    report = helm.lint(CHART, values, strict=True, namespace="hftitan-system", kube_version="v1.28.0")
    assert report["errors"] == []
    # Severity 1 is advice: it would have an icon.
    assert [m for m in report["messages"] if m["severity"] > 1] == []


@functools.cache
def valid(text):
    """Most objects are the same for most values."""
    for version in VERSIONS:
        kubernetes_validate.validate(json.loads(text), version, strict=True)


@pytest.mark.parametrize("values", MATRIX.values(), ids=MATRIX)
def test_kubernetes_takes_what_is_rendered(furnished, values):
    rendered = objects(furnished, **values)
    assert rendered
    for thing in rendered:
        if "monitoring.coreos.com" not in thing["apiVersion"]:
            valid(json.dumps(thing))
    names = [(t["kind"], t["metadata"].get("namespace"), t["metadata"]["name"]) for t in rendered]
    assert len(names) == len(set(names))


def test_the_validation_sees_a_mistake():
    (deployment,) = of_kind(objects(), "Deployment")
    deployment["spec"]["template"]["spec"]["containers"][0]["image_pull_policy"] = "Always"
    with pytest.raises(kubernetes_validate.ValidationError, match="image_pull_policy"):
        kubernetes_validate.validate(deployment, "1.28", strict=True)


REFUSED = {
    "unknown": ({"replicaCount": 3}, "replicaCount"),
    "unknown inside": ({"image": {"name": "x"}}, "name"),
    "defaults for jobs under another name": ({"jobs": {"image": "x"}}, "jobs"),
    "a default that jobs do not have": ({"jobDefaults": {"hostNetwork": True}}, "hostNetwork"),
    "a default's value": ({"jobDefaults": {"imagePullPolicy": "Sometimes"}}, "imagePullPolicy"),
    "a default toleration": ({"jobDefaults": {"tolerations": [{"effect": "No"}]}}, "effect"),
    "a default claim": ({"jobDefaults": {"cacheVolume": "Models"}}, "cacheVolume"),
    "a token without its Secret": ({"jobDefaults": {"hfTokenSecret": {"key": "token"}}}, "hfTokenSecret"),
    "replicas as text": ({"replicas": "two"}, "replicas"),
    "too many": ({"replicas": 11}, "replicas"),
    "namespaces as text": ({"namespaces": "a"}, "namespaces"),
    "no name of a namespace": ({"namespaces": ["Team A"]}, "namespaces"),
    "log level": ({"logLevel": "verbose"}, "logLevel"),
    "digest": ({"image": {"digest": "sha256:12"}}, "digest"),
    "tag in the repository's place": ({"image": {"tag": "a:b"}}, "tag"),
    "an account that nobody makes": ({"serviceAccount": {"create": False}}, "serviceAccount"),
    "memory": ({"resources": {"limits": {"memory": "1 GB"}}}, "memory"),
    "gpu for the operator": ({"resources": {"limits": {"nvidia.com/gpu": 1}}}, "nvidia.com/gpu"),
    "the chart's own label": ({"podLabels": {"app.kubernetes.io/name": "x"}}, "podLabels"),
    "the chart's own annotation": ({"podAnnotations": {"prometheus.io/port": "1"}}, "podAnnotations"),
    "interval": ({"monitoring": {"podMonitor": {"interval": "15"}}}, "interval"),
    "port": ({"networkPolicy": {"apiServerPorts": [0]}}, "apiServerPorts"),
    "no port": ({"networkPolicy": {"apiServerPorts": []}}, "apiServerPorts"),
    "label of dashboards": ({"dashboards": {"label": "a b"}}, "label"),
    "switch as text": ({"crds": {"enabled": "no"}}, "enabled"),
    "toleration": ({"tolerations": [{"key": "a", "operater": "Exists"}]}, "operater"),
    "name with a dot": ({"fullnameOverride": "a.b"}, "fullnameOverride"),
}  # fmt: skip


@pytest.mark.parametrize(("values", "field"), REFUSED.values(), ids=REFUSED)
def test_mistakes_are_refused_by_name(values, field):
    with pytest.raises(helm.HelmValuesError, match=field):
        files(**values)


def test_a_value_set_to_null_falls_away():
    (deployment,) = of_kind(objects(resources={"limits": None}), "Deployment")
    container = deployment["spec"]["template"]["spec"]["containers"][0]
    assert container["resources"] == {"requests": {"cpu": "100m", "memory": "256Mi"}}


def test_it_can_be_part_of_another_chart(tmp_path):
    """Helm gives a subchart `global`, and a condition its own key: the closed schema must bear both."""
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


def test_it_packs(tmp_path):
    archive = helm.package(CHART, destination=tmp_path)
    with helm.Chart.load(archive) as packed, helm.Chart.load(CHART) as chart:
        assert packed.render({}, name="x") == chart.render({}, name="x")
