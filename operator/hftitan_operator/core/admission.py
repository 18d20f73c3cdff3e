"""May this job run at all: the rules that need nothing but the job."""

from __future__ import annotations

from hftitan_api import mesh
from hftitan_api.mesh import SpecError
from hftitan_api.models import HFTitanJob

from hftitan_operator.core import naming, podcheck, quantity, sizing


def problems(job: HFTitanJob) -> list[SpecError]:
    """Everything that keeps the job from running, each with its field; empty when it may run."""
    found: list[SpecError] = []
    wrong_name = naming.job_name_problem(job.metadata.name)
    if wrong_name:
        found.append(SpecError("metadata.name", wrong_name))
    found += mesh.check(job.spec)
    found += podcheck.problems(job.spec)
    if not mesh.check(job.spec):
        degrees = mesh.plan(job.spec).degrees
        wanted = job.spec.pod.shm_size
        shm = int(quantity.parse(wanted)) if wanted else sizing.shm_bytes(degrees)
        try:
            sizing.resources(job.spec.pod, degrees, shm)
        except SpecError as problem:
            found.append(problem)
    return found
