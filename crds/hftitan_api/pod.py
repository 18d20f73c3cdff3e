"""The fields that a job may set on its pods."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from hftitan_api.affinity import Affinity
from hftitan_api.base import (
    INT32_MAX,
    AbsolutePath,
    ApiModel,
    ConfigMapKey,
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
    """Source of the variable's value. Set exactly one field."""

    secret_key_ref: SecretKey | None = None
    config_map_key_ref: ConfigMapKey | None = None


class EnvVar(ApiModel):
    """An environment variable. Set either value or valueFrom."""

    name: EnvName
    """Name of the variable."""
    value: Annotated[str, Field(max_length=32_768)] | None = None
    """Value as text."""
    value_from: EnvSource | None = None


class Toleration(ApiModel):
    """A toleration, as in a Kubernetes pod."""

    key: Annotated[str, Field(max_length=317)] | None = None
    """Key of the taint. Unset: all taints, with operator Exists."""
    operator: Literal["Exists", "Equal"] | None = None
    """`Exists` ignores the taint's value. Unset: Equal."""
    value: Annotated[str, Field(max_length=63)] | None = None
    """Value of the taint. Only with operator Equal."""
    effect: Literal["NoSchedule", "PreferNoSchedule", "NoExecute"] | None = None
    """Effect of the taint. Unset: all effects."""
    toleration_seconds: Annotated[int, Field(ge=0, le=INT32_MAX)] | None = None
    """Seconds until the pod is evicted. Only with effect NoExecute. Unset: never."""


class ClaimSource(ApiModel):
    """A PersistentVolumeClaim in the job's namespace."""

    claim_name: Name
    """Name of the PersistentVolumeClaim."""
    read_only: bool | None = None
    """Mount the volume read-only. Unset: false."""


class ConfigMapSource(ApiModel):
    """A ConfigMap in the job's namespace."""

    name: Name
    """Name of the ConfigMap."""
    optional: bool | None = None
    """Start the pod even if the ConfigMap does not exist. Unset: false."""


class SecretSource(ApiModel):
    """A Secret in the job's namespace."""

    secret_name: Name
    """Name of the Secret."""
    optional: bool | None = None
    """Start the pod even if the Secret does not exist. Unset: false."""


class EmptyDirSource(ApiModel):
    """An empty folder that is deleted with the pod."""

    medium: Literal["", "Memory"] | None = None
    """`Memory` uses RAM and counts against the memory limit. Unset or empty: the node's disk."""
    size_limit: Quantity | None = None
    """Maximum size. Unset: no limit."""


class Volume(ApiModel):
    """A volume of the pods. Set exactly one source. hostPath is not available, because it gives access to the node."""

    name: VolumeName
    """Name of the volume."""
    persistent_volume_claim: ClaimSource | None = None
    config_map: ConfigMapSource | None = None
    secret: SecretSource | None = None
    empty_dir: EmptyDirSource | None = None


class VolumeMount(ApiModel):
    """Mounts a volume into the trainer container."""

    name: VolumeName
    """Name of a volume in spec.pod.volumes."""
    mount_path: AbsolutePath
    """Absolute path in the container."""
    sub_path: Subpath | None = None
    """Folder or file in the volume to mount. Unset: the whole volume."""
    read_only: bool | None = None
    """Mount read-only. Unset: false."""


class Resources(ApiModel):
    """Requests and limits of the trainer container, without the GPUs. GPUs come from mesh.gpusPerNode."""

    requests: Annotated[dict[LabelKey, Quantity], Field(max_length=16)] = Field(default_factory=dict)
    """Requests. Unset: CPU and memory are derived from the mesh."""
    limits: Annotated[dict[LabelKey, Quantity], Field(max_length=16)] = Field(default_factory=dict)
    """Limits. Unset: no limits except for the GPUs."""


TRAINER_IMAGE = "ghcr.io/hftitan/trainer:0.1.0"


class PodDefaults(ApiModel):
    """Fields of spec.pod for which a cluster can set defaults."""

    image: ImageName | None = None
    """The trainer's image, or an image built from it. Unset: the cluster's default, or ghcr.io/hftitan/trainer:0.1.0 if
    the cluster has no default."""
    image_pull_policy: Literal["Always", "IfNotPresent", "Never"] | None = None
    """When to pull the image. Unset: the default of Kubernetes."""
    image_pull_secrets: Annotated[list[Name], Field(max_length=16)] = Field(default_factory=list)
    """Names of Secrets with registry credentials."""
    node_selector: LabelMap = Field(default_factory=dict)
    """Labels that a node must have to run the pods."""
    tolerations: Annotated[list[Toleration], Field(max_length=64)] = Field(default_factory=list)
    """Taints that the pods tolerate. The operator adds tolerations for the taint of gpuResource and, for 30 seconds,
    for nodes that are not ready or unreachable."""
    runtime_class_name: Name | None = None
    """RuntimeClass of the pods."""
    hf_token_secret: SecretKey | None = None
    """Secret with a Hugging Face token, for gated models and datasets. The pod gets it as HF_TOKEN."""
    cache_volume: Name | None = None
    """PersistentVolumeClaim for the cache of models and datasets (HF_HOME), so that they are downloaded only once. Must
    be ReadWriteMany if pods on several nodes use it. Unset: scratch space of each pod. `hftitan run` uses the cache of
    the user instead."""


class PodSpec(PodDefaults):
    """Settings of the pods. Only these fields are allowed: hostPath, hostNetwork, privileged mode and service accounts
    are not available."""

    gpu_resource: Annotated[str, Field(min_length=1, max_length=317, pattern=r"^[a-z0-9.-]+/[A-Za-z0-9._-]+$")] = (
        "nvidia.com/gpu"
    )
    """Resource name of a GPU, as defined by its device plugin. Request and limit are mesh.gpusPerNode."""
    resources: Resources = Field(default_factory=Resources)
    shm_size: Quantity | None = None
    """Size of /dev/shm. Counts against the memory limit. Unset: derived from the mesh."""
    affinity: Affinity | None = None
    env: Annotated[list[EnvVar], Field(max_length=128)] = Field(default_factory=list)
    """Environment variables of the trainer. Names that the operator or torchrun sets are rejected."""
    volumes: Annotated[list[Volume], Field(max_length=32)] = Field(default_factory=list)
    """Additional volumes: PersistentVolumeClaims, ConfigMaps, Secrets or empty folders."""
    volume_mounts: Annotated[list[VolumeMount], Field(max_length=32)] = Field(default_factory=list)
    """Paths at which the volumes are mounted."""
    labels: LabelMap = Field(default_factory=dict)
    """Labels to add to the pods."""
    annotations: LabelMap = Field(default_factory=dict)
    """Annotations to add to the pods."""
