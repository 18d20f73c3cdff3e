"""Estimates the memory of a job's fullest GPU before one is bound. For planning, not a guarantee.

Parameters, gradients and optimizer state are exact up to padding and the norms (which tensor parallelism does not
cut); activations and what is gathered for a moment are rough, and the allocator's slack and the CUDA context (1 to
2 GiB) are not in it. Rules:

- parameters P, cut by tp and by FSDP over dpShard x cp, experts by the same product (ZeRO stage 3, Rajbhandari et al.
  2020, section 5.3); gradients as many, AdamW two moments, all in `training.dtype`;
- gathered: FSDP holds two blocks (this one and the next) and the head in the computing dtype, and one block's
  gradients in float32 until they are reduced; with a pipeline the whole stage stays gathered (torchtitan,
  `fsdp_reshard_after_forward: default`);
- activations a token and layer, counted as Korthikanti et al. 2022 (section 4) do for the GELU block, with fused
  attention and sequence parallelism: norms 4h, q k v and attention output (2 heads + 2 kv heads) x head_dim, SwiGLU 4I.
  `full` recomputation keeps the block's input, `selective` the input, the attention output and every second matmul
  (torchtitan's SelectiveAC); both hold one whole block while they recompute it;
- logits: the computing dtype, a float32 copy and its gradient, on the last pipeline stage;
- staged: an asynchronous checkpoint is saved from a copy in the host's memory of what a rank has of parameters and
  optimizer (DCP's async_save; 512 MiB of state took 518 MiB). On CPU meshes it is the process's own memory, on GPUs
  `host_bytes` tells it for a node.
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
"""Model types whose parameters `count` knows one by one (compared with transformers' own classes)."""


@dataclass(frozen=True, slots=True)
class ParameterCount:
    """Parameters of a model, as `sum(p.numel())` counts them: a tied head once."""

    embedding: int
    head: int
    """0 when tied to the embedding."""
    block: int
    """Of one layer."""
    layers: int
    norm: int

    @property
    def total(self) -> int:
        return self.embedding + self.head + self.norm + self.block * self.layers


@dataclass(frozen=True, slots=True)
class MemoryEstimate:
    """Bytes on the fullest GPU, by what they are for."""

    parameters: int
    gradients: int
    optimizer: int
    gathered: int
    activations: int
    logits: int
    staged: int = 0
    """For asynchronous checkpoints, where the device is the host."""

    @property
    def total(self) -> int:
        return sum(int(getattr(self, part.name)) for part in fields(self))


def count(shape: ModelShape) -> ParameterCount | None:
    """Every parameter of the model; None for a type or config that is not known exactly."""
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
    """Bytes on the fullest GPU; None when the model's parameters are not known exactly."""
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
    """Of each node's memory, what its ranks copy there from their GPUs to save from; 0 where nothing is copied."""
    if not _stages(spec) or plan.degrees.device == "cpu":
        return 0
    return plan.degrees.ranks_per_node * (estimated.parameters + estimated.optimizer)


def _stages(spec: JobSpec) -> bool:
    return spec.checkpoint.async_mode != "disabled" and spec.checkpoint.interval > 0


def _activations(shape: ModelShape, spec: JobSpec, plan: MeshPlan, layers: int, compute: int) -> tuple[int, int]:
    """(bytes kept for the backward pass, tokens of one pass through the head)."""
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
    else:  # microbatches of one sequence; 1F1B keeps as many as there are stages on the first one
        tokens = sequence
        in_flight = training.local_batch_size
        if training.pipeline_schedule != "GPipe":
            in_flight = min(in_flight, degrees.pp)
    return (layers * kept * in_flight + recomputed) * tokens * compute // degrees.tp, tokens
