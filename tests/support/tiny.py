"""A model and a text so small that the real trainer finishes in seconds, for the end-to-end tests."""

from __future__ import annotations

import json
import random
import subprocess
import sys
from pathlib import Path


def make_model(folder: Path) -> None:
    """Save a two-layer byte-level llama and its tokenizer, in a child process so that the tests do not import torch."""
    code = """
import sys, torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
vocab = {"<eos>": 0} | {c: i for i, c in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()), 1)}
tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=[]))
tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
tokenizer.decoder = decoders.ByteLevel()
PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<eos>").save_pretrained(sys.argv[1])
torch.manual_seed(0)
config = LlamaConfig(vocab_size=len(vocab), hidden_size=64, intermediate_size=128, num_hidden_layers=2,
    num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=256, bos_token_id=0, eos_token_id=0)
LlamaForCausalLM(config).save_pretrained(sys.argv[1])
"""
    subprocess.run([sys.executable, "-c", code, str(folder)], check=True, capture_output=True, timeout=120)


def make_text(path: Path) -> None:
    """Write 300 lines of random words as JSON."""
    words = ["the", "quick", "brown", "fox", "jumps", "over", "a", "lazy", "dog", "while", "rain", "falls"]
    rng = random.Random(0)
    lines = (json.dumps({"text": " ".join(rng.choices(words, k=40))}) + "\n" for _ in range(300))
    path.write_text("".join(lines))
