"""The numbers of a model that decide whether a mesh fits it, read from its config.json."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, slots=True)
class ModelShape:
    model_type: str = ""
    heads: int | None = None
    kv_heads: int | None = None
    layers: int | None = None
    vocab_size: int | None = None
    experts: int | None = None
    max_position_embeddings: int | None = None
    refused_axes: Mapping[str, str] = field(default_factory=dict)
    refused: str | None = None

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> ModelShape:
        return cls(
            heads=config.get("num_attention_heads"),
            kv_heads=config.get("num_key_value_heads"),
            layers=config.get("num_hidden_layers"),
            max_position_embeddings=config.get("max_position_embeddings"),
        )
