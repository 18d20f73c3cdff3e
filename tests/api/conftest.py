"""Builders for the API's tests: the smallest job, changed field by field."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import job_documents
import pytest

from hftitan_api.models import JobSpec

Builder = Callable[..., dict[str, Any]]


@pytest.fixture(scope="session")
def spec_dict() -> Builder:
    """spec_dict(mesh={"tp": 2}) -> the spec of a valid job with these fields merged in."""
    return lambda **changes: job_documents.merged(job_documents.SMALLEST, changes)


@pytest.fixture(scope="session")
def job_dict() -> Builder:
    """job_dict(name="demo", mesh=...) -> a whole object."""
    return job_documents.document


@pytest.fixture(scope="session")
def spec(spec_dict: Builder) -> Callable[..., JobSpec]:
    """spec(mesh={"tp": 2}) -> the same as a model."""
    return lambda **changes: JobSpec.model_validate(spec_dict(**changes), strict=True, by_alias=True, by_name=False)
