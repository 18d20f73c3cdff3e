"""Fixtures that build jobs: the smallest valid job with changed fields."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import job_documents
import pytest

from hftitan_api.models import JobSpec

Builder = Callable[..., dict[str, Any]]


@pytest.fixture(scope="session")
def spec_dict() -> Builder:
    """spec_dict(mesh={"tp": 2}) returns the spec of a valid job with these fields merged in."""
    return lambda **changes: job_documents.merged(job_documents.SMALLEST, changes)


@pytest.fixture(scope="session")
def job_dict() -> Builder:
    """job_dict(name="demo", mesh=...) returns a whole job object."""
    return job_documents.document


@pytest.fixture(scope="session")
def spec(spec_dict: Builder) -> Callable[..., JobSpec]:
    """spec(mesh={"tp": 2}) returns a JobSpec."""
    return lambda **changes: JobSpec.model_validate(spec_dict(**changes), strict=True, by_alias=True, by_name=False)
