"""Computes the mesh plan from a spec, and applies every arithmetic rule of the mesh.

World size = nodes x gpusPerNode = dpReplicate x dpShard x cp x tp x pp. The layout of ranks is torchtitan's
(`ParallelDims.build_mesh`): pp is outermost, then dp_replicate, dp_shard, cp, and tp innermost, so that consecutive
ranks form a tensor-parallel group. Experts use a second view of the same ranks: (pp, dp_replicate, efsdp, ep), where
efsdp x ep = dp_shard x cp x tp and ep is innermost.

`check` returns every problem; `plan` raises the first one. Both are pure: no files, clock or network.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from hftitan_api import rules
from hftitan_api.models import JobSpec
from hftitan_api.rules import SpecError
from hftitan_api.shape import ModelShape
from hftitan_api.wire import MeshDegrees

__all__ = ["AXES", "MeshPlan", "SpecError", "check", "plan"]

AXES = ("pp", "dp_replicate", "dp_shard", "cp", "tp")
"""The axes of the dense mesh, outermost first. The product of their degrees is the world size."""


@dataclass(frozen=True, slots=True)
class MeshPlan:
    """A valid mesh: degrees, layout of the ranks, and the batch of a step."""

    degrees: MeshDegrees
    global_batch_size: int
    """Sequences per optimizer step, over all ranks."""
    gradient_accumulation_steps: int
    """Forward and backward passes per optimizer step, on each data-parallel rank."""
    tokens_per_step: int
    """global_batch_size x seqLen."""

    @property
    def world_size(self) -> int:
        return self.degrees.world_size

    def degree(self, axis: str) -> int:
        """Return the size of an axis: one of AXES, `ep`, or `efsdp` (shards of an expert's weights).

        Raises ValueError for any other axis.
        """
        d = self.degrees
        if axis == "efsdp":
            return d.dp_shard * d.cp * d.tp // d.ep
        if axis not in (*AXES, "ep"):
            raise ValueError(f"no axis {axis!r}; the axes are {', '.join((*AXES, 'efsdp', 'ep'))}")
        return int(getattr(d, axis))

    def coordinates(self, rank: int) -> dict[str, int]:
        """Return the position of a global rank on every axis of AXES, outermost first.

        Raises IndexError for a rank outside the world.
        """
        if not 0 <= rank < self.world_size:
            raise IndexError(f"rank {rank} is outside the world of {self.world_size}")
        found: dict[str, int] = {}
        for axis in reversed(AXES):
            rank, found[axis] = divmod(rank, self.degree(axis))
        return {axis: found[axis] for axis in AXES}

    def rank_of(self, coordinates: Mapping[str, int]) -> int:
        """Return the global rank at a position: the inverse of `coordinates`."""
        rank = 0
        for axis in AXES:
            rank = rank * self.degree(axis) + coordinates[axis]
        return rank

    def groups(self, axis: str) -> tuple[tuple[int, ...], ...]:
        """Return the rank groups of an axis (AXES, `ep` or `efsdp`). Each rank is in exactly one group."""
        size = self.degree(axis)
        if axis in AXES:
            inner = math.prod(self.degree(a) for a in AXES[AXES.index(axis) + 1 :])
        else:
            inner = 1 if axis == "ep" else self.degrees.ep
        block = inner * size
        return tuple(
            tuple(range(start + offset, start + offset + block, inner))
            for start in range(0, self.world_size, block)
            for offset in range(inner)
        )

    def node_of(self, rank: int) -> int:
        """Return the index of the pod that runs a global rank. Raises IndexError for a rank outside the world."""
        if not 0 <= rank < self.world_size:
            raise IndexError(f"rank {rank} is outside the world of {self.world_size}")
        return rank // self.degrees.ranks_per_node

    def ranks_of(self, node: int) -> range:
        """Return the global ranks of a pod. Raises IndexError for a node outside the job."""
        per = self.degrees.ranks_per_node
        if not 0 <= node < self.degrees.nodes:
            raise IndexError(f"node {node} is outside the {self.degrees.nodes} nodes of the job")
        return range(node * per, (node + 1) * per)

    @property
    def summary(self) -> str:
        """A short text such as `2x8: dp4 tp4`: nodes x ranks per node, then the axes above 1, outermost first.

        FSDP is `dp4`, replication `rep4`, and both together (HSDP) `rep2 shard4`.
        """
        d = self.degrees
        hybrid = d.dp_replicate > 1 and d.dp_shard > 1
        named = (
            ("pp", d.pp),
            ("rep", d.dp_replicate),
            ("shard" if hybrid else "dp", d.dp_shard),
            ("cp", d.cp),
            ("tp", d.tp),
            ("ep", d.ep),
        )
        axes = " ".join(f"{name}{degree}" for name, degree in named if degree > 1)
        size = f"{d.nodes}x{d.ranks_per_node}"
        return f"{size}: {axes}" if axes else size


def plan(spec: JobSpec, model_config: Mapping[str, Any] | None = None) -> MeshPlan:
    """Return the mesh plan of a job.

    `model_config` is the model's config.json, if known; the job's overrides are applied to it. Raises the first
    SpecError of `check`.
    """
    problems = check(spec, model_config)
    if problems:
        raise problems[0]
    dp_shard = rules.resolved_dp_shard(spec)
    assert dp_shard is not None
    mesh, training = spec.mesh, spec.training
    degrees = MeshDegrees(
        nodes=mesh.nodes,
        ranks_per_node=mesh.gpus_per_node,
        dp_replicate=mesh.dp_replicate,
        dp_shard=dp_shard,
        cp=mesh.cp,
        tp=mesh.tp,
        pp=mesh.pp,
        ep=mesh.ep,
        device=mesh.device,
    )
    one_pass = training.local_batch_size * degrees.dp
    global_batch = training.global_batch_size or one_pass
    return MeshPlan(degrees, global_batch, global_batch // one_pass, global_batch * training.seq_len)


def check(spec: JobSpec, model_config: Mapping[str, Any] | None = None) -> list[SpecError]:
    """Return every problem of the job's mesh, batch and sequence."""
    found: list[SpecError] = []
    batches = (rules.batch, rules.sequence, rules.pipeline, rules.float8)
    for rule in (rules.product, rules.inside_a_node, *batches, rules.other):
        found += rule(spec)
    if model_config is not None:
        found += rules.model(spec, ModelShape.from_config(model_config, spec.model.overrides))
    return found
