"""Attention inside packed rows: causal, and never across documents.

Positions restart at 0 where a new document starts in a row, so a mask follows from them alone. On GPUs the mask is
torchtitan's flex BlockMask. FlexAttention has no backward pass on processors, so there the mask is a boolean tensor and
the kernel is scaled_dot_product_attention; a row that is one document needs no mask at all, only `is_causal`.
"""

from __future__ import annotations

from typing import Any

import torch
from torch.nn.functional import scaled_dot_product_attention

PLAIN_CAUSAL = (1, 1, 1, 1)
"""Shape of the mask that stands for "every row is one document". It is 4-D since transformers hands an already 4-D
mask to the attention function untouched (masking_utils._preprocess_mask_arguments)."""


def document_mask(positions: torch.Tensor) -> torch.Tensor:
    """Who may attend to whom, from positions [batch, seq] that restart at 0 with each document.

    Returns a boolean mask [batch, 1, seq, seq] (True: may attend), or one of shape PLAIN_CAUSAL when no row holds a
    second document.
    """
    if not bool((positions[:, 1:] == 0).any()):
        return torch.ones(PLAIN_CAUSAL, dtype=torch.bool, device=positions.device)
    document = torch.cumsum(positions == 0, dim=1)
    same = document[:, :, None] == document[:, None, :]
    return torch.tril(same).unsqueeze(1)


def dense_mask(positions: torch.Tensor) -> torch.Tensor:
    """`document_mask`, always spelled out: [batch, 1, seq, seq]."""
    mask = document_mask(positions)
    if mask.shape != PLAIN_CAUSAL:
        return mask
    batch, seq = positions.shape
    causal = torch.ones(seq, seq, dtype=torch.bool, device=positions.device).tril()
    return causal.expand(batch, 1, seq, seq)


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
    """Attention with a boolean mask from `document_mask`, in the shape transformers' AttentionInterface asks for.

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
    """Let torchtitan's attention kernel take boolean masks beside BlockMasks.

    Upstream: experiments/transformers_modeling_backend/model.py calls flex_attention_forward for every mask, both in
    HFFlexKernel and without it. Boolean masks reach it only on CPUs (see HFTitanModel.get_attention_masks).
    """
    from torchtitan.experiments.transformers_modeling_backend import model as backend

    flex = backend.flex_attention_forward
    if getattr(flex, "_hftitan", False):
        return

    def attention(module, query, key, value, mask, **kwargs):  # type: ignore[no-untyped-def]
        if isinstance(mask, torch.Tensor) and mask.dtype == torch.bool:
            return sdpa_attention(module, query, key, value, mask, **kwargs)
        return flex(module, query, key, value, mask, **kwargs)

    attention._hftitan = True  # type: ignore[attr-defined]
    backend.flex_attention_forward = attention
