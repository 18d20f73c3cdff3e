"""Adapts a job to this machine before a local run, or lists every reason why it cannot run here, by field.

Nothing starts before every check passes.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from hftitan_api.mesh import MeshPlan, SpecError
from hftitan_api.models import DatasetSpec, HFTitanJob, VolumeMount
from hftitan_operator.core import naming
from hftitan_operator.core.rendering import torchrun
from hftitan_operator.core.rendering.render import render
from hftitan_operator.local.machine import Machine, Place, Refused
from hftitan_operator.local.pod import translate
from hftitan_operator.net import free_port, loopback, port_is_free

AGENT: Sequence[str] = (sys.executable, "-m", "hftitan_trainer.process.agent")
"""Uses the running interpreter, so that neither PATH nor an activated environment matters."""
WORK_FOLDER = "work-folder"
"""Name of the checkpoint volume if the job sets none. `hftitan run` always keeps checkpoints in the work folder."""


@dataclass(frozen=True, slots=True)
class Prepared:
    job: HFTitanJob
    machine: Machine
    notes: tuple[str, ...] = ()
    """Choices made for the user, to be printed."""


def localize(job: HFTitanJob, volumes: Mapping[str, Path]) -> HFTitanJob:
    """Return the job with a checkpoint volume, and with paths below mapped mounts replaced by local paths."""
    spec = job.spec
    mounts = [mount for mount in spec.pod.volume_mounts if mount.name in volumes]
    dataset = _move_dataset(spec.dataset, mounts, volumes)
    update: dict[str, object] = {
        "model": spec.model.model_copy(update={"name": _move(spec.model.name, mounts, volumes)}),
        "dataset": dataset,
        "checkpoint": spec.checkpoint.model_copy(update={"volume": spec.checkpoint.volume or WORK_FOLDER}),
    }
    if spec.validation is not None:
        held_out = _move_dataset(spec.validation.dataset, mounts, volumes)
        update["validation"] = spec.validation.model_copy(update={"dataset": held_out})
    return job.model_copy(update={"spec": spec.model_copy(update=update)})


def prepare(
    job: HFTitanJob,
    plan: MeshPlan,
    workdir: Path,
    *,
    environ: Mapping[str, str],
    volumes: Mapping[str, Path],
    programs: Mapping[str, Sequence[str]] | None = None,
) -> tuple[Prepared | None, list[SpecError]]:
    """Return what to run, or the problems. `job` is a job from `localize`, `plan` its mesh."""
    problems = [*_policy(job), *_volumes(job, volumes), *_secrets(job, environ), *_paths(job)]
    gpus = devices(environ) if plan.degrees.device == "gpu" else []
    if plan.degrees.device == "gpu" and plan.world_size > len(gpus):
        problems.append(
            SpecError(
                "spec.mesh.gpusPerNode",
                f"{plan.degrees.nodes} x {plan.degrees.ranks_per_node} = {plan.world_size} GPUs, but this machine has "
                f"{len(gpus)}; use fewer, or device: cpu",
            )
        )
    job, notes, port_problems = _port(job)
    problems += port_problems
    if problems:
        return None, problems
    set_by_job = (
        "OMP_NUM_THREADS" in {variable.name for variable in job.spec.pod.env}
        or "cpu" in job.spec.pod.resources.requests | job.spec.pod.resources.limits
    )
    requested = environ.get("OMP_NUM_THREADS", "")
    threads = int(requested) if requested.isdigit() else max(1, len(os.sched_getaffinity(0)) // plan.world_size)
    machine = Machine(
        workdir=workdir,
        environ=with_token(environ),
        programs=programs or {torchrun.AGENT: AGENT},
        volumes=volumes,
        gpu_resource=job.spec.pod.gpu_resource,
        gpus=tuple(gpus),
        threads=None if set_by_job else threads,
    )
    # Translate the manifests as well, to refuse fields that the checks above do not cover.
    configs = frozenset({naming.config_name(job.metadata.name)})
    try:
        for manifest in render(job, plan, 1).pods:
            translate(manifest, machine, Place("check", "127.0.0.1", "127.0.0.1:1"), configs)
    except Refused as refused:
        return None, [SpecError(refused.path, refused.message)]
    return Prepared(job, machine, notes), []


def devices(environ: Mapping[str, str]) -> list[str]:
    """Return the GPUs that a local run may use, as in CUDA_VISIBLE_DEVICES: the caller's choice, else all."""
    chosen = environ.get("CUDA_VISIBLE_DEVICES")
    if chosen is not None:
        return [word.strip() for word in chosen.split(",") if word.strip() and word.strip() != "-1"]
    try:
        listed = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, timeout=20, check=True).stdout
    except (OSError, subprocess.SubprocessError):
        return []
    return [str(i) for i, _ in enumerate(line for line in listed.splitlines() if line.startswith("GPU "))]


def with_token(environ: Mapping[str, str]) -> dict[str, str]:
    """Return the environment, with HF_TOKEN from `hf auth login` if it is not set."""
    found = dict(environ)
    if not found.get("HF_TOKEN"):
        stored = Path(found.get("HF_TOKEN_PATH") or Machine(Path(), found, {}).cache / "token")
        try:
            found["HF_TOKEN"] = stored.read_text(encoding="utf-8").strip()
        except OSError:
            found.pop("HF_TOKEN", None)
    return found


# --- the checks ---------------------------------------------------------------------------------------------


def _policy(job: HFTitanJob) -> Iterator[SpecError]:
    if job.spec.run_policy.suspend:
        yield SpecError(
            "spec.runPolicy.suspend", "a suspended local run would never be resumed; remove it, or set it to false"
        )
    if job.spec.pod.runtime_class_name:
        yield SpecError(
            "spec.pod.runtimeClassName",
            f"a local run cannot isolate pods with {job.spec.pod.runtime_class_name!r}; remove it to run locally",
        )


def _volumes(job: HFTitanJob, volumes: Mapping[str, Path]) -> Iterator[SpecError]:
    names = [volume.name for volume in job.spec.pod.volumes]
    for name, folder in volumes.items():
        if name not in names:
            known = ", ".join(names) or "none"
            yield SpecError("--volume", f"{name}: no such volume in spec.pod.volumes; existing: {known}")
        elif not folder.is_dir():
            yield SpecError("--volume", f"{name}: {folder} is not a folder")
    for i, volume in enumerate(job.spec.pod.volumes):
        if volume.name not in volumes and volume.empty_dir is None:
            yield SpecError(
                f"spec.pod.volumes[{i}]",
                f"{volume.name!r} exists only on a cluster; map it to a folder: --volume {volume.name}=FOLDER",
            )


def _secrets(job: HFTitanJob, environ: Mapping[str, str]) -> Iterator[SpecError]:
    found = with_token(environ)
    fix = "exists only on a cluster; for a local run, set {name} in the environment"
    if job.spec.pod.hf_token_secret and not found.get("HF_TOKEN"):
        yield SpecError("spec.pod.hfTokenSecret", fix.format(name="HF_TOKEN") + ", or run `hf auth login`")
    if job.spec.monitoring.wandb_secret and not found.get("WANDB_API_KEY"):
        yield SpecError("spec.monitoring.wandbSecret", fix.format(name="WANDB_API_KEY"))
    for i, variable in enumerate(job.spec.pod.env):
        if variable.value_from is not None and variable.name not in found:
            yield SpecError(f"spec.pod.env[{i}].valueFrom", fix.format(name=variable.name))


def _paths(job: HFTitanJob) -> Iterator[SpecError]:
    spec = job.spec
    model = spec.model.name
    if model.startswith("/") and not Path(model, "config.json").is_file():
        what = "has no config.json" if Path(model).is_dir() else "is not a folder on this machine"
        yield SpecError("spec.model.name", f"{model} {what}; use a model folder or a hub id")
    datasets = [("spec.dataset.path", spec.dataset)]
    if spec.validation is not None:
        datasets.append(("spec.validation.dataset.path", spec.validation.dataset))
    for field, dataset in datasets:
        if dataset.path is not None and not Path(dataset.path).exists():
            yield SpecError(field, f"{dataset.path} is not on this machine; use an existing file or folder")


def _port(job: HFTitanJob) -> tuple[HFTitanJob, tuple[str, ...], list[SpecError]]:
    """Return the job with a port that its pods can serve on. A port set by the user is never changed."""
    monitoring = job.spec.monitoring
    if port_is_free(loopback(f"probe {os.getpid()}", 0), monitoring.port):
        return job, (), []
    if "port" in monitoring.model_fields_set:
        taken = f"{monitoring.port} is in use on this machine by a server on all addresses; use another, such as "
        return job, (), [SpecError("spec.monitoring.port", f"{taken}{free_port()}")]
    port = free_port()
    monitoring = monitoring.model_copy(update={"port": port})
    spec = job.spec.model_copy(update={"monitoring": monitoring})
    note = f"port {job.spec.monitoring.port} is in use on this machine: /metrics and /progress are on port {port}"
    return job.model_copy(update={"spec": spec}), (note,), []


# --- paths below mounts -------------------------------------------------------------------------------------


def _move_dataset(dataset: DatasetSpec, mounts: Sequence[VolumeMount], volumes: Mapping[str, Path]) -> DatasetSpec:
    if dataset.path is None:
        return dataset
    return dataset.model_copy(update={"path": _move(dataset.path, mounts, volumes)})


def _move(path: str, mounts: Sequence[VolumeMount], volumes: Mapping[str, Path]) -> str:
    """Return the path on this machine of a path in the pods, if it is below a mapped mount."""
    for mount in sorted(mounts, key=lambda mount: len(mount.mount_path), reverse=True):
        root = mount.mount_path.rstrip("/")
        if path == root or path.startswith(root + "/"):
            folder = volumes[mount.name] / (mount.sub_path or "")
            return str(folder / path[len(root) :].lstrip("/"))
    return path
