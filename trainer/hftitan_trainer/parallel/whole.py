"""Modules that no mesh axis splits: without tensor parallelism each stays whole, and FSDP shards its weights.

torchtitan's transformers backend sets how tensor parallelism splits each module of a Llama-like layer. It requires
Llama's names even without tensor parallelism (hf_sharding.py raises on a fused qkv_proj). Here no names are required.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from torch import nn
from torchtitan.experiments.transformers_modeling_backend import hf_sharding
from torchtitan.models.common.moe_sharding import expert_param_placement_sparse
from torchtitan.protocols.sharding import ShardingConfig

from hftitan_trainer.parallel.experts import mixtures


@contextlib.contextmanager
def modules_stay_whole(*, ep: bool) -> Iterator[None]:
    """Make parallelize_hf_transformers, within this context, split no module, except experts over the ep axis if
    `ep`."""

    def keep(model: nn.Module, *, enable_sp: bool) -> None:
        assert not enable_sp, "tensor parallelism splits modules"
        for module in model.modules():
            owned = (*module.named_parameters(recurse=False), *module.named_buffers(recurse=False))
            if owned:
                module._sharding_config = hf_sharding._replicate_config(module)
        for layer in model.layers:
            hf_sharding._attach_flex_kernel(layer.self_attn)  # where context parallelism gathers keys and values
        for block in mixtures(model.layers) if ep else ():
            names = (name for name, _ in block.experts.named_parameters())
            placement = {name: expert_param_placement_sparse() for name in names}
            block.experts._sharding_config = ShardingConfig(state_shardings=placement)

    original = hf_sharding.set_hf_sharding_configs
    hf_sharding.set_hf_sharding_configs = keep
    try:
        yield
    finally:
        hf_sharding.set_hf_sharding_configs = original
