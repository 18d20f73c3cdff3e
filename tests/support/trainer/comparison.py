"""Results of transformers on the same rows, and the distance between results."""

from __future__ import annotations

import math
from pathlib import Path


def reference(
    folder: Path,
    rows: list[dict],
    *,
    own_mask: bool = False,
    dtype: str = "float32",
    device: str = "cpu",
    attention: str = "eager",
) -> tuple[float, float]:
    """Return loss and gradient norm by transformers, with masks built here from the positions, or with those that
    transformers builds itself (`own_mask`). `device` is torch's name for it."""
    import torch
    from transformers import AutoModelForCausalLM

    precision = getattr(torch, dtype)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=precision, attn_implementation=attention).to(device)
    keys = ("input", "labels", "positions")
    tokens, labels, positions = (torch.tensor([row[key] for row in rows], device=device) for key in keys)
    batch, seq = tokens.shape
    causal = torch.full((batch, 1, seq, seq), float("-inf"), dtype=precision, device=device)
    window = getattr(model.config, "sliding_window", None) or seq
    sliding = causal.clone()
    for b in range(batch):
        start = 0
        for i in range(seq):
            if positions[b, i] == 0:
                start = i
            causal[b, 0, i, start : i + 1] = 0.0
            sliding[b, 0, i, max(start, i + 1 - window) : i + 1] = 0.0
    kinds = getattr(model.config, "layer_types", None) or ()
    masks = sliding
    if kinds:
        masks = {"full_attention": causal, "sliding_attention": sliding} if "sliding_attention" in kinds else causal
    logits = model(tokens, attention_mask=None if own_mask else masks, position_ids=positions, use_cache=False).logits
    total = torch.nn.functional.cross_entropy(logits.flatten(0, 1).float(), labels.flatten(), reduction="sum")
    loss = total / (labels != -100).sum()
    loss.backward()
    norm = math.sqrt(sum(float(p.grad.double().square().sum()) for p in model.parameters() if p.grad is not None))
    return loss.item(), norm


def losses(result: dict) -> list[float]:
    return [step["loss"] for step in result["steps"]]


def norms(result: dict) -> list[float]:
    return [step["grad_norm"] for step in result["steps"]]


def distance(a: list[list[float]], b: list[list[float]]) -> float:
    return max(abs(x - y) for row_a, row_b in zip(a, b, strict=True) for x, y in zip(row_a, row_b, strict=True))
