"""Reads the sizes from a model's config.json that decide whether a mesh fits the model.

A size that is not in config.json is None, and rules that need it are skipped. Defaults of transformers' config classes
are used only if the class derives them from other keys.
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
"""Keys of config.json that add, remove or reshape weights. They cannot be overridden for pretrained weights."""
IDENTITY_KEYS = frozenset({"model_type", "architectures", "auto_map", "quantization_config", "transformers_version"})
"""Keys of config.json that identify the model. They cannot be overridden."""

_HEADS = ("num_attention_heads", "n_head", "n_heads", "num_heads")
_LAYERS = ("num_hidden_layers", "n_layer", "n_layers", "num_layers")
_HIDDEN = ("hidden_size", "n_embd", "d_model")
_POSITIONS = ("max_position_embeddings", "n_positions", "max_sequence_length")
_EXPERTS = ("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts")

# Their config classes use num_attention_heads if num_key_value_heads is missing (transformers 5.23).
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

# Keys of a Gemma 4 config that the backend supports only with the value 0, and the defaults of its config class.
_LAYER_PARTS = MappingProxyType({"hidden_size_per_layer_input": 256, "num_kv_shared_layers": 0})
# Types of layers (layer_types) for which the attention mask separates the documents of a row.
_ATTENTION = frozenset({"full_attention", "sliding_attention"})


@dataclass(frozen=True, slots=True)
class ModelShape:
    """Sizes of one causal LM. A size that is not in config.json is None."""

    model_type: str = ""
    composite: bool = False
    """Whether the causal LM is part of a multimodal model. The sizes are those of the causal LM."""
    hidden_size: int | None = None
    intermediate_size: int | None = None
    layers: int | None = None
    heads: int | None = None
    kv_heads: int | None = None
    head_dim: int | None = None
    vocab_size: int | None = None
    tied_embeddings: bool = False
    experts: int | None = None
    """Routed experts per layer. 0 for a dense model."""
    experts_per_token: int | None = None
    moe_intermediate_size: int | None = None
    uniform_layers: bool = True
    """Whether all layers are equal. False if a mixture-of-experts model has dense layers."""
    biases: bool = False
    """Whether config.json enables biases that the model type does not have by default."""
    max_position_embeddings: int | None = None
    sliding_window: int | None = None
    """Window of the layers with sliding-window attention, in tokens."""
    short_positions: int | None = None
    """With longrope: if a pass has more positions, all its tokens use different rotary embeddings."""
    attention_dropout: float = 0.0
    refused_axes: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))
    """Axes that the backend does not support for this model, with the reason."""
    refused: tuple[str, ...] = ()
    """Reasons why the backend cannot train this model, or would train it wrongly."""

    @classmethod
    def from_config(cls, config: Mapping[str, Any], overrides: Mapping[str, Any] | None = None) -> ModelShape:
        """Read the content of config.json with the job's overrides. For a composite model, read its text_config."""
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
    """Return the first value of the keys that is a positive whole number below 2**40, or None."""
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
    if model_type.startswith(("qwen3", "gemma")):  # their config classes have a constant default
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
    """Read "longrope", which older files call "su"."""
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
        found["pp"] = "the backend does not support pipeline parallelism for mixtures of experts"
        found["tp"] = "tensor parallelism does not split experts (use dpShard and ep instead)"
    elif model_type:
        if reason := _unfit(model_type, WITHOUT_PIPELINE):
            found["pp"] = f"models of type {model_type} do not support pipeline parallelism: {reason}"
        if reason := _unfit(model_type, WITHOUT_TENSOR_PARALLELISM):
            found["tp"] = (
                f"models of type {model_type} do not support tensor parallelism: {reason} (use dpShard instead)"
            )
    limited = None
    if config.get("index_topk") is not None or model_type == "glm_moe_dsa":
        limited = "the backend supports only dp and ep for models with a sparse-attention indexer"
    elif model_type.startswith("gemma4"):
        limited = "the backend supports only dp and ep for Gemma 4"
    if limited:
        found.update(dict.fromkeys(("tp", "cp", "pp"), limited))
    return MappingProxyType(found)


def _unfit(model_type: str, known: Mapping[str, str]) -> str | None:
    return known.get(model_type) or (None if model_type in DENSE else "this type is not tested against transformers")


def _refused(config: Mapping[str, Any], model_type: str, experts: int | None) -> list[str]:
    found: list[str] = []
    if model_type in UNBUILDABLE:
        found.append(
            f"torchtitan's transformers backend fails on model type {model_type}: {UNBUILDABLE[model_type]}; use a "
            "Llama-like model (llama, mistral, qwen2, qwen3, smollm3, olmo2, ...)"
        )
    if model_type.startswith("gemma4") and experts:
        found.append("the backend computes wrong results for Gemma 4 with experts; use a dense Gemma 4")
    elif model_type.startswith("gemma4") and any(config.get(key, default) for key, default in _LAYER_PARTS.items()):
        found.append(
            "the backend does not support Gemma 4 with per-layer inputs (hidden_size_per_layer_input) or with keys and "
            "values shared between layers (num_kv_shared_layers); use a Gemma 4 without them"
        )
    elif experts and model_type not in MIXTURES:
        found.append(
            f"mixture-of-experts models of type {model_type} are not tested against transformers; "
            f"use one of type {', '.join(sorted(MIXTURES))}"
        )
    kinds = config.get("layer_types")
    recurrent = sorted(set(map(str, kinds)) - _ATTENTION) if isinstance(kinds, list) else []
    if recurrent:
        found.append(
            f"it has layers of type {recurrent[0]}, which would carry their state into the next document of a row; use "
            "a model with attention layers only"
        )
    if config.get("use_bidirectional_attention") is True:
        found.append(
            "it attends to later tokens (use_bidirectional_attention), and training masks them; use a causal model"
        )
    if experts and config.get("output_router_logits") is True:
        found.append(
            "its config sets output_router_logits, and the trainer does not compute the load-balancing loss that "
            "transformers adds; set output_router_logits: false in model.overrides"
        )
    if not found and model_type and model_type not in DENSE | MIXTURES and not config.get("auto_map"):
        found.append(
            f"models of type {model_type} are not tested against transformers, or their results differ; "
            "use a Llama-like model (llama, mistral, qwen2, qwen3, smollm3, olmo2, ...)"
        )
    return found
