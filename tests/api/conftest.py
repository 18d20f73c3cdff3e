"""Builders for the API's tests: the smallest job, changed field by field."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest

from hftitan_api.models import JobSpec

Builder = Callable[..., dict[str, Any]]


def _merge(base: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    for key, value in changes.items():
        if isinstance(value, dict) and isinstance(base.get(key), dict):
            _merge(base[key], value)
        else:
            base[key] = value
    return base


_SPEC: dict[str, Any] = {
    "model": {"name": "HuggingFaceTB/SmolLM2-135M"},
    "dataset": {"path": "/data/corpus"},
    "training": {"steps": 100},
    "checkpoint": {"volume": "runs"},
}


@pytest.fixture(scope="session")
def spec_dict() -> Builder:
    """spec_dict(mesh={"tp": 2}) -> the spec of a valid job with these fields merged in."""
    return lambda **changes: _merge(copy.deepcopy(_SPEC), copy.deepcopy(changes))


@pytest.fixture(scope="session")
def job_dict(spec_dict: Builder) -> Builder:
    """job_dict(name="demo", mesh=...) -> a whole object."""

    def build(name: str = "demo", **changes: Any) -> dict[str, Any]:
        return {
            "apiVersion": "hftitan.io/v1alpha1",
            "kind": "HFTitanJob",
            "metadata": {"name": name},
            "spec": spec_dict(**changes),
        }

    return build


@pytest.fixture(scope="session")
def spec(spec_dict: Builder) -> Callable[..., JobSpec]:
    """spec(mesh={"tp": 2}) -> the same as a model."""
    return lambda **changes: JobSpec.model_validate(spec_dict(**changes), strict=True, by_alias=True, by_name=False)
