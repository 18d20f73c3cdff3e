"""The model card of an export: it matches the job, the hub can read it, and it reveals nothing about the machine."""

from __future__ import annotations

import json
from importlib import metadata
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import harness
import pytest
from huggingface_hub import ModelCard

from hftitan_api.wire import TrainerSpec
from hftitan_trainer.checkpoint.card import TrainingResult, model_card

RESULT = TrainingResult(step=30, loss=1.23456789, tokens=61440, validation_loss=1.5)


def card(folder: Path, name: str, *, pretrained: bool = True, revision: str | None = None, **changes: Any) -> ModelCard:
    spec = TrainerSpec.model_validate(harness.trainer_spec(name, **changes))
    model = SimpleNamespace(path=folder, revision=revision, pretrained=pretrained)
    return ModelCard(model_card(spec, model, RESULT))  # type: ignore[arg-type]


def rows(found: ModelCard) -> dict[str, str]:
    cells = [line.strip("| ").split(" | ") for line in found.text.splitlines() if line.startswith("| ")]
    return {cell[0]: cell[1] for cell in cells if len(cell) == 2}


def test_a_fine_tuned_hub_model_on_a_hub_dataset(tmp_path: Path) -> None:
    (tmp_path / "README.md").write_text("---\nlicense: other\nlicense_name: mine\nlicense_link: LICENSE\n---\n# base\n")
    found = card(
        tmp_path,
        "acme/base",
        revision="c0ffee",
        dataset={"path": None, "name": "acme/chats", "config": "en", "messagesField": "turns"},
        validation={"dataset": {"name": "acme/chats", "split": "test"}},
        mesh={"nodes": 2, "ranksPerNode": 4, "dpShard": 4, "tp": 2, "device": "gpu"},
        training={"globalBatchSize": 64, "seed": 7},
        optimizer={"lr": 3e-4, "weightDecay": 0.01},
        lrSchedule={"warmupSteps": 5, "decayRatio": 0.2, "decayType": "cosine"},
    )
    assert found.data.to_dict() == {
        "library_name": "transformers",
        "pipeline_tag": "text-generation",
        "tags": ["torchtitan", "hftitan"],
        "base_model": "acme/base",
        "base_model_relation": "finetune",
        "datasets": ["acme/chats"],
        "license": "other",
        "license_name": "mine",
        "license_link": "LICENSE",
    }
    assert "A fine-tuned version of [acme/base](https://huggingface.co/acme/base) at revision `c0ffee`." in found.text
    assert "config `en`, split `train`, chats in `turns`, loss on assistant turns." in found.text
    assert "Validated on [acme/chats](https://huggingface.co/datasets/acme/chats), split `test`." in found.text
    said = rows(found)
    assert said["Mesh"] == "2 x 4 GPUs: dp_shard 4, tp 2"
    assert (said["Steps"], said["Tokens"], said["Loss of the last step"]) == ("30", "61,440", "1.23457")
    assert (said["Validation loss"], said["Sequences per step"], said["Seed"]) == ("1.50000", "64", "7")
    assert (said["Optimizer"], said["Learning rate"], said["Weight decay"]) == ("AdamW", "0.0003", "0.01")
    assert said["Decay"] == "cosine over the last 0.2 of the steps, to a factor of 0"
    assert (said["Dtype of weights and optimizer"], said["Dtype of computation"]) == ("float32", "bfloat16")
    for library in ("hftitan", "torch", "torchtitan", "transformers"):
        assert said[library] == metadata.version(library)


def test_a_model_from_random_weights_has_neither_base_nor_licence(tmp_path: Path) -> None:
    (tmp_path / "README.md").write_text("---\nlicense: mit\n---\n")
    found = card(tmp_path, "acme/base", pretrained=False, model={"overrides": {"num_hidden_layers": 2}})
    assert "base_model" not in found.data.to_dict()
    assert "license" not in found.data.to_dict()
    assert "Trained from random weights with the config and tokenizer of [acme/base]" in found.text
    assert "with `num_hidden_layers = 2` in its config" in found.text


def test_the_card_has_no_paths_and_no_secrets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    token = "hf_" + "thisIsNoTokenButLooksLikeOne"
    monkeypatch.setenv("WANDB_API_KEY", "sesame-open-now")
    found = card(
        tmp_path,
        "/home/alice/models/tiny",
        dataset={"path": "/home/alice/corpus", "textField": f"{token} | `sesame-open-now`\n"},
    )
    assert "local files `tiny`" in found.text
    assert "local files `corpus`" in found.text
    for secret in ("alice", "sesame", token, str(tmp_path)):
        assert secret not in found.content
    assert "base_model" not in found.data.to_dict()


@pytest.mark.parametrize("readme", ["no front matter", "---\nlicense: [\n---\n", "---\n- a\n---\n", b"\xff\xfe"])
def test_an_invalid_base_card_is_ignored(tmp_path: Path, readme: str | bytes) -> None:
    (tmp_path / "README.md").write_bytes(readme if isinstance(readme, bytes) else readme.encode())
    assert "license" not in card(tmp_path, "acme/base").data.to_dict()


def test_the_result_is_from_the_last_line_of_the_last_step(tmp_path: Path) -> None:
    journal = tmp_path / "metrics.jsonl"
    assert TrainingResult.of_journal(journal, 3) == TrainingResult(3)
    lines = [
        {"kind": "step", "step": 3, "loss": 9.0, "tokensSeen": 1},
        {"kind": "step", "step": 2, "loss": 2.0},
        {"kind": "step", "step": 3, "loss": 1.0, "tokensSeen": 96},
        {"kind": "validation", "step": 3, "loss": 1.5},
        {"kind": "end", "reason": "Completed"},
    ]
    journal.write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert TrainingResult.of_journal(journal, 3) == TrainingResult(3, 1.0, 96, 1.5)
    assert TrainingResult.of_journal(journal, 4) == TrainingResult(4)
