"""From spec to mesh plan: every arithmetic rule a job must obey before a device is bound.

World = nodes x gpusPerNode = dpReplicate x dpShard x cp x tp x pp. Ranks are laid out as torchtitan does
(`ParallelDims.build_mesh`): pp outermost, then dp_replicate, dp_shard, cp, and tp innermost, so that consecutive ranks
form a tensor-parallel group. Experts have a second view of the same ranks, (pp, dp_replicate, efsdp, ep), whose
innermost axis ep folds the inner part of dp_shard x cp x tp.

`check` returns every problem; `plan` raises the first of them. Both are pure: no files, clock or network.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from hftitan_api.models import JobSpec
from hftitan_api.shape import ModelShape
from hftitan_api.wire import MeshDegrees

AXES = ("pp", "dp_replicate", "dp_shard", "cp", "tp")
"""The axes of the dense mesh, outermost first; their degrees multiply to the world size."""
FLEX_BLOCK = 128
"""Queries in a block of the attention mask on GPUs; context parallelism hands out whole blocks."""

_FIELD = {"pp": "pp", "dp_replicate": "dpReplicate", "dp_shard": "dpShard", "cp": "cp", "tp": "tp"}


class SpecError(ValueError):
    """What the user asked for cannot be: `path` names the field (`spec.mesh.tp`), `message` the numbers and the fix."""

    def __init__(self, path: str, message: str) -> None:
        super().__init__(f"{path}: {message}")
        self.path = path
        self.message = message


@dataclass(frozen=True, slots=True)
class MeshPlan:
    """A mesh that fits: degrees, the layout of its ranks, and how a step's batch is cut."""

    degrees: MeshDegrees
    global_batch_size: int
    """Sequences for each optimizer step, over all ranks."""
    gradient_accumulation_steps: int
    """Forward and backward passes of each data-parallel rank for one optimizer step."""
    tokens_per_step: int
    """global_batch_size x seqLen."""

    @property
    def world_size(self) -> int:
        return self.degrees.world_size

    def degree(self, axis: str) -> int:
        """Size of an axis: one of AXES, `ep`, or `efsdp` (the shards of an expert's weights)."""
        d = self.degrees
        if axis == "efsdp":
            return d.dp_shard * d.cp * d.tp // d.ep
        if axis not in (*AXES, "ep"):
            raise ValueError(f"no axis {axis!r}; the axes are {', '.join((*AXES, 'efsdp', 'ep'))}")
        return int(getattr(d, axis))

    def coordinates(self, rank: int) -> dict[str, int]:
        """Position of a global rank on every axis of AXES, outermost first. IndexError outside the world."""
        if not 0 <= rank < self.world_size:
            raise IndexError(f"rank {rank} is outside the world of {self.world_size}")
        found: dict[str, int] = {}
        for axis in reversed(AXES):
            rank, found[axis] = divmod(rank, self.degree(axis))
        return {axis: found[axis] for axis in AXES}

    def rank_of(self, coordinates: Mapping[str, int]) -> int:
        """The global rank at a position; the inverse of `coordinates`."""
        rank = 0
        for axis in AXES:
            rank = rank * self.degree(axis) + coordinates[axis]
        return rank

    def groups(self, axis: str) -> tuple[tuple[int, ...], ...]:
        """The ranks that talk to each other along an axis (AXES, `ep` or `efsdp`): each rank is in exactly one group."""
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
        """Index of the pod that runs a global rank."""
        if not 0 <= rank < self.world_size:
            raise IndexError(f"rank {rank} is outside the world of {self.world_size}")
        return rank // self.degrees.ranks_per_node

    def ranks_of(self, node: int) -> range:
        """The global ranks of a pod."""
        per = self.degrees.ranks_per_node
        if not 0 <= node < self.degrees.nodes:
            raise IndexError(f"node {node} is outside the {self.degrees.nodes} of the job")
        return range(node * per, (node + 1) * per)

    @property
    def summary(self) -> str:
        """For humans: `2x8: dp4 tp4`, nodes x ranks each, then the axes above 1, outermost first.

        Pure FSDP is `dp4`, pure replication `rep4`, and both together (HSDP) `rep2 shard4`.
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
    """The mesh of a job.

    `model_config` is the model's config.json, when it is at hand; the job's overrides are applied to it. Raises the
    first SpecError of `check`, which callers that report to a human use to show all of them.
    """
    problems = check(spec, model_config)
    if problems:
        raise problems[0]
    dp_shard = _resolved_dp_shard(spec)
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
    """Every reason why the job's mesh, batch and sequence cannot be; empty when they can."""
    found = [*_product(spec), *_inside_a_node(spec), *_batch(spec), *_sequence(spec), *_pipeline(spec), *_other(spec)]
    if model_config is not None:
        shape = ModelShape.from_config({**model_config, **spec.model.overrides})
        found += _model(spec, shape)
    return found


# --- the rules ----------------------------------------------------------------------------------------------


def _resolved_dp_shard(spec: JobSpec) -> int | None:
    """dpShard with -1 filled up, or None when the axes do not multiply to the world."""
    mesh = spec.mesh
    world = mesh.nodes * mesh.gpus_per_node
    others = mesh.dp_replicate * mesh.cp * mesh.tp * mesh.pp
    if mesh.dp_shard == -1:
        return world // others if world % others == 0 else None
    return mesh.dp_shard if mesh.dp_shard * others == world else None


def _product(spec: JobSpec) -> Iterator[SpecError]:
    mesh = spec.mesh
    if mesh.dp_shard == 0:
        yield SpecError(
            "spec.mesh.dpShard", "0 is no number of shards; use -1 for all ranks the other axes leave, or 1"
        )
        return
    if _resolved_dp_shard(spec) is not None:
        return
    world = mesh.nodes * mesh.gpus_per_node
    ranks = f"the {_n(world, 'rank')} ({_n(mesh.nodes, 'node')} x {_n(mesh.gpus_per_node, _device(spec))})"
    product = 1
    for axis in ("tp", "cp", "pp", "dp_replicate"):
        degree = int(getattr(mesh, axis))
        if world % (product * degree):
            left = world // product
            given = f"{degree}" if product == 1 else f"{degree} x the inner axes' {product} = {product * degree}"
            yield SpecError(
                f"spec.mesh.{_FIELD[axis]}", f"{given} does not divide {ranks}; use {_any(_divisors(left))}"
            )
            return
        product *= degree
    axes = " x ".join(f"{_FIELD[a]} {getattr(mesh, a)}" for a in ("dp_replicate", "dp_shard", "cp", "tp", "pp"))
    yield SpecError(
        "spec.mesh.dpShard",
        f"{axes} = {product * mesh.dp_shard}, but the mesh has {ranks[4:]}; use {world // product} or -1",
    )


def _inside_a_node(spec: JobSpec) -> Iterator[SpecError]:
    mesh = spec.mesh
    per = mesh.gpus_per_node
    node = f"the {_n(per, _device(spec))} of a node"
    world = mesh.nodes * per
    if per % mesh.tp and world % mesh.tp == 0:
        yield SpecError(
            "spec.mesh.tp",
            f"{mesh.tp} does not divide {node}, and tensor parallelism stays inside one; use {_any(_divisors(per))}",
        )
    dp_shard = _resolved_dp_shard(spec)
    if mesh.ep == 1 or dp_shard is None:
        return
    fold = dp_shard * mesh.cp * mesh.tp
    fits = [d for d in _divisors(fold) if per % d == 0]
    if fold % mesh.ep:
        yield SpecError(
            "spec.mesh.ep",
            f"{mesh.ep} does not divide dpShard {dp_shard} x cp {mesh.cp} x tp {mesh.tp} = {fold}, "
            f"the ranks that experts can spread over; use {_any(fits)}",
        )
    elif per % mesh.ep:
        yield SpecError(
            "spec.mesh.ep",
            f"{mesh.ep} does not divide {node}, and expert parallelism stays inside one; use {_any(fits)}",
        )


def _batch(spec: JobSpec) -> Iterator[SpecError]:
    training, dp_shard = spec.training, _resolved_dp_shard(spec)
    if training.global_batch_size is None or dp_shard is None:
        return
    dp = spec.mesh.dp_replicate * dp_shard
    one_pass = training.local_batch_size * dp
    if training.global_batch_size % one_pass:
        yield SpecError(
            "spec.training.globalBatchSize",
            f"{training.global_batch_size} is no multiple of localBatchSize {training.local_batch_size} x "
            f"{_n(dp, 'data-parallel rank')} = {one_pass}; use {_any(_around(training.global_batch_size, one_pass))}",
        )


def _sequence(spec: JobSpec) -> Iterator[SpecError]:
    mesh, seq_len = spec.mesh, spec.training.seq_len
    # ParallelDims.seq_len_divisor, which the transformers backend asserts for every mesh: tp shards the sequence
    # between its layers, and the balanced split of cp cuts each half in two.
    divisor = mesh.tp * 2 * mesh.cp
    why = f"tp {mesh.tp} x 2 x cp {mesh.cp} = {divisor}"
    if mesh.cp > 1 and mesh.device == "gpu":
        divisor = math.lcm(divisor, FLEX_BLOCK * mesh.cp)
        why = (
            f"{divisor} (tp {mesh.tp} x 2 x cp {mesh.cp}, and whole attention blocks: {FLEX_BLOCK} x cp {mesh.cp})"
            if divisor != FLEX_BLOCK * mesh.cp
            else f"{FLEX_BLOCK} (an attention block) x cp {mesh.cp} = {divisor}"
        )
    if seq_len % divisor:
        yield SpecError(
            "spec.training.seqLen", f"{seq_len} is no multiple of {why}; use {_any(_around(seq_len, divisor))}"
        )


def _pipeline(spec: JobSpec) -> Iterator[SpecError]:
    pp, training = spec.mesh.pp, spec.training
    schedule = training.pipeline_schedule
    if pp == 1:
        if schedule is not None:
            yield SpecError(
                "spec.training.pipelineSchedule", f"{schedule} needs a pipeline, and pp is 1; set mesh.pp or remove it"
            )
        return
    # Microbatches are single sequences: torchtitan's pipeline_parallel_microbatch_size 1.
    batch = training.local_batch_size
    if (schedule or "1F1B") == "1F1B" and batch < pp:
        yield SpecError(
            "spec.training.localBatchSize",
            f"{batch} is less than the {pp} pipeline stages, and 1F1B keeps one sequence in each; "
            f"use at least {pp}, or pipelineSchedule: GPipe",
        )
    if schedule == "Interleaved1F1B" and batch > pp and batch % (batch // pp):
        rounds = batch // pp
        yield SpecError(
            "spec.training.localBatchSize",
            f"{batch} sequences do not spread evenly over the {rounds} rounds (localBatchSize / pp {pp}) of "
            f"Interleaved1F1B; use {_any(_around(batch, pp))}",
        )


def _other(spec: JobSpec) -> Iterator[SpecError]:
    warmup, steps = spec.lr_schedule.warmup_steps, spec.training.steps
    if warmup > steps:
        yield SpecError(
            "spec.lrSchedule.warmupSteps",
            f"{warmup} is more than the {_n(steps, 'training step')}; use at most {steps}",
        )
    checkpoint = spec.checkpoint
    if spec.mesh.nodes > 1 and checkpoint.volume is None and (checkpoint.interval > 0 or checkpoint.export_hf):
        yield SpecError(
            "spec.checkpoint.volume",
            f"the {spec.mesh.nodes} nodes save one checkpoint together; name a ReadWriteMany claim, "
            "or save nothing (interval: 0 and exportHF: false)",
        )


def _model(spec: JobSpec, shape: ModelShape) -> Iterator[SpecError]:
    """What the model's own numbers forbid. An unknown number forbids nothing."""
    mesh, name = spec.mesh, spec.model.name
    for axis, reason in shape.refused_axes.items():
        if getattr(mesh, axis) > 1:
            yield SpecError(f"spec.mesh.{axis}", f"{getattr(mesh, axis)} is not possible for {name}: {reason}; use 1")
    if shape.refused is not None:
        yield SpecError("spec.model.name", f"{name} cannot be trained: {shape.refused}")
    divided = {
        "attention heads": shape.heads,
        "key/value heads": shape.kv_heads,
        "vocabulary entries": shape.vocab_size,
    }
    known = [count for count in divided.values() if count]
    fits = [d for d in _divisors(mesh.gpus_per_node) if all(count % d == 0 for count in known)]
    for what, count in divided.items():
        if count and count % mesh.tp:
            yield SpecError("spec.mesh.tp", f"{mesh.tp} does not divide the {count} {what} of {name}; use {_any(fits)}")
            break
    stages = mesh.pp * (2 if spec.training.pipeline_schedule == "Interleaved1F1B" else 1)
    if shape.layers and mesh.pp > 1 and stages > shape.layers:
        most = shape.layers // (stages // mesh.pp)
        two = " (two for each rank with Interleaved1F1B)" if stages > mesh.pp else ""
        yield SpecError(
            "spec.mesh.pp",
            f"{stages} pipeline stages{two} are more than the {shape.layers} layers of {name}; use at most {max(most, 1)}",
        )
    if mesh.ep > 1 and shape.experts is not None:
        if shape.experts == 0:
            yield SpecError("spec.mesh.ep", f"{mesh.ep} needs experts, and {name} is a dense model; use 1")
        elif shape.experts % mesh.ep:
            fits = [d for d in _divisors(mesh.gpus_per_node) if shape.experts % d == 0]
            yield SpecError(
                "spec.mesh.ep", f"{mesh.ep} does not divide the {shape.experts} experts of {name}; use {_any(fits)}"
            )
    longest, seq_len = shape.max_position_embeddings, spec.training.seq_len
    if longest and seq_len > longest:
        yield SpecError(
            "spec.training.seqLen",
            f"{seq_len} is more than the {longest} positions of {name} (max_position_embeddings); use at most {longest}",
        )


# --- words ---------------------------------------------------------------------------------------------------


def _device(spec: JobSpec) -> str:
    return "GPU" if spec.mesh.device == "gpu" else "process"


def _n(count: int, noun: str) -> str:
    plural = noun + ("es" if noun.endswith("s") else "s")
    return f"{count} {noun if count == 1 else plural}"


def _divisors(number: int) -> list[int]:
    small = [d for d in range(1, math.isqrt(number) + 1) if number % d == 0]
    return sorted({*small, *(number // d for d in small)})


def _around(number: int, divisor: int) -> list[int]:
    """The multiples of `divisor` next to `number`."""
    below = number // divisor * divisor
    return [value for value in (below, below + divisor) if value > 0]


def _any(values: Iterable[int]) -> str:
    """`1`, `1 or 2`, `1, 2 or 4`; of a long list the ends."""
    words = [str(value) for value in values] or ["1"]
    if len(words) > 8:
        words = [*words[:6], "...", words[-1]]
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} or {words[-1]}"
