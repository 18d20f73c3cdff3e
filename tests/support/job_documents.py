"""Builds job files as plain dicts: `document(mesh={"tp": 2})`."""

from __future__ import annotations

import copy
from typing import Any

Object = dict[str, Any]

SMALLEST: Object = {
    "model": {"name": "HuggingFaceTB/SmolLM2-135M"},
    "dataset": {"path": "/data/corpus"},
    "training": {"steps": 100},
    "checkpoint": {"volume": "runs"},
}
"""The spec of a small GPU job."""
ON_CPU: Object = {
    "model": {"name": "org/model"},
    "dataset": {"name": "org/data"},
    "mesh": {"device": "cpu"},
    "training": {"steps": 5},
}
"""The spec of a job with one CPU process. Its model and dataset do not exist on this machine."""


def merged(base: Object, changes: Object) -> Object:
    """Return a copy of `base` with `changes` merged in recursively."""
    result = copy.deepcopy(base)
    for key, value in changes.items():
        both = isinstance(value, dict) and isinstance(result.get(key), dict)
        result[key] = merged(result[key], value) if both else copy.deepcopy(value)
    return result


def document(name: str = "demo", base: Object = SMALLEST, *, namespace: str | None = None, **changes: Any) -> Object:
    """Return a job whose spec is `base` with `changes` merged in."""
    metadata = {"name": name} if namespace is None else {"name": name, "namespace": namespace}
    return {
        "apiVersion": "hftitan.io/v1alpha1",
        "kind": "HFTitanJob",
        "metadata": metadata,
        "spec": merged(base, changes),
    }
