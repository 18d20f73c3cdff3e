"""Estimates the memory of the GPU that needs the most. For planning; not a guarantee.

Parameters, gradients and optimizer state are exact except for padding and for norms, which tensor parallelism does not
shard. Gathered parameters and activations are rough. The allocator's slack and the CUDA context (1 to 2 GiB) are not
included.

- parameters: sharded by tp and by FSDP over dpShard x cp; experts by the same product (ZeRO stage 3, Rajbhandari et al.
  2020, section 5.3). Gradients have the same size, and AdamW's two moments twice that, all in `training.dtype`.
- gathered: FSDP holds two blocks (the current and the next) and the head in the computing dtype, and the float32
  gradients of one block until they are reduced. With a pipeline, the whole stage stays gathered (torchtitan,
  `fsdp_reshard_after_forward: default`).
- activations per token and layer: as in Korthikanti et al. 2022 (section 4) for the GELU block, with fused attention
  and sequence parallelism: norms 4h; q, k, v and attention output (2 heads + 2 kv heads) x head_dim; SwiGLU 4I. `full`
  recomputation keeps the input of the block; `selective` keeps the input, the attention output and every second matmul
  (torchtitan's SelectiveAC). Both hold one whole block while they recompute it.
- logits: the computing dtype, a float32 copy and its gradient, on the last pipeline stage.
- staged: an asynchronous checkpoint copies the rank's parameters and optimizer state to host memory (DCP's async_save;
  512 MiB of state took 518 MiB). On CPU meshes this counts as memory of the device. For GPUs, `host_bytes` returns it
  per node.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields

from hftitan_api.mesh import MeshPlan
from hftitan_api.models import JobSpec
from hftitan_api.shape import ModelShape

_BYTES = {"float32": 4, "bfloat16": 2}
_QKV_BIAS = frozenset({"qwen2"})
_QK_NORM = frozenset({"qwen3", "qwen3_moe"})
_EXACT = frozenset({"llama", "mistral", "smollm3", "granite", "gemma", "mixtral"}) | _QKV_BIAS | _QK_NORM
"""Model types for which `count` is exact (tested against transformers' classes)."""


@dataclass(frozen=True, slots=True)
class ParameterCount:
    """Numbers of parameters of a model. A tied head counts once, as in `sum(p.numel())`."""

    embedding: int
    head: int
    """0 if tied to the embedding."""
    block: int
    """Parameters of one layer."""
    layers: int
    """Number of layers."""
    norm: int
    """Parameters of the final norm."""

    @property
    def total(self) -> int:
        return self.embedding + self.head + self.norm + self.block * self.layers


@dataclass(frozen=True, slots=True)
class MemoryEstimate:
    """Bytes on the GPU that needs the most, by purpose."""

    parameters: int
    gradients: int
    optimizer: int
    gathered: int
    activations: int
    logits: int
    staged: int = 0
    """Copy of the state for asynchronous checkpoints; only on CPU meshes."""

    @property
    def total(self) -> int:
        return sum(int(getattr(self, part.name)) for part in fields(self))


def count(shape: ModelShape) -> ParameterCount | None:
    """Count the parameters of the model. Returns None if they are not known exactly for its type or config."""
    h, layers, heads, kv_heads = shape.hidden_size, shape.layers, shape.heads, shape.kv_heads
    head_dim, vocab, experts = shape.head_dim, shape.vocab_size, shape.experts
    inner = shape.moe_intermediate_size if experts else shape.intermediate_size
    if shape.model_type not in _EXACT or not shape.uniform_layers or shape.biases or experts is None:
        return None
    if not (h and layers and heads and kv_heads and head_dim and vocab and inner):
        return None
    attention = 2 * h * head_dim * (heads + kv_heads)
    if shape.model_type in _QKV_BIAS:
        attention += head_dim * (heads + 2 * kv_heads)
    if shape.model_type in _QK_NORM:
        attention += 2 * head_dim
    feed_forward = 3 * h * inner * max(experts, 1) + h * experts
    head = 0 if shape.tied_embeddings else vocab * h
    return ParameterCount(vocab * h, head, attention + feed_forward + 2 * h, layers, h)


def estimate(shape: ModelShape, spec: JobSpec, plan: MeshPlan) -> MemoryEstimate | None:
    """Estimate the bytes on the GPU that needs the most. Returns None if the parameters are not known exactly."""
    counted = count(shape)
    if counted is None:
        return None
    degrees, training = plan.degrees, spec.training
    on_gpu = degrees.device == "gpu"
    master = _BYTES[training.dtype]
    compute = _BYTES[training.mixed_precision or ("bfloat16" if on_gpu else "float32")]
    shards = degrees.dp_shard * degrees.cp

    layers = math.ceil(counted.layers / degrees.pp)
    ends = max(counted.embedding, counted.head) if degrees.pp > 1 else counted.embedding + counted.head
    stage = layers * counted.block + ends + counted.norm
    mine = math.ceil(stage / (degrees.tp * shards))

    gathered = 0
    if shards > 1 or compute != master:
        cut = max(degrees.tp, degrees.ep)
        whole = stage if degrees.pp > 1 else min(2, layers) * counted.block + max(counted.embedding, counted.head)
        gathered = whole * compute // cut + counted.block * 4 // cut

    activations, tokens = _activations(shape, spec, plan, layers, compute)
    logits = tokens * (shape.vocab_size or 0) * (compute + 8) // degrees.tp
    parameters, optimizer = mine * master, 2 * mine * master
    staged = parameters + optimizer if _stages(spec) and not on_gpu else 0
    return MemoryEstimate(parameters, parameters, optimizer, gathered, activations, logits, staged)


def host_bytes(estimated: MemoryEstimate, spec: JobSpec, plan: MeshPlan) -> int:
    """Return the bytes of host memory per node that asynchronous checkpoints of GPUs need; 0 if there are none."""
    if not _stages(spec) or plan.degrees.device == "cpu":
        return 0
    return plan.degrees.ranks_per_node * (estimated.parameters + estimated.optimizer)


def _stages(spec: JobSpec) -> bool:
    return spec.checkpoint.async_mode != "disabled" and spec.checkpoint.interval > 0


def _activations(shape: ModelShape, spec: JobSpec, plan: MeshPlan, layers: int, compute: int) -> tuple[int, int]:
    """Return (bytes kept for the backward pass, tokens of one pass through the head)."""
    degrees, training = plan.degrees, spec.training
    h, head_dim = shape.hidden_size or 0, shape.head_dim or 0
    heads, kv_heads = shape.heads or 0, shape.kv_heads or 0
    inner = (shape.moe_intermediate_size or 0) * (shape.experts_per_token or 1)
    if not shape.experts:
        inner = shape.intermediate_size or 0
    block = 4 * h + 2 * (heads + kv_heads) * head_dim + 4 * inner
    matmuls = (heads + 2 * kv_heads) * head_dim + 2 * h + 2 * inner
    mode = training.activation_checkpoint or ("selective" if degrees.device == "gpu" else "none")
    kept = {"none": block, "selective": h + heads * head_dim + matmuls // 2, "full": h}[mode]
    recomputed = 0 if mode == "none" else block

    sequence = training.seq_len // degrees.cp
    if degrees.pp == 1:
        tokens = training.local_batch_size * sequence
        in_flight = 1
    else:  # microbatches of one sequence; with 1F1B, the first stage keeps one per stage
        tokens = sequence
        in_flight = training.local_batch_size
        if training.pipeline_schedule != "GPipe":
            in_flight = min(in_flight, degrees.pp)
    return (layers * kept * in_flight + recomputed) * tokens * compute // degrees.tp, tokens
