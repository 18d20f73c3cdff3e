"""Keeps tied embeddings equal on a pipeline: the first stage holds the embedding, the last stage the head.

Upstream trains them as two weights. Here the head's gradient is added to the embedding's before the norm is computed,
so it counts once. The clipped sum is sent back before the optimizer steps, so both copies always take the same step.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.tensor import DTensor

if TYPE_CHECKING:
    from torchtitan.trainer import Trainer


class TiedStages:
    """Keeps embedding and head equal. Exists on the first and last rank of each pipeline; both must call each
    method."""

    def __init__(self, weight: nn.Parameter, group: dist.ProcessGroup, optimizers: Any, *, first: bool) -> None:
        self.weight = weight
        self.group = group
        self.first = first
        optimizers.register_step_pre_hook(lambda *_args: self.return_gradients())
        self.peer = dist.get_global_rank(group, dist.get_world_size(group) - 1 if first else 0)

    @classmethod
    def of(cls, trainer: Trainer) -> TiedStages | None:
        """Return this rank's side of the pair, or None if there is nothing to keep equal."""
        mesh = trainer.parallel_dims.get_optional_mesh("pp")
        if mesh is None or not trainer.model.tied:
            return None
        embeddings = [part.tok_embeddings for part in trainer.model_parts]
        heads = [part.lm_head for part in trainer.model_parts]
        for module, first in [*((m, True) for m in embeddings), *((m, False) for m in heads)]:
            if not isinstance(module, nn.Identity):
                return cls(module.weight, mesh.get_group(), trainer.optimizers, first=first)
        return None

    @torch.no_grad()
    def copy_to_last(self) -> None:
        """Copy the embedding's values to the head."""
        self._from_first(_local(self.weight))

    @torch.no_grad()
    def gather_gradients(self) -> None:
        """Add the head's gradient to the embedding's, and zero it, so that the norm counts the sum once."""
        assert self.weight.grad is not None
        grad = _local(self.weight.grad)
        if self.first:
            other = torch.empty_like(grad)
            dist.recv(other, src=self.peer, group=self.group)
            grad.add_(other)
        else:
            dist.send(grad.contiguous(), dst=self.peer, group=self.group)
            grad.zero_()

    @torch.no_grad()
    def return_gradients(self) -> None:
        """Copy the embedding's summed and clipped gradient to the head."""
        assert self.weight.grad is not None
        self._from_first(_local(self.weight.grad))

    def _from_first(self, tensor: torch.Tensor) -> None:
        if self.first:
            dist.send(tensor.contiguous(), dst=self.peer, group=self.group)
        else:
            other = torch.empty_like(tensor, memory_format=torch.contiguous_format)
            dist.recv(other, src=self.peer, group=self.group)
            tensor.copy_(other)


def _local(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor
