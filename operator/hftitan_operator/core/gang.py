"""What of an attempt is still to be created: so much at a time that no job holds up the others."""

from __future__ import annotations

from collections.abc import Collection
from itertools import islice

from hftitan_api.mesh import MeshPlan
from hftitan_api.models import HFTitanJob
from hftitan_operator.core import render
from hftitan_operator.core.state import Apply, Observed

PODS_AT_ONCE = 500
"""In one pass: about 10 ms and 4 MB. The largest job has 5000."""


def missing(
    job: HFTitanJob, plan: MeshPlan, attempt: int, observed: Observed, there: Collection[int], *, pods: bool
) -> tuple[list[Apply], bool]:
    """The objects to create in this pass, and whether pods are left for the next one.

    `there`: indices of the pods that exist; `pods`: whether any may be created now. Raises SpecError when the job may
    not have pods.
    """
    found = []
    if not observed.service:
        found.append(render.service(job))
    if not observed.config:
        found.append(render.config(job, plan))
    lacking = (index for index in range(plan.degrees.nodes if pods else 0) if index not in there)
    found += render.pods(job, plan, attempt, list(islice(lacking, PODS_AT_ONCE)))
    return [Apply(manifest) for manifest in found], next(lacking, None) is not None
