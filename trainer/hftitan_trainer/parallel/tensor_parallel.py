"""Splits transformers' layers for tensor parallelism: attention by heads, the feed-forward layer by columns.

Upstream is torchtitan 0.3 experiments/transformers_modeling_backend/hf_sharding.py. It supports Llama's names. It
computes the following wrongly or not at all, which is fixed here:

- fused projections (Phi)
- norms over all heads of a projection (OLMo)
- norms with another argument name (Gemma)
- biases of projections whose outputs are summed over the ranks (each rank adds the whole bias)
- word embeddings with a scale, or with a padding index (models/common/embedding.py uses the index of the whole
  vocabulary as an index into this rank's part)

Parameters are still split into equal rows or columns, so files, checkpoints and other meshes are not affected.
"""

from __future__ import annotations

import contextlib
import copy
import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any

import spmd_types as spmd
import torch
import torch.distributed as dist
import torch.distributed._functional_collectives as collectives
from torch import nn
from torch.nn import functional
from torchtitan.experiments.transformers_modeling_backend import hf_sharding
from torchtitan.models.common.decoder_sharding import (
    colwise_config,
    dense_activation_placement,
    dense_param_placement,
    dense_sequence_parallel_placement,
    rowwise_config,
)
from torchtitan.protocols.module import Module
from torchtitan.protocols.sharding import ShardingConfig

from hftitan_trainer.process.errors import UserError

_OUT = ("o_proj", "dense")
_QUERY_NORMS = ("q_norm", "query_layernorm")
_KEY_NORMS = ("k_norm", "key_layernorm")
_GATES = ("gate_proj", "up_proj", "fc1", "c_fc")
_DOWN = ("down_proj", "fc2", "c_proj")


@contextlib.contextmanager
def layers_cut(group: dist.ProcessGroup) -> Iterator[None]:
    """Make parallelize_hf_transformers, within this context, split layers over the ranks of `group` by the rules below.

    It then raises ValueError for a layer with parameters that no rule covers.
    """

    def everything(model: nn.Module, *, enable_sp: bool) -> None:
        cut_embedding(model, group)
        described(model, enable_sp=enable_sp)
        for module in (model.norm, model.lm_head, model.rotary_emb):
            name_first_argument(module)

    described, layer = hf_sharding.set_hf_sharding_configs, hf_sharding._set_layer_sharding_configs
    hf_sharding.set_hf_sharding_configs = everything
    hf_sharding._set_layer_sharding_configs = lambda block, **_kwargs: cut_layer(block, group)
    try:
        yield
    finally:
        hf_sharding.set_hf_sharding_configs, hf_sharding._set_layer_sharding_configs = described, layer


def cut_layer(layer: nn.Module, group: dist.ProcessGroup) -> None:
    """Set the sharding of each module of a decoder layer. The layer's inputs and outputs are split by sequence."""
    for child in layer.children():
        if child not in (layer.self_attn, layer.mlp) and _owns(child):
            child._sharding_config = hf_sharding._hf_norm_config(enable_sp=True)
            name_first_argument(child)
    _cut_attention(layer.self_attn, group)
    _cut_feed_forward(layer.mlp, group)
    if _owns(layer):
        layer._sharding_config = hf_sharding._replicate_config(layer)


def _cut_attention(attn: Any, group: dist.ProcessGroup) -> None:
    _gather_sequence(attn)
    hf_sharding._attach_flex_kernel(attn)
    size = dist.get_world_size(group)
    heads, kv_heads = attn.config.num_attention_heads, attn.config.num_key_value_heads
    if hasattr(attn, "qkv_proj"):
        _cut_fused(attn.qkv_proj, [heads * attn.head_dim, *[kv_heads * attn.head_dim] * 2], group)
        # Its forward uses these numbers to find queries, keys and values in this rank's rows.
        attn.config = copy.copy(attn.config)
        attn.config.num_attention_heads = heads // size
        attn.num_key_value_heads = kv_heads // size
    else:
        for name in ("q_proj", "k_proj", "v_proj"):
            getattr(attn, name)._sharding_config = colwise_config()
    _cut_summed(_first(attn, _OUT), size)
    for names, count in ((_QUERY_NORMS, heads), (_KEY_NORMS, kv_heads)):
        for name in names:
            if hasattr(attn, name):
                _cut_head_norm(getattr(attn, name), count, attn.head_dim, group)


def _cut_feed_forward(mlp: Any, group: dist.ProcessGroup) -> None:
    _gather_sequence(mlp)
    if hasattr(mlp, "gate_up_proj"):
        _cut_fused(mlp.gate_up_proj, [mlp.gate_up_proj.out_features // 2] * 2, group)
    for name in _GATES:
        if hasattr(mlp, name):
            getattr(mlp, name)._sharding_config = colwise_config()
    if hasattr(mlp, "act_fn") and _owns(mlp.act_fn):  # its parameters apply to every column
        mlp.act_fn._sharding_config = hf_sharding._replicate_config(mlp.act_fn)
    _cut_summed(_first(mlp, _DOWN), dist.get_world_size(group))


def _gather_sequence(module: nn.Module) -> None:
    """Gather the whole sequence for the input of `module`. Between the layers, each rank holds a part of it."""
    name = hf_sharding._first_forward_arg(module)
    module._sharding_config = ShardingConfig(
        in_src_shardings={name: dense_sequence_parallel_placement()},
        in_dst_shardings={name: dense_activation_placement(tp=spmd.R)},
    )


def _cut_summed(linear: Any, size: int) -> None:
    """Split a projection by input columns. Its outputs are summed over the ranks, so each adds its share of the
    bias."""
    linear._sharding_config = rowwise_config(output_sp=True)
    if linear.bias is not None:
        _check_plain(linear)
        linear.forward = lambda x: functional.linear(x, linear.weight, linear.bias / size)


def _cut_fused(linear: Any, parts: Sequence[int], group: dist.ProcessGroup) -> None:
    """Split several projections in one weight of [sum of parts, in] rows. A rank computes its share of each part."""
    _check_plain(linear)
    linear._sharding_config = colwise_config()
    exchange = RowExchange(parts, group)
    linear.forward = lambda x: functional.linear(
        x, exchange(linear.weight), None if linear.bias is None else exchange(linear.bias)
    )


def _check_plain(linear: nn.Module) -> None:
    """Refuse a layer with its own forward (float8.py), since the caller replaces the forward."""
    if type(linear).forward is not nn.Linear.forward:
        raise UserError(
            "spec.training.float8",
            "does not work with tensor parallelism on this model (it has fused projections, or biases of summed "
            "outputs); remove it, or set mesh.tp to 1",
        )


def _cut_head_norm(norm: Any, heads: int, head_dim: int, group: dist.ProcessGroup) -> None:
    """Split a norm of queries or keys: one weight for all heads alike, one for each, or one across all heads."""
    shapes = {tuple(parameter.shape) for parameter in norm.parameters()}
    if shapes <= {(head_dim,)}:
        norm._sharding_config = hf_sharding._replicate_config(norm)
        return
    norm._sharding_config = ShardingConfig(
        state_shardings={name: dense_param_placement(tp=spmd.S(0)) for name, _ in norm.named_parameters(recurse=False)}
    )
    if shapes == {(heads, head_dim)}:
        return
    if shapes != {(heads * head_dim,)} or not hasattr(norm, "variance_epsilon") or hasattr(norm, "bias"):
        raise ValueError(f"{type(norm).__name__} of {shapes} spans heads of several ranks in an unsupported way")

    def over_all_ranks(hidden_states: torch.Tensor) -> torch.Tensor:
        """Compute transformers' Olmo2RMSNorm.forward, with the mean square over the whole projection."""
        x = hidden_states.float()
        total = collectives.all_reduce(x.square().sum(-1, keepdim=True), "sum", group)
        x = x * torch.rsqrt(total / (heads * head_dim) + norm.variance_epsilon)
        return (norm.weight * x).to(hidden_states.dtype)

    norm.forward = over_all_ranks


class RowExchange:
    """Gives each rank of `group` the rows of a weight that it computes with.

    The weight is `parts` stacked by rows. A rank stores an equal block of rows, but computes with an equal share of
    each part. Called with this rank's stored [rows / ranks, ...], it returns as many rows: its share of the first part,
    then of the second, and so on. Gradients take the same way back.
    """

    def __init__(self, parts: Sequence[int], group: dist.ProcessGroup) -> None:
        size, rank = dist.get_world_size(group), dist.get_rank(group)
        held = sum(parts) // size
        assert not sum(parts) % size
        assert not any(part % size for part in parts)
        self.group = group
        self.sent = [_overlaps(parts, size, rank * held, held, other) for other in range(size)]
        self.send_sizes = [sum(stop - start for start, stop in rows) for rows in self.sent]
        self.receive_sizes = [
            sum(stop - start for start, stop in _overlaps(parts, size, other * held, held, rank))
            for other in range(size)
        ]

    def __call__(self, rows: torch.Tensor) -> torch.Tensor:
        sent = torch.cat([rows[start:stop] for spans in self.sent for start, stop in spans])
        return collectives.all_to_all_single(sent, self.receive_sizes, self.send_sizes, self.group)


def _overlaps(parts: Sequence[int], size: int, first: int, held: int, rank: int) -> list[tuple[int, int]]:
    """Return which of the `held` rows starting at row `first` are `rank`'s, as spans relative to `first`."""
    spans, begin = [], 0
    for part in parts:
        share = part // size
        start, stop = begin + rank * share - first, begin + (rank + 1) * share - first
        start, stop = max(start, 0), min(stop, held)
        if start < stop:
            spans.append((start, stop))
        begin += part
    return spans


def cut_embedding(model: Any, group: dist.ProcessGroup) -> None:
    """Make each rank look up the tokens of its part of the vocabulary. Others give zero, and the ranks' sum is
    complete."""
    embedding = model.tok_embeddings
    if isinstance(embedding, nn.Identity):
        return

    class Lookup(nn.Embedding):
        def forward(self, input: torch.Tensor) -> torch.Tensor:
            weight = self.weight
            local = input - dist.get_rank(group) * weight.shape[0]
            mine = (local >= 0) & (local < weight.shape[0])
            out = functional.embedding(local.clamp(0, weight.shape[0] - 1), weight)
            if self.padding_idx is not None:  # the padding token gets no gradient
                out = torch.where((input == self.padding_idx).unsqueeze(-1), out.detach(), out)
            return out * mine.unsqueeze(-1).to(out.dtype)

    # Insert Lookup below the model's own class, which may change the vectors (Gemma scales them).
    own = [cls for cls in type(embedding).__mro__ if issubclass(cls, nn.Embedding) and not issubclass(cls, Module)]
    embedding.__class__ = type(own[0].__name__, (Module, *own[:-1], Lookup), {})


def name_first_argument(module: Any) -> None:
    """Use the real name of a module's first argument in its sharding. Upstream uses "hidden_states" or "input"."""
    config = getattr(module, "_sharding_config", None)
    if config is None or not config.in_src_shardings or isinstance(module, nn.Identity):
        return
    name = hf_sharding._first_forward_arg(module)
    if name in config.in_src_shardings:
        return
    first = next(iter(config.in_src_shardings))
    module._sharding_config = dataclasses.replace(
        config,
        in_src_shardings={name: config.in_src_shardings[first]},
        in_dst_shardings={name: (config.in_dst_shardings or config.in_src_shardings)[first]},
    )


def _owns(module: nn.Module) -> bool:
    owned = (*module.named_parameters(recurse=False), *module.named_buffers(recurse=False))
    return bool(owned)


def _first(module: nn.Module, names: Sequence[str]) -> Any:
    for name in names:
        if hasattr(module, name):
            return getattr(module, name)
    raise ValueError(f"{type(module).__name__} has none of {', '.join(names)}")
