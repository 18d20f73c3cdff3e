"""Returns the objects of an attempt that must still be created, in batches so that no job delays the others."""

from __future__ import annotations

from collections.abc import Collection
from itertools import islice

from hftitan_api.mesh import MeshPlan
from hftitan_api.models import HFTitanJob
from hftitan_operator.core.rendering import render, scheduling
from hftitan_operator.core.rendering.pods import pods as pods_of
from hftitan_operator.core.state import Apply, Manifest, Observed, Require

PODS_AT_ONCE = 500
"""Pods created in one pass: about 10 ms and 4 MB. The largest job has 5000."""


def missing(
    job: HFTitanJob, plan: MeshPlan, attempt: int, observed: Observed, existing: Collection[int], *, pods: bool
) -> tuple[list[Require | Apply], bool]:
    """Return the objects to create in this pass, and whether pods remain for the next pass.

    `existing` are the indices of the existing pods; `pods` is whether pods may be created now. Raises SpecError if the
    spec does not allow pods.
    """
    lacking = (index for index in range(plan.degrees.nodes if pods else 0) if index not in existing)
    made = pods_of(job, plan, attempt, list(islice(lacking, PODS_AT_ONCE)))
    before: list[Manifest] = [] if observed.service else [render.service(job)]
    if not observed.config:
        before.append(render.config(job, plan))
    scheduler = _for_scheduler(job, plan, attempt) if made else []
    return [*scheduler, *(Apply(manifest) for manifest in before + made)], next(lacking, None) is not None


def _for_scheduler(job: HFTitanJob, plan: MeshPlan, attempt: int) -> list[Require | Apply]:
    """Return what the gang scheduler needs before the pods. PodGroups are not watched, so they may be applied again."""
    need, group = scheduling.required(job), render.pod_group(job, plan, attempt)
    return [*([need] if need else []), *([Apply(group)] if group else [])]
