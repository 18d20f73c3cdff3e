"""Builds the object to create on a cluster from a job file."""

from __future__ import annotations

from typing import Any

from hftitan_api.models import API_VERSION, KIND, HFTitanJob
from hftitan_operator.cli.job_file import BadInput


def namespace_of(source: str, job: HFTitanJob, asked: str | None) -> str | None:
    """The file's, or what `--namespace` says; None: the context's. Raises BadInput when the two differ."""
    if "namespace" not in job.metadata.model_fields_set:
        return asked
    if asked not in (None, job.metadata.namespace):
        raise BadInput(
            [f"{source}: metadata.namespace: is {job.metadata.namespace}, and --namespace says {asked}; leave one out"]
        )
    return job.metadata.namespace


def document(job: HFTitanJob, namespace: str) -> dict[str, Any]:
    """What the user wrote and no defaults of ours: those are the cluster's to fill in."""
    meta = job.metadata
    metadata: dict[str, Any] = {"name": meta.name, "namespace": namespace}
    metadata |= {key: dict(value) for key in ("labels", "annotations") if (value := getattr(meta, key))}
    spec = job.spec.model_dump(mode="json", by_alias=True, exclude_unset=True, exclude_none=True)
    return {"apiVersion": API_VERSION, "kind": KIND, "metadata": metadata, "spec": spec}
