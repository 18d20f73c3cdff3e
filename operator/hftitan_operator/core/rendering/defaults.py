"""Fills in fields of `spec.pod` that a job omits from the cluster's defaults."""

from __future__ import annotations

from typing import Any

from hftitan_api.models import HFTitanJob, PodDefaults

NO_DEFAULTS = PodDefaults()


def with_defaults(job: HFTitanJob, defaults: PodDefaults) -> HFTitanJob:
    """Return the job with its unset fields filled from `defaults`. A job's value replaces the default entirely: lists
    and maps are not merged, and an empty one counts as unset."""
    pod = job.spec.pod
    filled: dict[str, Any] = {
        name: value
        for name in PodDefaults.model_fields
        if (value := getattr(defaults, name)) and not getattr(pod, name)
    }
    if any(variable.name == "HF_TOKEN" for variable in pod.env):
        filled.pop("hf_token_secret", None)  # the job sets its token itself
    if not filled:
        return job
    return job.model_copy(update={"spec": job.spec.model_copy(update={"pod": pod.model_copy(update=filled)})})
