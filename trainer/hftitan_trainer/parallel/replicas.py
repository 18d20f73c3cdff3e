"""Data parallelism without FSDP on CPUs: each rank holds the whole model, and gradients are summed in place.

torchtitan runs every mesh through FSDP, even with one process. FSDP copies all weights before the forward pass and all
gradients before their reduction. On a GPU the computation hides this; on a CPU it takes a sixth of the step. Here each
gradient is all-reduced in place as soon as it is ready, while the backward pass continues.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from torch import nn
from torchtitan.distributed.compile import apply_compile
from torchtitan.tools.utils import device_type

if TYPE_CHECKING:
    from torchtitan.config import TrainingConfig
    from torchtitan.distributed import ParallelDims


def holds_whole_model(parallel_dims: ParallelDims, training: TrainingConfig) -> bool:
    """Return whether every rank holds all weights, in the type it computes in, on a CPU."""
    dims = parallel_dims
    whole = dims.dp_shard == dims.cp == dims.tp == dims.pp == dims.ep == 1
    return device_type == "cpu" and whole and training.mixed_precision_param == training.dtype


def prepare(
    model: nn.Module, parallel_dims: ParallelDims, compile_config: Any, ac_config: Any, folder: str
) -> nn.Module:
    """Do what parallelize_hf_transformers does besides sharding: recomputation, then compilation of the blocks."""
    if ac_config is not None:
        ac_config.build(dump_folder=folder).apply(model)
    if compile_config.enable and "model" in compile_config.components:
        apply_compile(model, compile_config=compile_config, parallel_dims=parallel_dims)
    return model


class Replicas:
    """Sums the gradients of `model` over `group`. Every rank must run the same passes."""

    def __init__(self, model: nn.Module, group: dist.ProcessGroup) -> None:
        self.group = group
        self.reducing = False
        self._works: list[dist.Work] = []
        for parameter in model.parameters():
            parameter.register_post_accumulate_grad_hook(self._sum)

    def begin_pass(self, *, last: bool) -> None:
        """Start a forward and backward pass. Only the last pass of a step sums gradients over the ranks."""
        self.reducing = last

    def finish_step(self) -> None:
        """Wait until all gradients are summed."""
        for work in self._works:
            work.wait()
        self._works.clear()

    def _sum(self, parameter: torch.Tensor) -> None:
        if self.reducing:
            assert parameter.grad is not None
            work = dist.all_reduce(parameter.grad, group=self.group, async_op=True)
            assert work is not None
            self._works.append(work)
