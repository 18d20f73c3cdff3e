"""Rejects values of `spec.pod` that conflict with values set by the operator. No value is dropped or overridden."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from hftitan_api.mesh import SpecError
from hftitan_api.models import JobSpec
from hftitan_api.words import path_text
from hftitan_operator.core import naming

OUR_VOLUMES = ("config", "output", "shm", "cache", "tmp")
CONFIG_DIR = "/etc/hftitan"
OUTPUT_DIR = "/var/hftitan/output"
CACHE_DIR = "/var/hftitan/cache"
SHM_DIR = "/dev/shm"
TMP_DIR = "/tmp"
TERMINATION_LOG = "/dev/termination-log"
OUR_MOUNTS = (CONFIG_DIR, OUTPUT_DIR, CACHE_DIR, SHM_DIR, TMP_DIR, TERMINATION_LOG)
KERNEL_MOUNTS = ("/proc", "/sys")

RESERVED_ENV_PREFIXES = ("HFTITAN_", "PET_")
RESERVED_ENV = frozenset({"TORCH_DISABLE_SHARE_RDZV_TCP_STORE"})
RESERVED_LABELS = frozenset(naming.pod_labels("job", 1, 0))
KUBERNETES_DOMAINS = ("kubernetes.io", "k8s.io", "x-k8s.io")
HARMLESS = frozenset(
    {
        "app.kubernetes.io/part-of",
        "app.kubernetes.io/version",
        "cluster-autoscaler.kubernetes.io/safe-to-evict",
        "kubectl.kubernetes.io/default-container",
    }
)
"""The labels and annotations in Kubernetes' domains that a job may set. This is an allowlist: others disable seccomp
and AppArmor, put the pod into a queue, or are read by a controller that is installed later."""
SCHEDULER_DOMAINS = (
    "kueue.x-k8s.io",
    "scheduling.x-k8s.io",
    "scheduling.k8s.io",
    "scheduling.volcano.sh",
    "kai.scheduler",
)
"""Domains of labels and annotations from which gang schedulers read a pod's group and queue."""
SCHEDULER_KEYS = ("pod-group-name",)
"""The key of KAI Scheduler, which has no domain."""
RUNTIME_PREFIXES = ("io.kubernetes.", "io.katacontainers.", "io.containerd.", "dev.gvisor.", "run.oci.")
RUNTIME_DOMAINS = ("crio.io", "nri.io")
"""Annotations that container runtimes read: devices, mounts and sandbox settings that bypass the pod's fields."""


def problems(spec: JobSpec) -> list[SpecError]:
    """Return every conflict, in the order of the fields."""
    return [*_env(spec), *_volumes(spec), *_mounts(spec), *_metadata(spec), *_priority(spec), *_ports(spec)]


def _env(spec: JobSpec) -> Iterator[SpecError]:
    by_field = {}
    if spec.pod.hf_token_secret is not None:
        by_field["HF_TOKEN"] = "spec.pod.hfTokenSecret"
    if spec.monitoring.wandb_secret is not None:
        by_field["WANDB_API_KEY"] = "spec.monitoring.wandbSecret"
    seen: set[str] = set()
    for i, var in enumerate(spec.pod.env):
        path = f"spec.pod.env[{i}]"
        if var.name.startswith(RESERVED_ENV_PREFIXES) or var.name in RESERVED_ENV:
            yield SpecError(f"{path}.name", f"{var.name} is set by the operator; remove it")
        if var.name in by_field:
            yield SpecError(f"{path}.name", f"{var.name} is already set by {by_field[var.name]}; keep one of them")
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
            yield SpecError(f"{path}.name", f"{volume.name!r} is a volume of the operator; choose another name")
        if volume.name in seen:
            yield SpecError(f"{path}.name", f"{volume.name!r} is defined twice; keep one of them")
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
            yield SpecError(f"{path}.name", f"spec.pod.volumes has no volume {mount.name!r}; add it there")
        where = "/" + "/".join(part for part in mount.mount_path.split("/") if part not in ("", "."))
        if ":" in where or ".." in where.split("/"):
            yield SpecError(f"{path}.mountPath", f"{mount.mount_path} contains ':' or '..'; use a plain absolute path")
        if where in seen:
            yield SpecError(f"{path}.mountPath", f"{where} is mounted twice; keep one of them")
        seen.add(where)
        hidden = next((ours for ours in OUR_MOUNTS if _below(ours, where)), None)
        if hidden is None and _below(where, CONFIG_DIR):
            hidden = CONFIG_DIR
        if hidden is not None:
            yield SpecError(f"{path}.mountPath", f"{where} would hide the operator's {hidden}; mount it elsewhere")
        elif any(_below(where, kernel) for kernel in KERNEL_MOUNTS):
            yield SpecError(f"{path}.mountPath", f"{where} belongs to the kernel; mount it elsewhere")


def _below(path: str, folder: str) -> bool:
    return f"{path}/".startswith(f"{folder.rstrip('/')}/")


def _metadata(spec: JobSpec) -> Iterator[SpecError]:
    for field, keys in (("labels", spec.pod.labels), ("annotations", spec.pod.annotations)):
        for key in keys:
            wrong = _reserved_key(key)
            if wrong:
                yield SpecError(path_text(("spec", "pod", field, key)), wrong)


def _reserved_key(key: str) -> str | None:
    """Return why a job must not set this label or annotation, or None if it may."""
    domain = key.partition("/")[0]
    if key in RESERVED_LABELS or key.startswith(naming.GROUP_LABEL_PREFIX):
        return "is set by the operator; remove it"
    if key in HARMLESS:
        return None
    if key in SCHEDULER_KEYS or _of_domain(domain, SCHEDULER_DOMAINS):
        return "is read by gang schedulers; remove it, and use spec.scheduling"
    if _of_domain(domain, RUNTIME_DOMAINS) or key.startswith(RUNTIME_PREFIXES):
        return "changes how container runtimes run the pod; remove it"
    if "/" in key and _of_domain(domain, KUBERNETES_DOMAINS):
        return f"is reserved for Kubernetes; remove it (allowed are {', '.join(sorted(HARMLESS))})"
    return None


def _of_domain(domain: str, known: Iterable[str]) -> bool:
    return any(f".{domain}".endswith(f".{one}") for one in known)


def _priority(spec: JobSpec) -> Iterator[SpecError]:
    chosen = spec.scheduling.priority_class
    if chosen is not None and chosen.startswith("system-"):
        yield SpecError(
            "spec.scheduling.priorityClass",
            f"{chosen} would let the job preempt system pods; use another PriorityClass",
        )


def _ports(spec: JobSpec) -> Iterator[SpecError]:
    if spec.monitoring.port == naming.RENDEZVOUS_PORT:
        yield SpecError(
            "spec.monitoring.port",
            f"{naming.RENDEZVOUS_PORT} is torchrun's rendezvous port; use another, for example 9400",
        )
