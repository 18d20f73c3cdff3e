"""Mixture-of-experts layers: transformers' router and experts, their weights in files, and expert parallelism.

torchtitan's own mixture (experiments/transformers_modeling_backend/moe_replacement.py) is not used (TitanModelConfig
requests none). It always computes in bfloat16, supports only SiLU, adds a router bias that no Hugging Face model has,
and does not load the folder's weights.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import torch
import torch.distributed._functional_collectives as collectives
from torch import nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor
from torch.distributed.tensor._utils import compute_local_shape_and_global_offset
from torchtitan.distributed.activation_checkpoint import SelectiveAC

# Names in files, from transformers' conversion_mapping.py, for weights that its classes stack for all experts of a
# layer.
_OF_LLAMA = {"block": "mlp", "gate": "gate_proj", "up": "up_proj", "down": "down_proj"}
_IN_FILES: Mapping[str, Mapping[str, str]] = {
    "mixtral": {"block": "block_sparse_moe", "gate": "w1", "up": "w3", "down": "w2"}
}
_STACKED = re.compile(r"^(?P<prefix>.*)\.mlp\.experts\.(?P<part>gate_up_proj|down_proj)$")
_ONE_EXPERT = re.compile(r"\.experts\.\d+\.")


class FileNames:
    """Maps tensor names of transformers' classes to names in safetensors files, where each expert has its own
    tensors."""

    def __init__(self, model_type: str, *, mixture: bool) -> None:
        self._names = _IN_FILES.get(model_type, _OF_LLAMA)
        self._mixture = mixture

    def of(self, name: str) -> str:
        """Return the name in files of a tensor that is not stacked."""
        return name.replace(".mlp.", f".{self._names['block']}.") if self._mixture else name

    def back(self, name: str) -> str:
        """Return the inverse of `of`."""
        return name.replace(f".{self._names['block']}.", ".mlp.") if self._mixture else name

    def pieces(self, name: str, tensor: torch.Tensor) -> dict[str, torch.Tensor]:
        """Return what files have for `tensor`, whole or a shard, as views: its experts, or the tensor itself.

        A stacked tensor is [experts, 2 x intermediate, hidden] (gate above up) or [experts, hidden, intermediate]. For
        a shard, the result has only the experts on this rank.
        """
        stacked = _STACKED.match(name) if self._mixture else None
        if stacked is None:
            return {self.of(name): tensor}
        first, local = _local_experts(tensor)
        prefix = f"{stacked['prefix']}.{self._names['block']}.experts"
        found: dict[str, torch.Tensor] = {}
        for number, expert in enumerate(local, start=first):
            parts = ("down",) if stacked["part"] == "down_proj" else ("gate", "up")
            for part, view in zip(parts, expert.chunk(len(parts)), strict=True):
                found[f"{prefix}.{number}.{self._names[part]}.weight"] = view
        return found

    def is_stacked(self, name: str) -> bool:
        """Return whether files have a tensor for each expert instead."""
        return self._mixture and _STACKED.match(name) is not None

    def is_one_expert(self, name: str) -> bool:
        """Return whether a name in files is a part of a stacked tensor."""
        return self._mixture and _ONE_EXPERT.search(name) is not None


def _local_experts(tensor: torch.Tensor) -> tuple[int, torch.Tensor]:
    """Return the number of the first expert on this rank, and its experts. Shards split only between experts."""
    if not isinstance(tensor, DTensor):
        return 0, tensor
    local = tensor.to_local()
    assert local.shape[1:] == tensor.shape[1:]
    _, offset = compute_local_shape_and_global_offset(tensor.shape, tensor.device_mesh, tensor.placements)
    return offset[0], local


def mixtures(layers: Any) -> Iterator[nn.Module]:
    """Yield the blocks with experts."""
    for layer in layers:
        if layer.moe_enabled:
            yield layer.mlp


def idle_parameters(layers: Any) -> int:
    """Return the number of expert parameters that a token does not use."""
    found = 0
    for block in mixtures(layers):
        size = sum(parameter.numel() for parameter in block.experts.parameters())
        found += size - size * block.gate.top_k // block.experts.num_experts
    return found


def spread(block: nn.Module, mesh: DeviceMesh) -> None:
    """Make each rank of `mesh` (the ep axis) compute its own experts for the tokens of all ranks.

    Every rank gathers the tokens of its group and their routes, computes the output of its own experts for each token,
    and reduce-scatters the sums. All ranks exchange equal sizes, so no rank waits for counts first. `block.experts`
    must already hold only this rank's experts, and every rank must have the same number of tokens.
    """
    experts: Any = block.experts
    forward, group = experts.forward, mesh.get_group()
    total, local = experts.num_experts, experts.num_experts // mesh.size()
    first = mesh.get_local_rank() * local
    # parallelize.py apply_fsdp uses these attributes of torchtitan's mixture to tell experts from other weights.
    block.routed_experts = SimpleNamespace(  # type: ignore[assignment]
        inner_experts=SimpleNamespace(parameters=experts.parameters, num_experts=total)
    )
    experts.num_experts = local
    experts._is_expert_parallel = True  # transformers then skips index `num_experts`: not on this rank

    def over_all_tokens(hidden: torch.Tensor, chosen: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
        hidden = _arrived(collectives.all_gather_single_autograd(hidden, 0, group))
        weights = _arrived(collectives.all_gather_single_autograd(weights, 0, group))
        chosen = collectives.all_gather_single(chosen, 0, group) - first
        elsewhere = (chosen < 0) | (chosen >= local)
        out = forward(hidden, chosen.masked_fill(elsewhere, local), weights.masked_fill(elsewhere, 0.0))
        return collectives.reduce_scatter_single_autograd(out, "sum", 0, group)

    experts.forward = over_all_tokens


def _arrived(gathered: torch.Tensor) -> torch.Tensor:
    """Wait for a collective before the next one starts: on gloo, overlapping gathers sometimes corrupt the heap (torch
    2.15, ProcessGroupGloo.cpp allgather_coalesced). On a GPU only the stream waits."""
    if isinstance(gathered, collectives.AsyncCollectiveTensor):  # false while torch.compile traces
        gathered.trigger_wait()
    return gathered


class SelectiveRecomputation(SelectiveAC):
    """torchtitan's selective recomputation, without saving what topk returns: transformers' routers change it in place.

    Otherwise torch refuses the backward pass of Mixtral and Qwen3-MoE (activation_checkpoint.py saves aten.topk).
    """

    @dataclass(kw_only=True, slots=True)
    class Config(SelectiveAC.Config):
        pass

    def get_save_ops(self) -> set[Any]:
        return super().get_save_ops() - {torch.ops.aten.topk.default}
