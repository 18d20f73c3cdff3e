"""Translates a rendered Pod manifest to a process on this machine. Reads no files and starts nothing.

The meaning of each field; any other field is refused by its path, never ignored:

| field | on this machine |
|---|---|
| command, args, env | unchanged; `$(VAR)` expanded as in Kubernetes; programs replaced by a table (`torchrun`) |
| env HOME in /tmp | the caller's HOME |
| env OMP_NUM_THREADS | the machine's cores divided by the ranks, unless job or caller set it |
| env valueFrom fieldRef | the pod's name, labels, annotations, its loopback address |
| env valueFrom secretKeyRef, configMapKeyRef | the caller's variable of the same name; refused if it is not set |
| volume `output` (HFTITAN_OUTPUT) | the work folder, whatever the subPath |
| volume `cache` (HF_HOME) | the caller's HF_HOME, or ~/.cache/huggingface |
| volumes: the job's own ConfigMap, emptyDir | a folder in the work folder |
| emptyDir at /dev/shm or /tmp | the machine's /dev/shm or /tmp |
| volumes: claim, secret, other ConfigMaps | the folder given by `--volume NAME=FOLDER`; refused without it |
| volumeMounts | environment values below a mountPath are rewritten to the folder, with subPath |
| resources.limits of gpuResource | that many devices (CUDA_VISIBLE_DEVICES); refused if the machine has fewer |
| image, imagePullPolicy, imagePullSecrets | accepted, no effect: there is no container |
| nodeSelector, tolerations, affinity, priority, other resources | accepted, no effect: there is one machine |
| schedulerName, schedulingGroup, and the PodGroup beside the pods | accepted, no effect: there is one machine |
| hostname, subdomain, service DNS | one loopback address per pod |
| securityContext, service account, probes, ports, labels, annotations | accepted; permissions are the caller's |
| terminationGracePeriodSeconds, terminationMessagePath | as in Kubernetes |
| runtimeClassName, initContainers, envFrom, anything else | refused |
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hftitan_api.wire import ENV_OUTPUT
from hftitan_operator.core.state import Manifest
from hftitan_operator.local.env import container_environment, expand, inherited, relocate
from hftitan_operator.local.machine import Machine, Place, Refused

OUTPUT_VOLUME = "output"
CACHE_VOLUME = "cache"

POD_FIELDS = frozenset(
    {
        "affinity", "automountServiceAccountToken", "containers", "enableServiceLinks", "hostname", "imagePullSecrets",
        "nodeSelector", "priorityClassName", "restartPolicy", "schedulerName", "schedulingGroup", "securityContext",
        "setHostnameAsFQDN", "subdomain", "terminationGracePeriodSeconds", "tolerations", "topologySpreadConstraints",
        "volumes",
    }
)  # fmt: skip
CONTAINER_FIELDS = frozenset(
    {
        "args", "command", "env", "image", "imagePullPolicy", "livenessProbe", "name", "ports", "readinessProbe",
        "resources", "securityContext", "startupProbe", "terminationMessagePath", "terminationMessagePolicy",
        "volumeMounts",
    }
)  # fmt: skip
MACHINE_FOLDERS = ("/dev/shm", "/tmp")
"""Mount paths where an emptyDir needs no folder, because the machine's own folder is used."""


@dataclass(frozen=True, slots=True)
class Launch:
    """A process to start."""

    argv: tuple[str, ...]
    env: dict[str, str]
    cwd: Path
    folders: tuple[Path, ...]
    """Folders to create before the start."""
    termination_log: Path
    grace_seconds: int


def gpu_count(manifest: Manifest, resource: str) -> int:
    """Return the number of devices that the pod requests."""
    limits = manifest["spec"]["containers"][0].get("resources", {}).get("limits", {})
    return int(limits.get(resource, 0))


def translate(manifest: Manifest, machine: Machine, place: Place, job_configs: frozenset[str] = frozenset()) -> Launch:
    """Return the process to start for a pod. `job_configs` names the ConfigMaps of the job itself.

    Raises `Refused` for a field that is not supported.
    """
    spec = manifest["spec"]
    _only(spec, POD_FIELDS, "pod.spec")
    containers = spec["containers"]
    if len(containers) != 1:
        raise Refused("pod.spec.containers", f"one container expected, got {len(containers)}")
    container = containers[0]
    where = "pod.spec.containers[0]"
    _only(container, CONTAINER_FIELDS, where)

    name = manifest["metadata"]["name"]
    pod_folder = machine.pod_folder(name)
    sources = {
        volume["name"]: _source(volume, f"pod.spec.volumes[{i}]", machine, pod_folder, job_configs)
        for i, volume in enumerate(spec.get("volumes", []))
    }
    scratch = {volume["name"] for volume in spec.get("volumes", []) if "emptyDir" in volume}
    mounts: dict[str, Path] = {}
    for i, mount in enumerate(container.get("volumeMounts", [])):
        path = mount["mountPath"].rstrip("/") or "/"
        if mount["name"] not in sources:
            raise Refused(f"{where}.volumeMounts[{i}].name", f"no volume {mount['name']!r}")
        if mount["name"] in scratch and path in MACHINE_FOLDERS:
            continue
        source = sources[mount["name"]]
        inner = mount.get("subPath") if mount["name"] not in (OUTPUT_VOLUME, CACHE_VOLUME) else None
        mounts[path] = source / inner if inner else source

    log = pod_folder / "termination-log"
    log_path = container.get("terminationMessagePath", "/dev/termination-log")
    rendered = container_environment(container.get("env", []), f"{where}.env", manifest, machine, place)
    paths = {key: relocate(value, mounts, log_path, log) for key, value in rendered.items()}
    if "HOME" in rendered and rendered["HOME"] in MACHINE_FOLDERS and "HOME" in machine.environ:
        paths["HOME"] = machine.environ["HOME"]
    # These two are the folders themselves, whatever subPath the manifest uses.
    for variable, volume, folder in (
        ("HF_HOME", CACHE_VOLUME, machine.cache),
        (ENV_OUTPUT, OUTPUT_VOLUME, machine.workdir),
    ):
        if variable in rendered and volume in sources:
            paths[variable] = str(folder)
    words = [expand(word, rendered) for word in [*container.get("command", []), *container.get("args", [])]]
    if not words:
        raise Refused(f"{where}.command", "a command is required: a local run has no image to take it from")
    program = machine.programs.get(words[0])
    argv = [*program, *words[1:]] if program else words

    env = inherited(machine.environ) | paths | _overrides(manifest, machine, place)
    folders = [pod_folder, machine.rank_logs(name), *mounts.values()]
    return Launch(
        argv=tuple(argv),
        env=env,
        cwd=pod_folder,
        folders=tuple(dict.fromkeys(folders)),
        termination_log=log,
        grace_seconds=int(spec.get("terminationGracePeriodSeconds", 30)),
    )


def _overrides(manifest: Manifest, machine: Machine, place: Place) -> dict[str, str]:
    """Return the variables that a local run sets: addresses, devices, threads, the log folder, the tag of the run."""
    name = manifest["metadata"]["name"]
    count = gpu_count(manifest, machine.gpu_resource)
    if place.first_gpu + count > len(machine.gpus):
        raise Refused(
            "spec.mesh.gpusPerNode", f"needs {place.first_gpu + count} GPUs, but this machine has {len(machine.gpus)}"
        )
    threads = {} if machine.threads is None else {"OMP_NUM_THREADS": str(machine.threads)}
    return threads | {
        "CUDA_VISIBLE_DEVICES": ",".join(machine.gpus[place.first_gpu : place.first_gpu + count]),
        "GLOO_SOCKET_IFNAME": "lo",
        "NCCL_SOCKET_IFNAME": "lo",
        "PET_LOCAL_ADDR": place.address,
        "PET_RDZV_ENDPOINT": place.rendezvous,
        "PYTHON_EXEC": str(machine.rank_script),
        "HFTITAN_LOCAL_LOGS": str(machine.rank_logs(name)),
        "HFTITAN_LOCAL_WORKDIR": str(machine.workdir),
        "HFTITAN_LOCAL_POD": place.uid,
    }


def _only(fields: Mapping[str, Any], allowed: frozenset[str], where: str) -> None:
    for key in fields:
        if key not in allowed:
            raise Refused(f"{where}.{key}", "is not supported by `hftitan run`")


def _source(
    volume: Mapping[str, Any], where: str, machine: Machine, pod_folder: Path, job_configs: frozenset[str]
) -> Path:
    """Return the folder behind a volume."""
    name: str = volume["name"]
    if name == OUTPUT_VOLUME:
        return machine.workdir
    if name == CACHE_VOLUME:
        return machine.cache
    if name in machine.volumes:
        return machine.volumes[name]
    if "emptyDir" in volume:
        return pod_folder / "volumes" / name
    config: str | None = volume.get("configMap", {}).get("name")
    if config in job_configs:
        return machine.config_folder(config)
    kind = next((key for key in volume if key != "name"), "no source")
    raise Refused(where, f"volume {name!r} ({kind}) is not on this machine; map it to a folder: --volume {name}=FOLDER")
