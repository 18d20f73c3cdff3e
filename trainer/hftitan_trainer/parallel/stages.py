"""A pipeline stage: transformers' forward pass without the modules of the other stages.

torchtitan (experiments/transformers_modeling_backend/pipeline.py) replaces those by identities. Without the changes
here, every stage would run what the model's forward does besides calling its modules, and from the second stage on,
settings by layer number would apply to the wrong layers.
"""

from __future__ import annotations

import copy
from typing import Any

from torch import nn


def fit(model: Any) -> None:
    """Make a stage's copy of the model compute only its own part."""
    body = model.model.model
    kinds = getattr(body.config, "layer_types", None)
    if kinds:
        # transformers looks up a layer's mask and rotary embedding by its index within the stage.
        body.config = copy.copy(body.config)
        body.config.layer_types = [kinds[layer.self_attn.layer_idx] for layer in model.layers]
    if isinstance(model.tok_embeddings, nn.Identity) and hasattr(body, "embedding_multiplier"):
        body.embedding_multiplier = 1.0  # Granite scales the output of its embedding
