"""Renders the chart with Helm, for tests."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import helm_python as helm
import yaml
from paths import ROOT

CHART = ROOT / "charts" / "hftitan"
NAMESPACE = "hftitan-system"
LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
"""The pure Python loader takes half a second for the CRD."""
Object = dict[str, Any]
DIGEST = f"sha256:{'a' * 64}"
MONITORS = {
    "serviceMonitor": {"enabled": True, "labels": {"release": "prometheus"}, "interval": "10s"},
    "podMonitor": {"enabled": True, "labels": {"release": "prometheus"}},
    "prometheusRule": {"enabled": True, "labels": {"release": "prometheus"}},
}
MATRIX: dict[str, dict[str, Any]] = {
    "default": {},
    "tenant": {"namespaces": ["a", "b"], "crds": {"enabled": False}, "rbac": {"aggregate": False}},
    "tenant-with-nodes": {"namespaces": ["a"], "rbac": {"nodes": True}},
    "one-replica": {"replicas": 1, "podDisruptionBudget": {"enabled": False}},
    "own-account": {"serviceAccount": {"create": False, "name": "mine"}, "rbac": {"create": False}},
    "image": {"image": {"digest": DIGEST, "pullPolicy": "Always", "pullSecrets": [{"name": "registry"}]}},
    "monitors": {"monitoring": MONITORS},
    "policies": {"networkPolicy": {"enabled": True, "jobNamespaces": ["a", "b"], "metricsFrom": ["monitoring"]}},
    "policies-of-a-tenant": {"namespaces": ["a"], "networkPolicy": {"enabled": True, "apiServerPorts": [16443]}},
    "dashboards-elsewhere": {"dashboards": {"namespace": "grafana", "label": "dash", "labelValue": "yes"}},
    "placed": {
        "nodeSelector": {"node-role.kubernetes.io/control-plane": ""},
        "tolerations": [{"key": "node-role.kubernetes.io/control-plane", "operator": "Exists", "effect": "NoSchedule"}],
        "priorityClassName": "system-cluster-critical",
        "podLabels": {"team": "ml"},
        "podAnnotations": {"cost": "ml"},
        "resources": {"limits": {"cpu": 2, "memory": "2Gi", "ephemeral-storage": "100Mi"}},
        "fullnameOverride": "titan",
        "logLevel": "debug",
    },
    "defaults-for-jobs": {
        "jobDefaults": {
            "image": "registry.example/trainer:2",
            "imagePullPolicy": "Always",
            "imagePullSecrets": ["registry"],
            "nodeSelector": {"pool": "training"},
            "tolerations": [{"key": "training", "operator": "Equal", "value": "yes", "effect": "NoSchedule"}],
            "runtimeClassName": "nvidia",
            "hfTokenSecret": {"name": "hf"},
            "cacheVolume": "models",
        },
    },
    "crd-goes-too": {"crds": {"keep": False}},
}  # fmt: skip
"""Typical chart values, by purpose."""


def files(chart: Path = CHART, name: str = "hftitan", namespace: str = NAMESPACE, **values: Any) -> dict[str, str]:
    """Return the output of `helm template`, by template. Raises HelmValuesError for values that the schema rejects."""
    with helm.Chart.load(chart) as loaded:
        loaded.validate_schema(values)
        return loaded.render(values, name=name, namespace=namespace)


def objects(chart: Path = CHART, name: str = "hftitan", namespace: str = NAMESPACE, **values: Any) -> list[Object]:
    """Return the rendered objects of all templates."""
    rendered = files(chart, name, namespace, **values)
    texts = (text for path, text in rendered.items() if path.endswith(".yaml"))
    return [document for text in texts for document in yaml.load_all(text, LOADER) if document]


def of_kind(found: list[Object], *kinds: str) -> list[Object]:
    return [thing for thing in found if thing["kind"] in kinds]


def one(found: list[Object], kind: str, name: str = "") -> Object:
    (thing,) = (t for t in of_kind(found, kind) if not name or t["metadata"]["name"] == name)
    return thing
