"""What of `spec.pod` would collide with what the operator sets: refused by path, never dropped or overridden."""

from __future__ import annotations

from collections.abc import Iterator

from hftitan_api.mesh import SpecError
from hftitan_api.models import JobSpec
from hftitan_operator.core import naming

OUR_VOLUMES = ("config", "output", "shm", "cache", "tmp")
CONFIG_DIR = "/etc/hftitan"
OUTPUT_DIR = "/var/hftitan/output"
CACHE_DIR = "/var/hftitan/cache"
SHM_DIR = "/dev/shm"
TMP_DIR = "/tmp"
OUR_MOUNTS = (CONFIG_DIR, OUTPUT_DIR, CACHE_DIR, SHM_DIR, TMP_DIR)

RESERVED_ENV_PREFIXES = ("HFTITAN_", "PET_", "TORCHELASTIC_")
RESERVED_LABELS = frozenset(naming.pod_labels("job", 1, 0))
UNCONFINED = ("container.apparmor.security.beta.kubernetes.io/", "seccomp.security.alpha.kubernetes.io/")
"""Annotations that would take the pod out of the `restricted` Pod Security level."""


def problems(spec: JobSpec) -> list[SpecError]:
    """Every collision, in the order of the fields."""
    return [*_env(spec), *_volumes(spec), *_mounts(spec), *_metadata(spec), *_ports(spec)]


def _env(spec: JobSpec) -> Iterator[SpecError]:
    by_field = {}
    if spec.pod.hf_token_secret is not None:
        by_field["HF_TOKEN"] = "spec.pod.hfTokenSecret"
    if spec.monitoring.wandb_secret is not None:
        by_field["WANDB_API_KEY"] = "spec.monitoring.wandbSecret"
    seen: set[str] = set()
    for i, var in enumerate(spec.pod.env):
        path = f"spec.pod.env[{i}]"
        if var.name.startswith(RESERVED_ENV_PREFIXES):
            yield SpecError(f"{path}.name", f"{var.name} is set by the operator; remove it")
        if var.name in by_field:
            yield SpecError(f"{path}.name", f"{var.name} comes from {by_field[var.name]} already; keep one of them")
        if var.name in seen:
            yield SpecError(f"{path}.name", f"{var.name} is set twice; keep one of them")
        seen.add(var.name)
        sources = [
            s
            for s in (var.value_from and [var.value_from.secret_key_ref, var.value_from.config_map_key_ref]) or []
            if s
        ]
        if var.value_from is not None and len(sources) != 1:
            yield SpecError(
                f"{path}.valueFrom", f"has {len(sources)} sources; give one: secretKeyRef or configMapKeyRef"
            )
        if var.value is not None and var.value_from is not None:
            yield SpecError(path, f"{var.name} has both value and valueFrom; keep one of them")


def _volumes(spec: JobSpec) -> Iterator[SpecError]:
    seen: set[str] = set()
    for i, volume in enumerate(spec.pod.volumes):
        path = f"spec.pod.volumes[{i}]"
        if volume.name in OUR_VOLUMES:
            yield SpecError(f"{path}.name", f"{volume.name!r} is a volume of the operator's; choose another name")
        if volume.name in seen:
            yield SpecError(f"{path}.name", f"{volume.name!r} is given twice; keep one of them")
        seen.add(volume.name)
        sources = (volume.persistent_volume_claim, volume.config_map, volume.secret, volume.empty_dir)
        count = sum(source is not None for source in sources)
        if count != 1:
            yield SpecError(
                path, f"has {count} sources; give exactly one of persistentVolumeClaim, configMap, secret, emptyDir"
            )


def _mounts(spec: JobSpec) -> Iterator[SpecError]:
    volumes = {volume.name for volume in spec.pod.volumes}
    seen: set[str] = set()
    for i, mount in enumerate(spec.pod.volume_mounts):
        path = f"spec.pod.volumeMounts[{i}]"
        if mount.name not in volumes:
            yield SpecError(f"{path}.name", f"no volume {mount.name!r} in spec.pod.volumes; add it there")
        where = mount.mount_path.rstrip("/") or "/"
        if ":" in where or ".." in where.split("/"):
            yield SpecError(
                f"{path}.mountPath", f"{mount.mount_path} has ':' or '..' in it; give a plain absolute path"
            )
        if where in seen:
            yield SpecError(f"{path}.mountPath", f"{where} is mounted twice; keep one of them")
        seen.add(where)
        for ours in OUR_MOUNTS:
            if (
                where == ours
                or ours.startswith(where.rstrip("/") + "/")
                or (ours == CONFIG_DIR and where.startswith(ours + "/"))
            ):
                yield SpecError(f"{path}.mountPath", f"{where} would hide the operator's {ours}; mount it elsewhere")
                break


def _metadata(spec: JobSpec) -> Iterator[SpecError]:
    for key in spec.pod.labels:
        if key in RESERVED_LABELS or key.startswith(naming.GROUP_LABEL_PREFIX):
            yield SpecError(f"spec.pod.labels[{key}]", "is set by the operator; remove it")
    for key in spec.pod.annotations:
        if key.startswith(naming.GROUP_LABEL_PREFIX):
            yield SpecError(f"spec.pod.annotations[{key}]", "belongs to the operator; remove it")
        if key.startswith(UNCONFINED):
            yield SpecError(
                f"spec.pod.annotations[{key}]", "would change the pod's confinement, which is RuntimeDefault; remove it"
            )


def _ports(spec: JobSpec) -> Iterator[SpecError]:
    if spec.monitoring.port == naming.RENDEZVOUS_PORT:
        yield SpecError(
            "spec.monitoring.port",
            f"{naming.RENDEZVOUS_PORT} is torchrun's rendezvous port; use another, for example 9400",
        )
