"""Attention in packed rows: causal, within documents, and within a layer's sliding window.

Positions restart at 0 where a document starts, so masks are computed from positions alone. On GPUs the mask is
torchtitan's flex BlockMask. FlexAttention has no backward pass on CPUs, so there the mask is a boolean tensor and the
kernel is scaled_dot_product_attention. A row with one document needs no mask, only `is_causal`.

Layers of one model may differ: some attend to the whole document, others to a window. torchtitan's backend and many
transformers models pass one mask to all layers. So the mask has both parts, and the kernel selects one by the
`sliding_window` that each layer passes.
"""

from __future__ import annotations

from typing import Any

import torch
from torch.nn.attention.flex_attention import BlockMask, and_masks
from torch.nn.functional import scaled_dot_product_attention

PLAIN_CAUSAL = (1, 1, 1, 1)
"""Shape of the mask for "every row is one document". It is 4-D because transformers passes a 4-D mask to the attention
function unchanged (masking_utils._preprocess_mask_arguments)."""
WHOLE, WINDOWED = "full_attention", "sliding_attention"
"""Layer types, as in transformers' configs (layer_types)."""


def document_mask(positions: torch.Tensor, window: int | None = None) -> torch.Tensor:
    """Return the attention mask for positions [batch, seq] that restart at 0 with each document.

    The mask is boolean, [batch, 1, seq, seq] (True: may attend), or has shape PLAIN_CAUSAL if no row has a second
    document. If `window` (the keys that a query attends to, including its own) is shorter than the rows, the mask is
    [batch, 2, seq, seq]: first for layers without a window, then for layers with it.
    """
    limited = window is not None and window < positions.shape[1]
    if not limited and not bool((positions[:, 1:] == 0).any()):
        return torch.ones(PLAIN_CAUSAL, dtype=torch.bool, device=positions.device)
    document = torch.cumsum(positions == 0, dim=1)
    whole = torch.tril(document[:, :, None] == document[:, None, :])
    if not limited:
        return whole.unsqueeze(1)
    assert window is not None
    return torch.stack([whole, torch.triu(whole, 1 - window)], dim=1)


def dense_mask(positions: torch.Tensor, window: int | None = None) -> torch.Tensor:
    """Return `document_mask` in full size: [batch, 1 or 2, seq, seq]."""
    mask = document_mask(positions, window)
    if mask.shape != PLAIN_CAUSAL:
        return mask
    batch, seq = positions.shape
    causal = torch.ones(seq, seq, dtype=torch.bool, device=positions.device).tril()
    return causal.expand(batch, 1, seq, seq)


def block_mask(positions: torch.Tensor, window: int) -> BlockMask:
    """Return torchtitan's causal document mask (model.py get_attention_masks), limited to `window` keys."""
    from torchtitan.models.common import attention as titan

    batch, seq = positions.shape
    inside = and_masks(
        titan.get_causal_mask_mod(),
        titan.get_document_mask_mod(positions),
        titan.get_sliding_window_mask_mod(window),
    )
    return titan.create_attention_mask(inside, batch, None, seq, seq, device=positions.device)


class LayeredMask(BlockMask):
    """The BlockMask for layers without a window, with the mask for layers with a window as an attribute.

    It must be a BlockMask: transformers passes a BlockMask to every layer unchanged, but a pair only in some families.
    """

    def __init__(self, masks: dict[str, BlockMask]) -> None:
        self.__dict__.update(masks[WHOLE].__dict__)
        self.windowed = masks[WINDOWED]


def of_layer(mask: Any, window: int | None) -> Any:
    """Return the part of `mask` for a layer with this sliding window, or without one."""
    if isinstance(mask, LayeredMask):
        return mask if window is None else mask.windowed
    if isinstance(mask, torch.Tensor) and mask.dtype == torch.bool:
        return mask[:, :1] if window is None else mask[:, -1:]
    return mask


def sdpa_attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    mask: torch.Tensor,
    *,
    scaling: float | None = None,
    dropout: float = 0.0,
    softcap: float | None = None,
    s_aux: torch.Tensor | None = None,
    **_kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """Compute attention with a layer's part of a `document_mask`, for transformers' AttentionInterface.

    query [batch, heads, q, dim], key and value [batch, kv heads, kv, dim] -> [batch, q, heads, dim]. Under context
    parallelism, q is this rank's part of the sequence and the mask has only its rows.
    """
    if s_aux is not None:
        raise NotImplementedError(f"{type(module).__name__}: attention sinks have no kernel on the CPU")
    if query.shape[1] != key.shape[1]:
        groups = query.shape[1] // key.shape[1]
        key, value = (x.repeat_interleave(groups, dim=1) for x in (key, value))
    plain = mask.shape == PLAIN_CAUSAL
    if softcap is not None:
        return _softcapped(query, key, value, None if plain else mask, scaling, softcap), None
    out = scaled_dot_product_attention(
        query, key, value, attn_mask=None if plain else mask, dropout_p=dropout, scale=scaling, is_causal=plain
    )
    return out.transpose(1, 2).contiguous(), None


def _softcapped(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    mask: torch.Tensor | None,
    scaling: float | None,
    softcap: float,
) -> torch.Tensor:
    """Compute attention with scores capped to (-softcap, softcap) before masking, as in Gemma 2. No fused kernel has
    this."""
    scale = scaling if scaling is not None else query.shape[-1] ** -0.5
    scores = softcap * torch.tanh(query @ key.transpose(-1, -2) * scale / softcap)
    if mask is None:
        mask = torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device).tril()
    weights = scores.masked_fill(~mask, float("-inf")).softmax(dim=-1, dtype=torch.float32).to(query.dtype)
    return (weights @ value).transpose(1, 2).contiguous()


def install() -> None:
    """Patch torchtitan's attention kernel to accept boolean masks besides BlockMasks, and to use a layer's part.

    Upstream: experiments/transformers_modeling_backend/model.py calls flex_attention_forward for every mask, both in
    HFFlexKernel and without it. Boolean masks reach it only on CPUs (see HFTitanModel.get_attention_masks).
    """
    from torchtitan.experiments.transformers_modeling_backend import model as backend

    flex = backend.flex_attention_forward
    if getattr(flex, "_hftitan", False):
        return

    def attention(module, query, key, value, mask, **kwargs):  # type: ignore[no-untyped-def]
        mask = of_layer(mask, kwargs.get("sliding_window"))
        if isinstance(mask, torch.Tensor) and mask.dtype == torch.bool:
            return sdpa_attention(module, query, key, value, mask, **kwargs)
        return flex(module, query, key, value, mask, **kwargs)

    attention._hftitan = True  # type: ignore[attr-defined]
    backend.flex_attention_forward = attention
