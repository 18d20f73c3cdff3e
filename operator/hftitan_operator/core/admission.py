"""Decides whether a job may run at all: the API's rules, and what the renderer would have to reject."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from hftitan_api import mesh
from hftitan_api.admit import admit
from hftitan_api.mesh import SpecError
from hftitan_api.models import HFTitanJob
from hftitan_operator.core import podcheck, sizing


def problems(job: HFTitanJob, model_config: Mapping[str, Any] | None = None) -> list[SpecError]:
    """Everything that keeps the job from running, each with its field; empty when it may run.

    `model_config` is the model's config.json, if at hand.
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
