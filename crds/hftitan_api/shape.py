"""Reads from a model's config.json the numbers that decide whether a mesh fits it.

A number that config.json does not give stays None, and what depends on it is not checked: nothing is invented.
Defaults of transformers' own config classes are used only where the class derives them from other keys.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

from hftitan_api.families import (
    DENSE,
    MIXTURES,
    UNBUILDABLE,
    WITHOUT_PIPELINE,
    WITHOUT_TENSOR_PARALLELISM,
)

SHAPE_KEYS = frozenset(
    {
        "hidden_size", "n_embd", "d_model", "intermediate_size", "n_inner", "ffn_dim", "num_hidden_layers", "n_layer",
        "n_layers", "num_layers", "num_attention_heads", "n_head", "n_heads", "num_heads", "num_key_value_heads",
        "head_dim", "vocab_size", "num_experts", "num_local_experts", "n_routed_experts", "n_shared_experts",
        "moe_intermediate_size", "shared_expert_intermediate_size", "first_k_dense_replace", "decoder_sparse_step",
        "q_lora_rank", "kv_lora_rank", "qk_rope_head_dim", "qk_nope_head_dim", "v_head_dim", "attention_bias",
        "mlp_bias", "qkv_bias", "use_bias", "use_qk_norm", "tie_word_embeddings",
    }
)  # fmt: skip
"""Keys of config.json that change which weights there are or their shapes: not possible on pretrained weights."""
IDENTITY_KEYS = frozenset({"model_type", "architectures", "auto_map", "quantization_config", "transformers_version"})
"""Keys that say which model it is; overriding one would be another model."""

_HEADS = ("num_attention_heads", "n_head", "n_heads", "num_heads")
_LAYERS = ("num_hidden_layers", "n_layer", "n_layers", "num_layers")
_HIDDEN = ("hidden_size", "n_embd", "d_model")
_POSITIONS = ("max_position_embeddings", "n_positions", "max_sequence_length")
_EXPERTS = ("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts")

# Their config classes take num_key_value_heads = num_attention_heads when the key is missing (transformers 5.23).
_MULTI_HEAD_BY_DEFAULT = frozenset(
    {
        "llama",
        "olmo",
        "olmo2",
        "olmo3",
        "olmoe",
        "cohere",
        "cohere2",
        "granite",
        "phi",
        "deepseek_v2",
        "gpt2",
        "gpt_neox",
    }
)

# What makes a Gemma 4 another kind of model, with the values that its config class has for missing keys.
_LAYER_PARTS = MappingProxyType({"hidden_size_per_layer_input": 256, "num_kv_shared_layers": 0})
# Kinds of layers (layer_types) that see of a row what the mask lets them see, and nothing else.
_ATTENTION = frozenset({"full_attention", "sliding_attention"})


@dataclass(frozen=True, slots=True)
class ModelShape:
    """Sizes of one causal LM; None where config.json does not say."""

    model_type: str = ""
    composite: bool = False
    """A causal LM inside a larger model (images, sound); the sizes are its own."""
    hidden_size: int | None = None
    intermediate_size: int | None = None
    layers: int | None = None
    heads: int | None = None
    kv_heads: int | None = None
    head_dim: int | None = None
    vocab_size: int | None = None
    tied_embeddings: bool = False
    experts: int | None = None
    """Routed experts of a layer; 0 for a dense model."""
    experts_per_token: int | None = None
    moe_intermediate_size: int | None = None
    uniform_layers: bool = True
    """All layers are alike; false when some of a mixture-of-experts model are dense."""
    biases: bool = False
    """config.json switches on biases that its type has not by default."""
    max_position_embeddings: int | None = None
    sliding_window: int | None = None
    """Keys that a query may look back to, where some layers limit it."""
    short_positions: int | None = None
    """Positions up to which rotary embeddings are of one kind, and of another for all words of a pass beyond."""
    attention_dropout: float = 0.0
    refused_axes: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))
    """Axes that the backend cannot use for this model, with the reason."""
    refused: tuple[str, ...] = ()
    """Reasons why the backend would train another model than this one, or none at all."""

    @classmethod
    def from_config(cls, config: Mapping[str, Any], overrides: Mapping[str, Any] | None = None) -> ModelShape:
        """Read the dict of config.json. `overrides` are the job's; of a composite model the text part counts."""
        text = config.get("text_config")
        c: dict[str, Any] = {**config, **text} if isinstance(text, Mapping) else dict(config)
        c.update(overrides or {})
        model_type = c["model_type"] if isinstance(c.get("model_type"), str) else ""
        heads, hidden = _count(c, *_HEADS), _count(c, *_HIDDEN)
        experts = _experts(c)
        return cls(
            model_type=model_type,
            composite=isinstance(text, Mapping),
            hidden_size=hidden,
            intermediate_size=_count(c, "intermediate_size", "n_inner", "ffn_dim"),
            layers=_count(c, *_LAYERS),
            heads=heads,
            kv_heads=_kv_heads(c, model_type, heads),
            head_dim=_count(c, "head_dim") or _derived_head_dim(model_type, hidden, heads),
            vocab_size=_count(c, "vocab_size"),
            tied_embeddings=c.get("tie_word_embeddings") is True,
            experts=experts,
            experts_per_token=_count(c, "num_experts_per_tok", "top_k_experts"),
            moe_intermediate_size=_count(c, "moe_intermediate_size")
            or (_count(c, "intermediate_size") if model_type == "mixtral" else None),
            uniform_layers=not (
                c.get("mlp_only_layers")
                or c.get("first_k_dense_replace")
                or c.get("decoder_sparse_step") not in (None, 1)
            ),
            biases=any(c.get(key) is True for key in ("attention_bias", "mlp_bias")),
            max_position_embeddings=_count(c, *_POSITIONS),
            sliding_window=_sliding_window(c),
            short_positions=_short_positions(c),
            attention_dropout=dropout if isinstance(dropout := c.get("attention_dropout"), float) else 0.0,
            refused_axes=_refused_axes(c, model_type, experts),
            refused=tuple(_refused(c, model_type, experts)),
        )


def _count(config: Mapping[str, Any], *keys: str) -> int | None:
    """The first of the keys that holds a positive whole number of a believable size."""
    for key in keys:
        value = config.get(key)
        if isinstance(value, int) and not isinstance(value, bool) and 0 < value < 2**40:
            return value
    return None


def _kv_heads(config: Mapping[str, Any], model_type: str, heads: int | None) -> int | None:
    if "qk_rope_head_dim" in config:  # multi-head latent attention: every head has its own keys and values
        return heads
    if "num_key_value_heads" in config:
        return _count(config, "num_key_value_heads") or (heads if config["num_key_value_heads"] is None else None)
    if config.get("multi_query") is True:
        return 1
    return heads if model_type in _MULTI_HEAD_BY_DEFAULT else None


def _derived_head_dim(model_type: str, hidden: int | None, heads: int | None) -> int | None:
    if model_type.startswith(("qwen3", "gemma")):  # their classes have a constant of their own
        return None
    return hidden // heads if hidden and heads and hidden % heads == 0 else None


def _sliding_window(config: Mapping[str, Any]) -> int | None:
    kinds = config.get("layer_types")
    if config.get("use_sliding_window") is False or (
        isinstance(kinds, list) and set(map(str, kinds)) == {"full_attention"}
    ):
        return None
    return _count(config, "sliding_window")


def _short_positions(config: Mapping[str, Any]) -> int | None:
    """Of "longrope", which older files call "su"."""
    rope = config.get("rope_parameters") or config.get("rope_scaling")
    if not isinstance(rope, Mapping) or (rope.get("rope_type") or rope.get("type")) not in ("longrope", "su"):
        return None
    key = "original_max_position_embeddings"
    return _count(rope, key) or _count(config, key)


def _experts(config: Mapping[str, Any]) -> int | None:
    if config.get("enable_moe_block") is False:
        return 0
    count = _count(config, *_EXPERTS)
    if count is not None:
        return count
    if any(key in config for key in _EXPERTS):
        return 0 if all(config.get(key) in (None, 0) for key in _EXPERTS) else None
    known_dense = isinstance(config.get("model_type"), str) and not any(
        "expert" in key or "moe" in key for key in config
    )
    return 0 if known_dense and "moe" not in config["model_type"] else None


def _refused_axes(config: Mapping[str, Any], model_type: str, experts: int | None) -> Mapping[str, str]:
    found: dict[str, str] = {}
    if experts:
        found["pp"] = "the backend has no pipeline for mixture-of-experts models"
        found["tp"] = "tensor parallelism cuts no experts; split by dpShard and ep"
    elif model_type:
        if reason := _unfit(model_type, WITHOUT_PIPELINE):
            found["pp"] = f"models of type {model_type} cannot be cut into pipeline stages: {reason}"
        if reason := _unfit(model_type, WITHOUT_TENSOR_PARALLELISM):
            found["tp"] = f"models of type {model_type} cannot be cut by tensor parallelism: {reason}; split by dpShard"
    limited = None
    if config.get("index_topk") is not None or model_type == "glm_moe_dsa":
        limited = "the backend trains models with a sparse-attention indexer by dp and ep only"
    elif model_type.startswith("gemma4"):
        limited = "the backend trains Gemma 4 by dp and ep only"
    if limited:
        found.update(dict.fromkeys(("tp", "cp", "pp"), limited))
    return MappingProxyType(found)


def _unfit(model_type: str, known: Mapping[str, str]) -> str | None:
    return known.get(model_type) or (None if model_type in DENSE else "no such model was compared with transformers'")


def _refused(config: Mapping[str, Any], model_type: str, experts: int | None) -> list[str]:
    found: list[str] = []
    if model_type in UNBUILDABLE:
        found.append(
            f"torchtitan's transformers backend fails on model type {model_type}: {UNBUILDABLE[model_type]}; use a "
            "Llama-like model (llama, mistral, qwen2, qwen3, smollm3, olmo2, ...)"
        )
    if model_type.startswith("gemma4") and experts:
        found.append("the backend's numbers for Gemma 4 with experts are wrong; use a dense Gemma 4")
    elif model_type.startswith("gemma4") and any(config.get(key, default) for key, default in _LAYER_PARTS.items()):
        found.append(
            "the backend builds no Gemma 4 with inputs of each layer (hidden_size_per_layer_input) or keys that layers "
            "share (num_kv_shared_layers)"
        )
    elif experts and model_type not in MIXTURES:
        found.append(
            f"mixture-of-experts models of type {model_type} were not compared with transformers' numbers; "
            f"use one of type {', '.join(sorted(MIXTURES))}"
        )
    kinds = config.get("layer_types")
    recurrent = sorted(set(map(str, kinds)) - _ATTENTION) if isinstance(kinds, list) else []
    if recurrent:
        found.append(
            f"it has layers of kind {recurrent[0]}, whose state would pass from a document to the next one in its row"
        )
    if config.get("use_bidirectional_attention") is True:
        found.append("it attends to later words (use_bidirectional_attention), and training masks them")
    if experts and config.get("output_router_logits") is True:
        found.append(
            "its config asks for output_router_logits, and the load-balancing loss that this adds in transformers is "
            "not computed; set output_router_logits: false in model.overrides"
        )
    if not found and model_type and model_type not in DENSE | MIXTURES and not config.get("auto_map"):
        found.append(
            f"models of type {model_type} were not compared with transformers' numbers, or are not equal; "
            "use a Llama-like model (llama, mistral, qwen2, qwen3, smollm3, olmo2, ...)"
        )
    return found
