"""Fields of the config.json of models that documents and examples name, as a cache of the hub."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

KEYS = (
    "model_type", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads",
    "num_key_value_heads", "vocab_size", "tie_word_embeddings",
)  # fmt: skip
MODELS: dict[str, tuple[Any, ...]] = {
    "HuggingFaceTB/SmolLM2-1.7B-Instruct": ("llama", 2048, 8192, 24, 32, 32, 49152, True),
    "Qwen/Qwen2.5-0.5B": ("qwen2", 896, 4864, 24, 14, 2, 151936, True),
    "Qwen/Qwen2.5-7B": ("qwen2", 3584, 18944, 28, 28, 4, 152064, False),
    "Qwen/Qwen2.5-32B": ("qwen2", 5120, 27648, 64, 40, 8, 152064, False),
    "Qwen/Qwen3-30B-A3B": ("qwen3_moe", 2048, 6144, 48, 32, 4, 151936, False),
    "meta-llama/Llama-3.1-8B": ("llama", 4096, 14336, 32, 32, 8, 128256, False),
    "meta-llama/Llama-3.1-70B": ("llama", 8192, 28672, 80, 64, 8, 128256, False),
}
MORE: dict[str, dict[str, Any]] = {
    "Qwen/Qwen3-30B-A3B": {
        "head_dim": 128, "moe_intermediate_size": 768, "num_experts": 128, "num_experts_per_tok": 8,
        "decoder_sparse_step": 1, "mlp_only_layers": [],
    },
}  # fmt: skip


def make_hub_cache(folder: Path) -> Path:
    """Write the configs as huggingface_hub stores them; use the folder as HF_HUB_CACHE."""
    for name, values in MODELS.items():
        model = folder / f"models--{name.replace('/', '--')}"
        snapshot = model / "snapshots" / "0"
        snapshot.mkdir(parents=True)
        (model / "refs").mkdir()
        (model / "refs" / "main").write_text("0")
        config = {**dict(zip(KEYS, values, strict=True)), **MORE.get(name, {})}
        (snapshot / "config.json").write_text(json.dumps(config))
    return folder
