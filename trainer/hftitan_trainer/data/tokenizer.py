"""The model's own tokenizer, loaded by transformers, behind torchtitan's tokenizer interface.

torchtitan's HuggingFaceTokenizer reads tokenizer.json and guesses the special tokens. transformers reads every kind of
tokenizer and returns the same ids as at inference.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from torchtitan.components.tokenizer import BaseTokenizer

from hftitan_trainer.process.errors import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


class HFTokenizer(BaseTokenizer):
    """A tokenizer component; `.hf` is the transformers tokenizer."""

    @dataclass(kw_only=True, slots=True)
    class Config(BaseTokenizer.Config):
        trust_remote_code: bool = False

    def __init__(self, config: Config, *, tokenizer_path: str) -> None:
        super().__init__()
        self.hf = load_tokenizer(tokenizer_path, trust_remote_code=config.trust_remote_code)
        self.eos_id = self.hf.eos_token_id
        self.bos_id = self.hf.bos_token_id

    def encode(self, text: str, add_bos: bool = False, add_eos: bool = False) -> list[int]:
        """Return the token ids of `text`, with BOS and EOS only if requested (and if the model has them)."""
        ids: list[int] = self.hf.encode(text, add_special_tokens=False)
        if add_bos and self.bos_id is not None:
            ids.insert(0, self.bos_id)
        if add_eos and self.eos_id is not None:
            ids.append(self.eos_id)
        return ids

    def decode(self, token_ids: list[int], **kwargs: Any) -> str:
        return str(self.hf.decode(token_ids, **kwargs))

    def get_vocab_size(self) -> int:
        return len(self.hf)


def tokenizer_config(trust_remote_code: bool = False) -> HFTokenizer.Config:
    """Return torchtitan's Trainer.Config.tokenizer."""
    return HFTokenizer.Config(trust_remote_code=trust_remote_code)


def load_tokenizer(folder: str, *, trust_remote_code: bool = False) -> PreTrainedTokenizerBase:
    """Load the tokenizer. Raises UserError if the folder has none that transformers can load."""
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=trust_remote_code)
    except (OSError, ValueError, ImportError, KeyError, TypeError) as error:
        raise UserError("spec.model.name", f"transformers cannot load a tokenizer from {folder}: {error}") from error
    # Disables a warning for every document longer than the context; packing splits them.
    tokenizer.model_max_length = int(1e30)
    return tokenizer
