"""Mixture-of-experts layers: transformers' own router and experts, their weights in files, and expert parallelism.

torchtitan swaps in its own mixture instead (experiments/transformers_modeling_backend/moe_replacement.py). That one
computes in bfloat16 whatever the job says, knows no activation but SiLU, adds a bias to the router that no Hugging Face
model has, and leaves the weights of the folder behind; so it is not used (TitanModelConfig asks for none).
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

# How transformers' conversion_mapping.py names in files what its classes hold in one tensor for all experts of a layer.
_OF_LLAMA = {"block": "mlp", "gate": "gate_proj", "up": "up_proj", "down": "down_proj"}
_IN_FILES: Mapping[str, Mapping[str, str]] = {
    "mixtral": {"block": "block_sparse_moe", "gate": "w1", "up": "w3", "down": "w2"}
}
_STACKED = re.compile(r"^(?P<prefix>.*)\.mlp\.experts\.(?P<part>gate_up_proj|down_proj)$")
_ONE_EXPERT = re.compile(r"\.experts\.\d+\.")


class FileNames:
    """Names of a model's tensors in safetensors files, where each expert has its own, and in transformers' classes."""

    def __init__(self, model_type: str, *, mixture: bool) -> None:
        self._names = _IN_FILES.get(model_type, _OF_LLAMA)
        self._mixture = mixture

    def of(self, name: str) -> str:
        """The name in files of a tensor that is not stacked."""
        return name.replace(".mlp.", f".{self._names['block']}.") if self._mixture else name

    def back(self, name: str) -> str:
        """The inverse of `of`."""
        return name.replace(f".{self._names['block']}.", ".mlp.") if self._mixture else name

    def pieces(self, name: str, tensor: torch.Tensor) -> dict[str, torch.Tensor]:
        """What stands in files for `tensor`, whole or a shard, as views: its experts, or the tensor itself.

        A stacked tensor is [experts, 2 x intermediate, hidden] (gate above up) or [experts, hidden, intermediate]; of a
        shard only the experts that are on this rank are named.
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
        """Whether files hold a tensor for each expert instead."""
        return self._mixture and _STACKED.match(name) is not None

    def is_one_expert(self, name: str) -> bool:
        """Whether a name of a file is a part of a stacked tensor."""
        return self._mixture and _ONE_EXPERT.search(name) is not None


def _local_experts(tensor: torch.Tensor) -> tuple[int, torch.Tensor]:
    """Number of the first expert on this rank, and its experts: shards are cut between experts only."""
    if not isinstance(tensor, DTensor):
        return 0, tensor
    local = tensor.to_local()
    assert local.shape[1:] == tensor.shape[1:]
    _, offset = compute_local_shape_and_global_offset(tensor.shape, tensor.device_mesh, tensor.placements)
    return offset[0], local


def mixtures(layers: Any) -> Iterator[nn.Module]:
    """The blocks of a model's layers that have experts."""
    for layer in layers:
        if layer.moe_enabled:
            yield layer.mlp


def idle_parameters(layers: Any) -> int:
    """How many of the experts' parameters a token does not meet."""
    found = 0
    for block in mixtures(layers):
        size = sum(parameter.numel() for parameter in block.experts.parameters())
        found += size - size * block.gate.top_k // block.experts.num_experts
    return found


def spread(block: nn.Module, mesh: DeviceMesh) -> None:
    """Let each rank of `mesh` (the ep axis) compute the experts it holds, for the tokens of all.

    Every rank gathers the tokens of its group and their routes, computes what its own experts add to each, and the
    sums are scattered back; both directions have equal sizes on all ranks, so that no rank waits for counts first.
    `block.experts` holds its part of the experts already, and every rank has equally many tokens.
    """
    experts: Any = block.experts
    forward, group = experts.forward, mesh.get_group()
    total, local = experts.num_experts, experts.num_experts // mesh.size()
    first = mesh.get_local_rank() * local
    # parallelize.py apply_fsdp looks for torchtitan's own mixture to tell experts from other weights.
    block.routed_experts = SimpleNamespace(  # type: ignore[assignment]
        inner_experts=SimpleNamespace(parameters=experts.parameters, num_experts=total)
    )
    experts.num_experts = local
    experts._is_expert_parallel = True  # transformers' experts skip the number `num_experts`: not here

    def over_all_tokens(hidden: torch.Tensor, chosen: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
        hidden = _arrived(collectives.all_gather_single_autograd(hidden, 0, group))
        weights = _arrived(collectives.all_gather_single_autograd(weights, 0, group))
        chosen = collectives.all_gather_single(chosen, 0, group) - first
        elsewhere = (chosen < 0) | (chosen >= local)
        out = forward(hidden, chosen.masked_fill(elsewhere, local), weights.masked_fill(elsewhere, 0.0))
        return collectives.reduce_scatter_single_autograd(out, "sum", 0, group)

    experts.forward = over_all_tokens


def _arrived(gathered: torch.Tensor) -> torch.Tensor:
    """Wait for a collective before the next one starts: on gloo, gathers that overlap corrupt the heap now and then
    (torch 2.15, ProcessGroupGloo.cpp allgather_coalesced). On a GPU only the stream waits."""
    if isinstance(gathered, collectives.AsyncCollectiveTensor):  # not so while torch.compile traces
        gathered.trigger_wait()
    return gathered


class SelectiveRecomputation(SelectiveAC):
    """torchtitan's, which keeps what topk returned for the backward pass; transformers' routers normalise it in place.

    Without this torch refuses the backward pass of Mixtral and Qwen3-MoE (activation_checkpoint.py keeps aten.topk).
    """

    @dataclass(kw_only=True, slots=True)
    class Config(SelectiveAC.Config):
        pass

    def get_save_ops(self) -> set[Any]:
        return super().get_save_ops() - {torch.ops.aten.topk.default}
