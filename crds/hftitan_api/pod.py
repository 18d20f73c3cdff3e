"""The fields that a job may set on its pods."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from hftitan_api.affinity import Affinity
from hftitan_api.base import (
    INT32_MAX,
    AbsolutePath,
    ApiModel,
    EnvName,
    ImageName,
    LabelKey,
    LabelMap,
    Name,
    Quantity,
    SecretKey,
    Subpath,
    VolumeName,
)


class EnvSource(ApiModel):
    """Where a variable's value comes from: one of them."""

    secret_key_ref: SecretKey | None = None
    config_map_key_ref: SecretKey | None = None


class EnvVar(ApiModel):
    name: EnvName
    value: Annotated[str, Field(max_length=32_768)] | None = None
    value_from: EnvSource | None = None


class Toleration(ApiModel):
    key: Annotated[str, Field(max_length=317)] | None = None
    operator: Literal["Exists", "Equal"] | None = None
    value: Annotated[str, Field(max_length=63)] | None = None
    effect: Literal["NoSchedule", "PreferNoSchedule", "NoExecute"] | None = None
    toleration_seconds: Annotated[int, Field(ge=0, le=INT32_MAX)] | None = None


class ClaimSource(ApiModel):
    claim_name: Name
    read_only: bool | None = None


class ConfigMapSource(ApiModel):
    name: Name
    optional: bool | None = None


class SecretSource(ApiModel):
    secret_name: Name
    optional: bool | None = None


class EmptyDirSource(ApiModel):
    medium: Literal["", "Memory"] | None = None
    size_limit: Quantity | None = None


class Volume(ApiModel):
    """A volume of the pods: exactly one source. No hostPath: it is a way out of the pod."""

    name: VolumeName
    persistent_volume_claim: ClaimSource | None = None
    config_map: ConfigMapSource | None = None
    secret: SecretSource | None = None
    empty_dir: EmptyDirSource | None = None


class VolumeMount(ApiModel):
    name: VolumeName
    mount_path: AbsolutePath
    sub_path: Subpath | None = None
    read_only: bool | None = None


class Resources(ApiModel):
    """Requests and limits of the trainer container beside the GPUs, which come from the mesh."""

    requests: Annotated[dict[LabelKey, Quantity], Field(max_length=16)] = Field(default_factory=dict)
    """Unset: from the mesh."""
    limits: Annotated[dict[LabelKey, Quantity], Field(max_length=16)] = Field(default_factory=dict)
    """None unless set, but for the GPUs."""


TRAINER_IMAGE = "ghcr.io/hftitan/trainer:0.1.0"


class PodDefaults(ApiModel):
    """What of spec.pod a cluster may set for the jobs that leave it out."""

    image: ImageName | None = None
    """Image of the trainer, or one built from it. Unset: the cluster's default, and without one
    ghcr.io/hftitan/trainer:0.1.0."""
    image_pull_policy: Literal["Always", "IfNotPresent", "Never"] | None = None
    """Kubernetes' own default when unset."""
    image_pull_secrets: Annotated[list[Name], Field(max_length=16)] = Field(default_factory=list)
    """Names of secrets with credentials of a registry."""
    node_selector: LabelMap = Field(default_factory=dict)
    """Labels of the nodes that the pods may go to."""
    tolerations: Annotated[list[Toleration], Field(max_length=64)] = Field(default_factory=list)
    """Taints that the pods bear, beside those of GPUs and of nodes that go silent, which are set."""
    runtime_class_name: Name | None = None
    """RuntimeClass of the pods."""
    hf_token_secret: SecretKey | None = None
    """Hugging Face token, for gated models and datasets; reaches the pod as HF_TOKEN by reference."""
    cache_volume: Name | None = None
    """A PersistentVolumeClaim for the cache of models and datasets (HF_HOME), so that they are downloaded once;
    ReadWriteMany when pods of several nodes share it. Unset: each pod's own scratch space. `hftitan run` uses the cache
    of its user instead."""


class PodSpec(PodDefaults):
    """What may be said about the pods. An allowlist: no hostPath, hostNetwork, privileged mode or service account."""

    gpu_resource: Annotated[str, Field(min_length=1, max_length=317, pattern=r"^[a-z0-9.-]+/[A-Za-z0-9._-]+$")] = (
        "nvidia.com/gpu"
    )
    """Resource that a GPU is asked for by; its limit is mesh.gpusPerNode."""
    resources: Resources = Field(default_factory=Resources)
    shm_size: Quantity | None = None
    """Size of /dev/shm. Unset: from the mesh."""
    affinity: Affinity | None = None
    env: Annotated[list[EnvVar], Field(max_length=128)] = Field(default_factory=list)
    """Environment variables of the trainer; names that the operator sets itself are refused."""
    volumes: Annotated[list[Volume], Field(max_length=32)] = Field(default_factory=list)
    """Volumes beside those of the job itself: claims, config maps, secrets, empty folders."""
    volume_mounts: Annotated[list[VolumeMount], Field(max_length=32)] = Field(default_factory=list)
    """Where they are in the pod."""
    labels: LabelMap = Field(default_factory=dict)
    """Added to the pods."""
    annotations: LabelMap = Field(default_factory=dict)
    """Added to the pods."""
