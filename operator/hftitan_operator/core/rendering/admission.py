"""Decides whether a job may run: the rules of the API, and the values that the renderer would reject."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from hftitan_api import mesh
from hftitan_api.admit import admit
from hftitan_api.mesh import SpecError
from hftitan_api.models import HFTitanJob
from hftitan_operator.core.rendering import podcheck, sizing


def problems(job: HFTitanJob, model_config: Mapping[str, Any] | None = None) -> list[SpecError]:
    """Return all errors that prevent the job from running, each with its field.

    `model_config` is the model's config.json, if available.
    """
    found = admit(job, model_config) + podcheck.problems(job.spec)
    if found:
        return found
    pod, degrees = job.spec.pod, mesh.plan(job.spec).degrees
    try:
        sizing.resources(pod, degrees, sizing.shm(pod, degrees))
    except SpecError as problem:
        return [problem]
    return []
