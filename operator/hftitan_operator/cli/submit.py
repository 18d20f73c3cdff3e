"""Builds the object to create on a cluster from a job file."""

from __future__ import annotations

from typing import Any

from hftitan_api.models import API_VERSION, KIND, HFTitanJob
from hftitan_operator.cli.job_file import BadInput


def namespace_of(source: str, job: HFTitanJob, asked: str | None) -> str | None:
    """Return the namespace of the file or of `--namespace`; None: the context's. Raises BadInput if they differ."""
    if "namespace" not in job.metadata.model_fields_set:
        return asked
    if asked not in (None, job.metadata.namespace):
        given = f"is {job.metadata.namespace}, but --namespace is {asked}"
        raise BadInput([f"{source}: metadata.namespace: {given}; remove one of them"])
    return job.metadata.namespace


def document(job: HFTitanJob, namespace: str) -> dict[str, Any]:
    """Return the object to create. It has only the fields that the user set; the API server adds the defaults."""
    meta = job.metadata
    metadata: dict[str, Any] = {"name": meta.name, "namespace": namespace}
    metadata |= {key: dict(value) for key in ("labels", "annotations") if (value := getattr(meta, key))}
    spec = job.spec.model_dump(mode="json", by_alias=True, exclude_unset=True, exclude_none=True)
    return {"apiVersion": API_VERSION, "kind": KIND, "metadata": metadata, "spec": spec}
