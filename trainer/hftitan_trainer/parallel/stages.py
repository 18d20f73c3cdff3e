"""A pipeline stage: transformers' forward pass without the modules of the other stages.

torchtitan (experiments/transformers_modeling_backend/pipeline.py) replaces those by identities. What a model's forward
does besides calling its parts would happen in every stage, and what it knows of its layers by their number would be
taken for the wrong ones from the second stage on.
"""

from __future__ import annotations

import copy
from typing import Any

from torch import nn


def fit(model: Any) -> None:
    """Make a stage's copy of the model compute its own part alone."""
    body = model.model.model
    kinds = getattr(body.config, "layer_types", None)
    if kinds:
        # Which mask and which rotary embedding a layer gets is looked up by its place in the stage.
        body.config = copy.copy(body.config)
        body.config.layer_types = [kinds[layer.self_attn.layer_idx] for layer in model.layers]
    if isinstance(model.tok_embeddings, nn.Identity) and hasattr(body, "embedding_multiplier"):
        body.embedding_multiplier = 1.0  # Granite scales what its embedding returns
