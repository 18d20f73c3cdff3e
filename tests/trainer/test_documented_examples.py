"""Runs the Python of docs/training.md and docs/checkpoints.md, and reads their samples of data with the trainer."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from documents import ROOT, blocks
from tiny import make_model

from hftitan_api.models import DatasetSpec
from hftitan_trainer.data.chat import ChatEncoder
from hftitan_trainer.data.documents import open_path


def shown(name: str, language: str) -> list[str]:
    return [block.text for block in blocks(ROOT / "docs" / name) if block.language == language]


def python(code: str, folder: Path) -> str:
    environ = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, cwd=folder, env=environ, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-4000:]
    return done.stdout


def documents(path: Path, **fields: Any) -> list[Any]:
    opened = open_path(DatasetSpec(path=str(path), **fields), 128, "spec.dataset")
    return [opened[i] for i in range(len(opened))]


def replaced(text: str, old: str, new: str) -> str:
    assert old in text
    return text.replace(old, new)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    make_model(folder)
    return folder


def test_samples_of_data_are_read_by_the_trainer(tmp_path: Path, tokenizer: Any) -> None:
    text, chats = shown("training.md", "json")
    (tmp_path / "corpus.jsonl").write_text(text)
    read = documents(tmp_path / "corpus.jsonl")
    assert [document.split(" document")[0] for document in read] == ["The first", "The second"]
    (tmp_path / "chats.jsonl").write_text(chats)
    encoder = ChatEncoder(tokenizer)
    for chat in documents(tmp_path / "chats.jsonl", messages_field="messages"):
        tokens = encoder.encode(chat, "here")
        assert tokens.learn is not None
        learnt = tokenizer.decode([token for token, wanted in zip(tokens.ids, tokens.learn, strict=True) if wanted])
        assert learnt == chat[-1]["content"] + "</s>"


def test_parquet_and_the_number_of_tokens(tmp_path: Path, model: Path) -> None:
    write, count = shown("training.md", "python")
    python(write, tmp_path)
    assert documents(tmp_path / "corpus.parquet") == ["The first document.", "The second document."]
    (tmp_path / "corpus.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in ("abc", "defgh")))
    code = replaced(count, '"HuggingFaceTB/SmolLM2-135M-Instruct"', repr(str(model)))
    assert python(code, tmp_path).strip() == "8", "a token per byte"


def test_the_example_of_epochs() -> None:
    text = " ".join((ROOT / "docs/training.md").read_text().split())
    per_step, tokens = 64 * 4096, 100_000_000
    assert f"has {per_step:,} tokens per step and {tokens // per_step} steps per epoch" in text
    assert f"Three epochs need `training.steps: {3 * tokens // per_step}`" in text


def test_an_export_is_loaded_as_documented(tmp_path: Path, model: Path) -> None:
    (code,) = shown("checkpoints.md", "python")
    assert python(replaced(code, '"runs/smollm2/export"', repr(str(model))), tmp_path).startswith("The weather")
