"""Sizes of a pod that follow from the mesh and the checkpoint: /dev/shm, requests, threads, grace period."""

from __future__ import annotations

from fractions import Fraction

from hftitan_api.mesh import SpecError
from hftitan_api.models import CheckpointSpec, PodSpec
from hftitan_api.wire import MeshDegrees
from hftitan_operator.core import quantity

SHM_PER_COMMUNICATOR = 64 * quantity.MIB
"""NCCL takes about 33 MB for each communicator and rank; twice that leaves room for point-to-point channels."""
SHM_PER_CPU_RANK = 64 * quantity.MIB
"""gloo uses sockets; what is left are the data loader's workers."""

CPU_PER_GPU, MEMORY_PER_GPU = 4, 16 * quantity.GIB
CPU_PER_CPU_RANK, MEMORY_PER_CPU_RANK = 1, 2 * quantity.GIB

GRACE_STEP_SECONDS = 60
"""Finish the step that runs and agree on it over all ranks."""
GRACE_AGENT_SECONDS = 30
"""torchrun and the interpreters end; the last SHUTDOWN_MARGIN of it belongs to torchrun alone."""
GRACE_SAVE_SECONDS = 300
"""One checkpoint to a network volume."""
GRACE_SCRATCH_SAVE_SECONDS = 30
"""Scratch space is gone with the pod: nothing there is worth a long wait."""
SHUTDOWN_MARGIN_SECONDS = 15
DRAIN_GRACE_SECONDS = 15
"""For the pods of a gang that is broken already: their ranks cannot agree on a step any more, so none will be saved."""


def shm(pod: PodSpec, mesh: MeshDegrees) -> int:
    """Size of /dev/shm in bytes: the user's, or what the mesh needs. Raises SpecError for one that holds nothing."""
    if pod.shm_size is None:
        return shm_bytes(mesh)
    size = _parse("spec.pod.shmSize", pod.shm_size)
    if size < quantity.MIB:
        raise SpecError("spec.pod.shmSize", f"{pod.shm_size} is too small; use at least 1Mi, or leave it out")
    return int(size)


def _parse(path: str, text: str) -> Fraction:
    value = quantity.parse(text)
    if value > quantity.LARGEST:
        raise SpecError(path, f"{text} is more than Kubernetes can count; use at most {quantity.LARGEST}")
    return value


def shm_bytes(mesh: MeshDegrees) -> int:
    """Size of /dev/shm: a communicator for the world, one for the loss, one for each axis in use; whole GiB on GPUs."""
    if mesh.device == "cpu":
        return max(256 * quantity.MIB, mesh.ranks_per_node * SHM_PER_CPU_RANK)
    axes = sum(degree > 1 for degree in (mesh.dp_replicate, mesh.dp_shard, mesh.cp, mesh.tp, mesh.pp, mesh.ep))
    size = mesh.ranks_per_node * (2 + axes) * SHM_PER_COMMUNICATOR
    return -(-size // quantity.GIB) * quantity.GIB


def grace_seconds(checkpoint: CheckpointSpec) -> int:
    """terminationGracePeriodSeconds: a step, the agreement, and the save that follows SIGTERM.

    With asyncMode an earlier checkpoint may still be on its way to the volume and is waited for: the save counts twice.
    """
    if checkpoint.volume is None:
        save = GRACE_SCRATCH_SAVE_SECONDS
    else:
        save = GRACE_SAVE_SECONDS * (1 if checkpoint.async_mode == "disabled" else 2)
    return GRACE_STEP_SECONDS + GRACE_AGENT_SECONDS + save


def resources(pod: PodSpec, mesh: MeshDegrees, shm: int) -> dict[str, dict[str, str]]:
    """Requests and limits of the trainer container.

    GPUs come from the mesh; CPU and memory are requested so that the pod is not BestEffort, memory with /dev/shm on
    top since a memory-backed volume counts as the pod's memory. What the user says wins; a limit without a request is
    the request too (as the API server would have it). Raises SpecError for numbers that cannot hold.
    """
    for field, given in (("requests", pod.resources.requests), ("limits", pod.resources.limits)):
        if pod.gpu_resource in given:
            raise SpecError(
                f"spec.pod.resources.{field}",
                f"{pod.gpu_resource} comes from spec.mesh.gpusPerNode ({mesh.ranks_per_node}); remove it here",
            )
    gpu = mesh.device == "gpu"
    cpus = mesh.ranks_per_node * (CPU_PER_GPU if gpu else CPU_PER_CPU_RANK)
    memory = mesh.ranks_per_node * (MEMORY_PER_GPU if gpu else MEMORY_PER_CPU_RANK) + shm
    limits = dict(pod.resources.limits)
    requests = {"cpu": str(cpus), "memory": quantity.mebibytes(memory), **limits, **pod.resources.requests}
    for field, given in (("requests", pod.resources.requests), ("limits", limits)):
        for name, value in given.items():
            _parse(f"spec.pod.resources.{field}.{name}", value)
    for name, limit in limits.items():
        if quantity.parse(requests[name]) > quantity.parse(limit):
            raise SpecError(
                f"spec.pod.resources.requests.{name}",
                f"{requests[name]} is more than the limit {limit}; use at most {limit}",
            )
    if "memory" in limits and quantity.parse(limits["memory"]) <= shm:
        raise SpecError(
            "spec.pod.resources.limits.memory",
            f"{limits['memory']} does not hold the {quantity.mebibytes(shm)} of /dev/shm, which is part of it; "
            "raise it or set a smaller spec.pod.shmSize",
        )
    if gpu:
        # Extended resources are never overcommitted: request and limit must be equal.
        requests[pod.gpu_resource] = limits[pod.gpu_resource] = str(mesh.ranks_per_node)
    found = {"requests": requests, "limits": limits}
    return {kind: dict(sorted(values.items())) for kind, values in found.items() if values}


def threads_per_rank(requests: dict[str, str], mesh: MeshDegrees) -> int:
    """OMP_NUM_THREADS: the requested cores, shared out. Without it one process would start a thread for each core."""
    return max(1, int(quantity.parse(requests["cpu"]) / mesh.ranks_per_node))
