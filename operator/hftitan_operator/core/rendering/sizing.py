"""Computes sizes of a pod from the mesh and the checkpoint: /dev/shm, requests, threads, grace period."""

from __future__ import annotations

from fractions import Fraction

from hftitan_api.mesh import SpecError
from hftitan_api.models import CheckpointSpec, PodSpec
from hftitan_api.wire import MeshDegrees
from hftitan_operator.core.rendering import quantity

SHM_PER_COMMUNICATOR = 64 * quantity.MIB
"""NCCL uses about 33 MB for each communicator and rank; twice that leaves room for point-to-point channels."""
SHM_PER_CPU_RANK = 64 * quantity.MIB
"""gloo uses sockets; only the data loader's workers use shared memory."""

CPU_PER_GPU, MEMORY_PER_GPU = 4, 16 * quantity.GIB
CPU_PER_CPU_RANK, MEMORY_PER_CPU_RANK = 1, 2 * quantity.GIB

GRACE_STEP_SECONDS = 60
"""To finish the current step and agree on it over all ranks."""
GRACE_AGENT_SECONDS = 30
"""For torchrun and the Python processes to exit; the last SHUTDOWN_MARGIN_SECONDS are for torchrun only."""
GRACE_SAVE_SECONDS = 300
"""To write one checkpoint to a network volume."""
GRACE_SCRATCH_SAVE_SECONDS = 30
"""Scratch space is deleted with the pod, so a long wait is not useful."""
SHUTDOWN_MARGIN_SECONDS = 15
DRAIN_GRACE_SECONDS = 15
"""For the pods of a failed gang: its ranks can no longer agree on a step, so they do not save."""


def shm(pod: PodSpec, mesh: MeshDegrees) -> int:
    """Return the size of /dev/shm in bytes: the user's, or the one that the mesh needs. Raises SpecError below 1Mi."""
    if pod.shm_size is None:
        return shm_bytes(mesh)
    size = _parse("spec.pod.shmSize", pod.shm_size)
    if size < quantity.MIB:
        raise SpecError("spec.pod.shmSize", f"{pod.shm_size} is too small; use at least 1Mi, or omit it")
    return int(size)


def _parse(path: str, text: str) -> Fraction:
    value = quantity.parse(text)
    if value > quantity.LARGEST:
        raise SpecError(path, f"{text} is too large for Kubernetes; use at most {quantity.LARGEST}")
    return value


def shm_bytes(mesh: MeshDegrees) -> int:
    """Return the size of /dev/shm in bytes, whole GiB on GPUs.

    A rank has one communicator for the world, one for the loss and one for each axis in use.
    """
    if mesh.device == "cpu":
        return max(256 * quantity.MIB, mesh.ranks_per_node * SHM_PER_CPU_RANK)
    axes = sum(degree > 1 for degree in (mesh.dp_replicate, mesh.dp_shard, mesh.cp, mesh.tp, mesh.pp, mesh.ep))
    size = mesh.ranks_per_node * (2 + axes) * SHM_PER_COMMUNICATOR
    return -(-size // quantity.GIB) * quantity.GIB


def grace_seconds(checkpoint: CheckpointSpec) -> int:
    """Return terminationGracePeriodSeconds: the step in progress, the agreement on it, and the save after SIGTERM.

    With asyncMode the save counts twice, because the trainer first waits for an earlier save in progress.
    """
    if checkpoint.volume is None:
        save = GRACE_SCRATCH_SAVE_SECONDS
    else:
        save = GRACE_SAVE_SECONDS * (1 if checkpoint.async_mode == "disabled" else 2)
    return GRACE_STEP_SECONDS + GRACE_AGENT_SECONDS + save


def resources(pod: PodSpec, mesh: MeshDegrees, shm: int) -> dict[str, dict[str, str]]:
    """Return requests and limits of the trainer container.

    GPUs follow from the mesh. CPU and memory are requested so that the pod is not BestEffort; the memory includes
    /dev/shm, because a memory-backed volume counts as the pod's memory. Values set by the user take precedence. A limit
    without a request is also the request, as in the API server. Raises SpecError for impossible numbers.
    """
    for field, given in (("requests", pod.resources.requests), ("limits", pod.resources.limits)):
        if pod.gpu_resource in given:
            raise SpecError(
                f"spec.pod.resources.{field}",
                f"{pod.gpu_resource} is set by spec.mesh.gpusPerNode ({mesh.ranks_per_node}); remove it here",
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
            f"{limits['memory']} must be more than /dev/shm, which is part of it ({quantity.mebibytes(shm)}); "
            "raise it or set a smaller spec.pod.shmSize",
        )
    if gpu:
        # Extended resources are never overcommitted: request and limit must be equal.
        requests[pod.gpu_resource] = limits[pod.gpu_resource] = str(mesh.ranks_per_node)
    found = {"requests": requests, "limits": limits}
    return {kind: dict(sorted(values.items())) for kind, values in found.items() if values}


def threads_per_rank(requests: dict[str, str], mesh: MeshDegrees) -> int:
    """Return OMP_NUM_THREADS: requested cores per rank. Without it each rank would start a thread for every core."""
    return max(1, int(quantity.parse(requests["cpu"]) / mesh.ranks_per_node))
