"""Model families (model_type): which were compared with transformers, and on which mesh axes.

A family is here because its losses, gradients and weights were compared with transformers' own (docs/architectures.md,
hack/architectures); of what was not compared nothing is promised, and a job that asks for it is refused.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

# Families of one feed-forward layer for all words.
DENSE = frozenset(
    {
        "apertus", "arcee", "bitnet", "cohere", "cohere2", "cwm", "diffllama", "ernie4_5", "exaone4", "gemma", "gemma2",
        "gemma3_text", "gemma4_text", "glm", "glm4", "granite", "helium", "hunyuan_v1_dense", "hyperclovax",
        "internlm3", "iquestcoder", "jais2", "llama", "minicpm3", "ministral", "ministral3", "mistral", "nanochat",
        "nemotron", "olmo", "olmo2", "olmo3", "persimmon", "phi", "phi3", "qwen2", "qwen3", "seed_oss", "smollm3",
        "stablelm", "starcoder2", "vaultgemma",
    }
)  # fmt: skip
# Families with experts.
MIXTURES = frozenset({"mixtral", "olmoe", "qwen3_moe"})
# Families some or all of whose layers look back over a window; sequences may be longer.
WINDOWED = frozenset(
    {
        "cohere2", "cwm", "exaone4", "gemma2", "gemma3_text", "gemma4_text", "ministral", "ministral3", "mistral",
        "mixtral", "olmo3", "phi3", "qwen2", "qwen3", "qwen3_moe", "smollm3", "starcoder2", "vaultgemma",
    }
)  # fmt: skip

# Dense families that one axis cannot cut, and why.
WITHOUT_TENSOR_PARALLELISM: Mapping[str, str] = MappingProxyType(
    {
        "bitnet": "it normalises what all heads of a layer return",
        "diffllama": "its heads work in pairs that ranks would part",
        "minicpm3": "its queries and keys come from projections of low rank",
        "persimmon": "its queries, keys and values are one weight, head by head",
        "stablelm": "its attention looks for all heads on every rank",
    }
)
WITHOUT_PIPELINE: Mapping[str, str] = MappingProxyType(
    {"nanochat": "its forward pass normalises the embeddings, and would do so in every stage"}
)

# Families that end in an exception of torchtitan 0.3's backend with transformers 5.23, and why
# (tests/trainer/test_engine_refusals.py sees them end).
UNBUILDABLE: Mapping[str, str] = MappingProxyType(
    {
        "granite_swa": "its rotary embedding reads numbers while the model is built without memory",
        "xlm": "it is an encoder, which the backend looks for a decoder's parts in without end",
    }
)
