"""Rules for a job's mesh, batch and sequence. Each message contains the numbers and the fix.

A comment names the source of each rule that comes from torchtitan 0.3 or torch 2.15. Each function yields SpecErrors;
`mesh.check` collects them.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator

from hftitan_api.families import WINDOWED
from hftitan_api.models import JobSpec
from hftitan_api.shape import ModelShape

FLEX_BLOCK = 128
"""Queries per block of the attention mask on GPUs. Context parallelism splits the sequence into whole blocks."""
FLOAT8_TOKENS = 16
"""Tensor cores multiply float8 matrices whose inner size is a multiple of this."""

_TWO_STAGES = " (2 per rank with Interleaved1F1B)"
_FIELD = {"pp": "pp", "dp_replicate": "dpReplicate", "dp_shard": "dpShard", "cp": "cp", "tp": "tp"}


class SpecError(ValueError):
    """An invalid field. `path` names the field (`spec.mesh.tp`); `message` contains the numbers and the fix."""

    def __init__(self, path: str, message: str) -> None:
        super().__init__(f"{path}: {message}")
        self.path = path
        self.message = message


def resolved_dp_shard(spec: JobSpec) -> int | None:
    """Return dpShard with -1 resolved, or None if the product of the axes is not the world size."""
    mesh = spec.mesh
    world = mesh.nodes * mesh.gpus_per_node
    others = mesh.dp_replicate * mesh.cp * mesh.tp * mesh.pp
    if mesh.dp_shard == -1:
        return world // others if world % others == 0 else None
    return mesh.dp_shard if mesh.dp_shard * others == world else None


def product(spec: JobSpec) -> Iterator[SpecError]:
    mesh = spec.mesh
    if mesh.dp_shard == 0:
        yield SpecError(
            "spec.mesh.dpShard",
            "0 is not a number of shards; use -1 for all ranks that the other axes do not use, or 1",
        )
        return
    if resolved_dp_shard(spec) is not None:
        return
    world = mesh.nodes * mesh.gpus_per_node
    ranks = f"{_n(world, 'rank')} ({_n(mesh.nodes, 'node')} x {_n(mesh.gpus_per_node, _device(spec))})"
    taken = 1
    before: list[str] = []
    for axis in ("tp", "cp", "pp", "dp_replicate"):
        degree = int(getattr(mesh, axis))
        if world // taken % degree:
            others = "" if taken == 1 else f" x {taken} ({' x '.join(before)}) = {degree * taken}"
            fits = _divisors(mesh.gpus_per_node if axis == "tp" else world // taken)
            yield SpecError(
                f"spec.mesh.{_FIELD[axis]}", f"{degree}{others} does not divide the {ranks}; use {_any(fits)}"
            )
            return
        taken *= degree
        before += [_FIELD[axis]] if degree > 1 else []
    axes = " x ".join(f"{_FIELD[a]} {getattr(mesh, a)}" for a in ("dp_replicate", "dp_shard", "cp", "tp", "pp"))
    yield SpecError(
        "spec.mesh.dpShard",
        f"{axes} = {taken * mesh.dp_shard}, but the mesh has {ranks}; use {world // taken} or -1",
    )


def inside_a_node(spec: JobSpec) -> Iterator[SpecError]:
    mesh = spec.mesh
    per = mesh.gpus_per_node
    node = f"the {_n(per, _device(spec))} of a node"
    world = mesh.nodes * per
    if per % mesh.tp and world % mesh.tp == 0:
        yield SpecError(
            "spec.mesh.tp",
            f"{mesh.tp} does not divide {node} (a tensor-parallel group must not span nodes); "
            f"use {_any(_divisors(per))}",
        )
    dp_shard = resolved_dp_shard(spec)
    if mesh.ep == 1 or dp_shard is None:
        return
    fold = dp_shard * mesh.cp * mesh.tp
    fits = [d for d in _divisors(fold) if per % d == 0]
    if fold % mesh.ep:
        yield SpecError(
            "spec.mesh.ep",
            f"{mesh.ep} does not divide dpShard {dp_shard} x cp {mesh.cp} x tp {mesh.tp} = {fold}, "
            f"the ranks over which the experts can be split; use {_any(fits)}",
        )
    elif per % mesh.ep:
        yield SpecError(
            "spec.mesh.ep",
            f"{mesh.ep} does not divide {node} (an expert-parallel group must not span nodes); use {_any(fits)}",
        )


def batch(spec: JobSpec) -> Iterator[SpecError]:
    training, dp_shard = spec.training, resolved_dp_shard(spec)
    if training.global_batch_size is None or dp_shard is None:
        return
    dp = spec.mesh.dp_replicate * dp_shard
    one_pass = training.local_batch_size * dp
    if training.global_batch_size % one_pass:
        yield SpecError(
            "spec.training.globalBatchSize",
            f"{training.global_batch_size} is not a multiple of localBatchSize {training.local_batch_size} x "
            f"{_n(dp, 'data-parallel rank')} = {one_pass}; use {_any(_around(training.global_batch_size, one_pass))}",
        )


def sequence(spec: JobSpec) -> Iterator[SpecError]:
    mesh, seq_len = spec.mesh, spec.training.seq_len
    # ParallelDims.seq_len_divisor, which the transformers backend asserts for every mesh: tp shards the sequence
    # between layers, and the balanced split of cp gives each rank two parts.
    divisor = mesh.tp * 2 * mesh.cp
    why = f"tp {mesh.tp} x 2 x cp {mesh.cp} = {divisor}"
    if mesh.cp > 1 and mesh.device == "gpu":
        divisor = math.lcm(divisor, FLEX_BLOCK * mesh.cp)
        why = (
            f"{divisor} (a multiple of tp {mesh.tp} x 2 x cp {mesh.cp} and of attention block {FLEX_BLOCK} x "
            f"cp {mesh.cp})"
            if divisor != FLEX_BLOCK * mesh.cp
            else f"attention block {FLEX_BLOCK} x cp {mesh.cp} = {divisor}"
        )
    if seq_len % divisor:
        yield SpecError(
            "spec.training.seqLen", f"{seq_len} is not a multiple of {why}; use {_any(_around(seq_len, divisor))}"
        )


def pipeline(spec: JobSpec) -> Iterator[SpecError]:
    pp, training = spec.mesh.pp, spec.training
    schedule = training.pipeline_schedule
    if pp == 1:
        if schedule is not None:
            yield SpecError(
                "spec.training.pipelineSchedule",
                f"{schedule} needs mesh.pp of at least 2, and mesh.pp is 1; raise mesh.pp, or remove pipelineSchedule",
            )
        return
    # A microbatch is one sequence: torchtitan's pipeline_parallel_microbatch_size is 1.
    batch, stages = training.local_batch_size, _stages(spec)
    two = _TWO_STAGES if stages > pp else ""
    if batch < stages:
        yield SpecError(
            "spec.training.localBatchSize",
            f"{batch} is less than the {stages} pipeline stages{two}; use at least {stages}",
        )
    elif stages > pp and batch % (batch // pp):  # torch's ScheduleInterleaved1F1B
        yield SpecError(
            "spec.training.localBatchSize",
            f"{batch} is not a multiple of the {batch // pp} rounds (localBatchSize / pp {pp}, rounded down) of "
            f"Interleaved1F1B; use {_any(_around(batch, pp))}",
        )


def float8(spec: JobSpec) -> Iterator[SpecError]:
    recipe, mesh, seq_len = spec.training.float8, spec.mesh, spec.training.seq_len
    if recipe is None:
        return
    if mesh.device == "cpu":
        yield SpecError("spec.training.float8", f"{recipe} needs mesh.device: gpu, and mesh.device is cpu; remove it")
    # For the gradients of the weights, the inner size of torch._scaled_mm is the number of tokens.
    divisor = FLOAT8_TOKENS * mesh.cp
    if seq_len % divisor:
        yield SpecError(
            "spec.training.seqLen",
            f"{seq_len} is not a multiple of {FLOAT8_TOKENS} (float8) x cp {mesh.cp} = {divisor}; use "
            f"{_any(_around(seq_len, divisor))}",
        )


def other(spec: JobSpec) -> Iterator[SpecError]:
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
            f"is required with {spec.mesh.nodes} nodes, because they save one checkpoint together; name a "
            "ReadWriteMany claim, or save nothing (interval: 0 and exportHF: false)",
        )


def model(spec: JobSpec, shape: ModelShape) -> Iterator[SpecError]:
    """Yield conflicts between the job and the model. Unknown sizes are not checked."""
    name = spec.model.name
    for reason in shape.refused:
        yield SpecError("spec.model.name", f"{name} cannot be trained: {reason}")
    for axis, reason in shape.refused_axes.items():
        degree = int(getattr(spec.mesh, axis))
        if degree > 1:
            yield SpecError(f"spec.mesh.{axis}", f"{degree} does not work for {name}: {reason}; use 1")
    yield from _heads(spec, shape)
    yield from _layers(spec, shape)
    yield from _experts(spec, shape)
    yield from _positions(spec, shape)
    if shape.attention_dropout > 0 and spec.mesh.device == "gpu":
        yield SpecError(
            "spec.model.overrides.attention_dropout",
            f"{name} has {shape.attention_dropout}, and FlexAttention does not support dropout; set it to 0.0",
        )


def _heads(spec: JobSpec, shape: ModelShape) -> Iterator[SpecError]:
    # Tensor parallelism gives each rank whole heads. torchtitan 0.3 does not support uneven shards: with 129 tokens in
    # the vocabulary and two ranks, it used [130, h] as the shape of the embedding, and the checkpoint did not fit.
    mesh = spec.mesh
    if "tp" in shape.refused_axes:
        return
    sharded = {
        "attention heads": shape.heads,
        "key/value heads": shape.kv_heads,
        "columns of the feed-forward layer (intermediate_size)": shape.intermediate_size,
        "entries of the vocabulary": shape.vocab_size,
    }
    known = [count for count in sharded.values() if count]
    fits = [d for d in _divisors(mesh.gpus_per_node) if all(count % d == 0 for count in known)]
    for what, count in sharded.items():
        if count and count % mesh.tp:
            yield SpecError(
                "spec.mesh.tp", f"{mesh.tp} does not divide the {count} {what} of {spec.model.name}; use {_any(fits)}"
            )
            return


def _layers(spec: JobSpec, shape: ModelShape) -> Iterator[SpecError]:
    mesh = spec.mesh
    if mesh.pp == 1 or not shape.layers or "pp" in shape.refused_axes:
        return
    # torchtitan counts embedding and head as one layer each. A first or last stage with only one of them has no layer.
    stages = _stages(spec)
    most = (shape.layers + 2) // 2
    if stages > most:
        each = stages // mesh.pp
        two = _TWO_STAGES if each == 2 else ""
        yield SpecError(
            "spec.mesh.pp",
            f"{stages} pipeline stages{two} are too many for the {shape.layers} layers of {spec.model.name}; "
            f"use at most {max(most // each, 1)}",
        )


def _experts(spec: JobSpec, shape: ModelShape) -> Iterator[SpecError]:
    mesh, name = spec.mesh, spec.model.name
    if mesh.ep == 1 or shape.experts is None:
        return
    if shape.experts == 0:
        yield SpecError("spec.mesh.ep", f"{mesh.ep} needs a mixture of experts, and {name} is a dense model; use 1")
    elif shape.experts % mesh.ep:
        fits = [d for d in _divisors(mesh.gpus_per_node) if shape.experts % d == 0]
        yield SpecError(
            "spec.mesh.ep", f"{mesh.ep} does not divide the {shape.experts} experts of {name}; use {_any(fits)}"
        )
    elif (ranks := (resolved_dp_shard(spec) or 1) * mesh.cp * mesh.tp) > shape.experts:
        # Otherwise apply_fsdp (parallelize.py) splits single experts, but the checkpoint files contain whole ones.
        yield SpecError(
            "spec.mesh.dpShard",
            f"{ranks} ranks (dpShard x cp x tp) are more than the {shape.experts} experts of {name}, and with ep each "
            "rank needs at least one; use a smaller dpShard with dpReplicate, or ep: 1",
        )


def _positions(spec: JobSpec, shape: ModelShape) -> Iterator[SpecError]:
    seq_len, name = spec.training.seq_len, spec.model.name
    longest, window = shape.max_position_embeddings, shape.sliding_window
    if longest and seq_len > longest:
        yield SpecError(
            "spec.training.seqLen",
            f"{seq_len} is more than the {longest} positions of {name}; "
            f"use at most {longest}, or raise max_position_embeddings in model.overrides",
        )
    elif window and seq_len > window and shape.model_type not in WINDOWED:
        yield SpecError(
            "spec.training.seqLen",
            f"{seq_len} is more than the sliding window {window} of {name}, and sliding windows of model type "
            f"{shape.model_type} are not tested against transformers; use at most {window}",
        )
    short = shape.short_positions
    if spec.mesh.cp > 1 and short and seq_len > short:
        # longrope_frequency_update (modeling_rope_utils.py) uses the longest position in the rank's own part.
        yield SpecError(
            "spec.mesh.cp",
            f"{spec.mesh.cp} does not work for {name} with seqLen {seq_len}: its rotary embedding (longrope) changes "
            f"after {short} positions, and ranks could use different ones; use 1, or seqLen of at most {short}",
        )


def _stages(spec: JobSpec) -> int:
    return spec.mesh.pp * (2 if spec.training.pipeline_schedule == "Interleaved1F1B" else 1)


# --- texts ---------------------------------------------------------------------------------------------------


def _device(spec: JobSpec) -> str:
    return "GPU" if spec.mesh.device == "gpu" else "process"


def _n(count: int, noun: str) -> str:
    plural = noun + ("es" if noun.endswith("s") else "s")
    return f"{count} {noun if count == 1 else plural}"


def _divisors(number: int) -> list[int]:
    small = [d for d in range(1, math.isqrt(number) + 1) if number % d == 0]
    return sorted({*small, *(number // d for d in small)})


def _around(number: int, divisor: int) -> list[int]:
    """Return the positive multiples of `divisor` next to `number`."""
    below = number // divisor * divisor
    return [value for value in (below, below + divisor) if value > 0]


def _any(values: Iterable[int]) -> str:
    """Return `1`, `1 or 2` or `1, 2 or 4`. A long list is shortened to its first six and last values."""
    words = [str(value) for value in values] or ["1"]
    if len(words) > 8:
        words = [*words[:6], "...", words[-1]]
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} or {words[-1]}"
