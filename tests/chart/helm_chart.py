"""The chart as Helm renders it, for tests."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import helm_python as helm
import yaml

ROOT = Path(__file__).parents[2]
CHART = ROOT / "charts" / "hftitan"
NAMESPACE = "hftitan-system"
LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
"""The CRD takes Python's own half a second, each time."""
Object = dict[str, Any]


def files(chart: Path = CHART, name: str = "hftitan", namespace: str = NAMESPACE, **values: Any) -> dict[str, str]:
    """What `helm template` gives, by template. HelmValuesError for values that the schema refuses."""
    with helm.Chart.load(chart) as loaded:
        loaded.validate_schema(values)
        return loaded.render(values, name=name, namespace=namespace)


def objects(chart: Path = CHART, name: str = "hftitan", namespace: str = NAMESPACE, **values: Any) -> list[Object]:
    """The rendered objects, of every template."""
    rendered = files(chart, name, namespace, **values)
    texts = (text for path, text in rendered.items() if path.endswith(".yaml"))
    return [document for text in texts for document in yaml.load_all(text, LOADER) if document]


def of_kind(found: list[Object], *kinds: str) -> list[Object]:
    return [thing for thing in found if thing["kind"] in kinds]


def one(found: list[Object], kind: str, name: str = "") -> Object:
    (thing,) = (t for t in of_kind(found, kind) if not name or t["metadata"]["name"] == name)
    return thing
