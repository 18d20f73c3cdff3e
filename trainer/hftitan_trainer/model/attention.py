"""Attention in packed rows: causal, within documents, and within a layer's sliding window.

Positions restart at 0 where a new document starts in a row, so a mask follows from them alone. On GPUs the mask is
torchtitan's flex BlockMask. FlexAttention has no backward pass on processors, so there the mask is a boolean tensor and
the kernel is scaled_dot_product_attention; a row that is one document needs no mask at all, only `is_causal`.

Layers of one model may differ: some look back over the whole document, others over a window. torchtitan's backend and
many of transformers' models hand one mask to all layers, so the one mask carries both, and the kernel picks by the
`sliding_window` that each layer of transformers passes to it.
"""

from __future__ import annotations

from typing import Any

import torch
from torch.nn.attention.flex_attention import BlockMask, and_masks
from torch.nn.functional import scaled_dot_product_attention

PLAIN_CAUSAL = (1, 1, 1, 1)
"""Shape of the mask that stands for "every row is one document". It is 4-D since transformers hands an already 4-D
mask to the attention function untouched (masking_utils._preprocess_mask_arguments)."""
WHOLE, WINDOWED = "full_attention", "sliding_attention"
"""Kinds of layers, as transformers' configs name them (layer_types)."""


def document_mask(positions: torch.Tensor, window: int | None = None) -> torch.Tensor:
    """Who may attend to whom, from positions [batch, seq] that restart at 0 with each document.

    Returns a boolean mask [batch, 1, seq, seq] (True: may attend), or one of shape PLAIN_CAUSAL when no row holds a
    second document. Where `window` (the keys that a query sees, its own included) is shorter than the rows, the mask is
    [batch, 2, seq, seq]: for layers that see the whole document, and for those with the window.
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
    """`document_mask`, always spelled out: [batch, 1 or 2, seq, seq]."""
    mask = document_mask(positions, window)
    if mask.shape != PLAIN_CAUSAL:
        return mask
    batch, seq = positions.shape
    causal = torch.ones(seq, seq, dtype=torch.bool, device=positions.device).tril()
    return causal.expand(batch, 1, seq, seq)


def block_mask(positions: torch.Tensor, window: int) -> BlockMask:
    """torchtitan's causal document mask (model.py get_attention_masks), and within `window` besides."""
    from torchtitan.models.common import attention as titan

    batch, seq = positions.shape
    inside = and_masks(
        titan.get_causal_mask_mod(),
        titan.get_document_mask_mod(positions),
        titan.get_sliding_window_mask_mod(window),
    )
    return titan.create_attention_mask(inside, batch, None, seq, seq, device=positions.device)


class LayeredMask(BlockMask):
    """The BlockMask of layers that see the whole document, which carries that of the layers with a window.

    It has to be a BlockMask: transformers hands one to every layer untouched, and a pair only in some families.
    """

    def __init__(self, masks: dict[str, BlockMask]) -> None:
        self.__dict__.update(masks[WHOLE].__dict__)
        self.windowed = masks[WINDOWED]


def of_layer(mask: Any, window: int | None) -> Any:
    """The part of `mask` that is meant for a layer with this sliding window, or with none."""
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
    """Attention with a layer's part of a `document_mask`, in the shape transformers' AttentionInterface asks for.

    query [batch, heads, q, dim], key and value [batch, kv heads, kv, dim] -> [batch, q, heads, dim]. Under context
    parallelism q is this rank's part of the sequence and the mask its rows.
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
    """The same with scores squashed to (-softcap, softcap) before the mask, as Gemma 2 does; no fused kernel has it."""
    scale = scaling if scaling is not None else query.shape[-1] ** -0.5
    scores = softcap * torch.tanh(query @ key.transpose(-1, -2) * scale / softcap)
    if mask is None:
        mask = torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device).tril()
    weights = scores.masked_fill(~mask, float("-inf")).softmax(dim=-1, dtype=torch.float32).to(query.dtype)
    return (weights @ value).transpose(1, 2).contiguous()


def install() -> None:
    """Let torchtitan's attention kernel take boolean masks beside BlockMasks, and a layer's part of either.

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
