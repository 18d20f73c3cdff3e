"""The objects of an attempt that are still to be created, in batches so that no job delays the others."""

from __future__ import annotations

from collections.abc import Collection
from itertools import islice

from hftitan_api.mesh import MeshPlan
from hftitan_api.models import HFTitanJob
from hftitan_operator.core import render, scheduling
from hftitan_operator.core.pods import pods as pods_of
from hftitan_operator.core.state import Apply, Manifest, Observed, Require

PODS_AT_ONCE = 500
"""In one pass: about 10 ms and 4 MB. The largest job has 5000."""


def missing(
    job: HFTitanJob, plan: MeshPlan, attempt: int, observed: Observed, there: Collection[int], *, pods: bool
) -> tuple[list[Require | Apply], bool]:
    """The objects to create in this pass, and whether pods are left for the next one.

    `there`: indices of the pods that exist; `pods`: whether any may be created now. Raises SpecError when the job may
    not have pods.
    """
    lacking = (index for index in range(plan.degrees.nodes if pods else 0) if index not in there)
    made = pods_of(job, plan, attempt, list(islice(lacking, PODS_AT_ONCE)))
    before: list[Manifest] = [] if observed.service else [render.service(job)]
    if not observed.config:
        before.append(render.config(job, plan))
    asked = _asked(job, plan, attempt) if made else []
    return [*asked, *(Apply(manifest) for manifest in before + made)], next(lacking, None) is not None


def _asked(job: HFTitanJob, plan: MeshPlan, attempt: int) -> list[Require | Apply]:
    """Of the gang's scheduler, before its pods. Nobody watches a PodGroup: to create it again changes nothing."""
    need, group = scheduling.required(job), render.pod_group(job, plan, attempt)
    return [*([need] if need else []), *([Apply(group)] if group else [])]
