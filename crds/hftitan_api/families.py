"""Model families (model_type) that are tested against transformers, and the mesh axes that each supports.

hack/architectures compares losses, gradients and weights of each family with transformers (docs/architectures.md). Jobs
with other families are rejected.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

# Families without experts.
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
# Families with sliding-window attention in some or all layers. Sequences may be longer than the window.
WINDOWED = frozenset(
    {
        "cohere2", "cwm", "exaone4", "gemma2", "gemma3_text", "gemma4_text", "ministral", "ministral3", "mistral",
        "mixtral", "olmo3", "phi3", "qwen2", "qwen3", "qwen3_moe", "smollm3", "starcoder2", "vaultgemma",
    }
)  # fmt: skip

# Dense families that do not support an axis, and the reason.
WITHOUT_TENSOR_PARALLELISM: Mapping[str, str] = MappingProxyType(
    {
        "bitnet": "it normalizes the output of all heads together",
        "diffllama": "its heads work in pairs, which ranks would separate",
        "minicpm3": "it computes queries and keys with low-rank projections",
        "persimmon": "it stores queries, keys and values interleaved in one weight",
        "stablelm": "its attention needs all heads on every rank",
    }
)
WITHOUT_PIPELINE: Mapping[str, str] = MappingProxyType(
    {"nanochat": "its forward pass normalizes the embeddings, and every stage would repeat this"}
)

# Families for which torchtitan 0.3's backend raises an exception with transformers 5.23, and the reason
# (tests/trainer/test_engine_refusals.py checks this).
UNBUILDABLE: Mapping[str, str] = MappingProxyType(
    {
        "granite_swa": "its rotary embedding reads values of tensors on the meta device",
        "xlm": "it is an encoder, and the backend's search for the parts of a decoder never ends",
    }
)
