"""Sizes read from config.json, and sizes that stay unknown."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hftitan_api.families import UNBUILDABLE
from hftitan_api.shape import ModelShape

READ = {
    "names of gpt2": (
        {"model_type": "gpt2", "n_head": 12, "n_layer": 6, "n_embd": 768, "n_positions": 1024, "vocab_size": 50257},
        {"heads": 12, "kv_heads": 12, "layers": 6, "hidden_size": 768, "head_dim": 64, "max_position_embeddings": 1024},
    ),
    "kv heads missing, derived default": ({"model_type": "llama", "num_attention_heads": 8}, {"kv_heads": 8}),
    "kv heads missing, constant default": ({"model_type": "qwen2", "num_attention_heads": 8}, {"kv_heads": None}),
    "kv heads null": ({"model_type": "qwen2", "num_attention_heads": 8, "num_key_value_heads": None}, {"kv_heads": 8}),
    "multi-query": ({"num_attention_heads": 8, "multi_query": True}, {"kv_heads": 1}),
    "latent attention": (
        {"model_type": "deepseek_v3", "num_attention_heads": 128, "num_key_value_heads": 1, "qk_rope_head_dim": 64},
        {"kv_heads": 128},
    ),
    "head_dim decoupled": (
        {"model_type": "qwen3", "hidden_size": 1024, "num_attention_heads": 16, "head_dim": 128},
        {"head_dim": 128},
    ),
    "head_dim with a constant default": (
        {"model_type": "qwen3", "hidden_size": 1024, "num_attention_heads": 16},
        {"head_dim": None},
    ),
    "text_config of a composite model": (
        {"tie_word_embeddings": True, "text_config": {"model_type": "gemma3_text", "num_hidden_layers": 4}},
        {"model_type": "gemma3_text", "layers": 4, "tied_embeddings": True},
    ),
    "dense": ({"model_type": "llama"}, {"experts": 0}),
    "dense, zero experts": ({"model_type": "qwen2_moe", "num_experts": 0}, {"experts": 0}),
    "experts under another name": ({"model_type": "deepseek_v3", "n_routed_experts": 64}, {"experts": 64}),
    "experts unknown": ({"model_type": "some_moe"}, {"experts": None}),
    "no type": ({}, {"experts": None, "model_type": "", "heads": None, "vocab_size": None}),
    "invalid values": (
        {"model_type": 3, "num_attention_heads": -1, "vocab_size": 2**70, "num_hidden_layers": 1.5, "text_config": "x"},
        {"model_type": "", "heads": None, "vocab_size": None, "layers": None},
    ),
    "some layers dense": ({"model_type": "qwen3_moe", "mlp_only_layers": [0]}, {"uniform_layers": False}),
}


@pytest.mark.parametrize("case", READ)
def test_sizes_in_config(case):
    config, wanted = READ[case]
    shape = ModelShape.from_config(config)
    assert {name: getattr(shape, name) for name in wanted} == wanted


def test_untested_family_is_rejected_by_name():
    (reason,) = ModelShape.from_config({"model_type": "gpt2"}).refused
    assert reason.startswith("models of type gpt2 are not tested against transformers")


def test_model_with_remote_code_is_not_rejected():
    config = {"model_type": "nonesuch", "auto_map": {"AutoModelForCausalLM": "modeling.Nonesuch"}}
    assert ModelShape.from_config(config).refused == ()


@pytest.mark.parametrize("model_type", UNBUILDABLE)
def test_family_that_the_backend_cannot_build_is_rejected_by_name(model_type):
    (reason,) = ModelShape.from_config({"model_type": model_type}).refused
    assert reason.startswith(f"torchtitan's transformers backend fails on model type {model_type}: ")


def test_llama_has_no_restrictions():
    shape = ModelShape.from_config({"model_type": "llama", "num_hidden_layers": 2})
    assert (shape.refused, dict(shape.refused_axes), shape.composite) == ((), {}, False)


_KEYS = [
    "model_type",
    "num_attention_heads",
    "num_key_value_heads",
    "hidden_size",
    "vocab_size",
    "num_experts",
    "layer_types",
    "sliding_window",
    "mlp_only_layers",
    "decoder_sparse_step",
    "index_topk",
    "text_config",
    "tie_word_embeddings",
    "head_dim",
    "multi_query",
]
_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=6),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(_KEYS), inner, max_size=3),
    max_leaves=6,
)


@settings(max_examples=200, deadline=None)
@given(st.dictionaries(st.sampled_from(_KEYS), _VALUES), st.dictionaries(st.sampled_from(_KEYS), _VALUES))
def test_any_config_gives_positive_sizes_or_none(config, overrides):
    shape = ModelShape.from_config(config, overrides)
    for number in (shape.heads, shape.kv_heads, shape.head_dim, shape.vocab_size, shape.sliding_window):
        assert number is None or (type(number) is int and number > 0)
