"""Fixtures: a tokenizer whose ids are readable, and a folder with it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

CHATML = (
    "{% for m in messages %}<|{{ m.role }}|>\n{{ m.content }}</s>\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>\n{% endif %}"
)


def byte_tokenizer(**special: str) -> Any:
    """Return a tokenizer with three special tokens, then one for each byte. It does not add BOS by itself."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    alphabet = ["<pad>", "<s>", "</s>", *sorted(pre_tokenizers.ByteLevel.alphabet())]
    tokenizer = Tokenizer(models.BPE(vocab={token: i for i, token in enumerate(alphabet)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    names = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>", **special}
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **names)


@pytest.fixture(scope="session")
def chatml() -> str:
    """The chat template of `tokenizer`."""
    return CHATML


@pytest.fixture(scope="session", name="byte_tokenizer")
def byte_tokenizer_factory() -> Callable[..., Any]:
    return byte_tokenizer


@pytest.fixture(scope="session")
def tokenizer() -> Any:
    """A transformers tokenizer with a chat template similar to ChatML."""
    made = byte_tokenizer()
    made.chat_template = CHATML
    return made


@pytest.fixture(scope="session")
def tokenizer_folder(tokenizer: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tokenizer")
    tokenizer.save_pretrained(folder)
    return folder
