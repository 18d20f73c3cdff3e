"""Validation: the loss equals transformers' on the same rows, is the same on every mesh, and leaves training
unchanged."""

from __future__ import annotations

import json
from pathlib import Path

import harness
import pytest
from comparison import reference

STEPS, INTERVAL, BATCHES = 5, 2, 3
MESHES = {
    "two shards": {"dpShard": 2},
    "two replicas": {"dpReplicate": 2},
    "tensor parallel": {"tp": 2},
    "a pipeline": {"pp": 2},
    "context parallel": {"cp": 2},
}


@pytest.fixture(scope="module")
def root(tmp_path_factory, tokenizer):
    root = tmp_path_factory.mktemp("validation")
    harness.make_text_model(root / "model", tokenizer)
    lines = [{"text": f"held out {i} " + "xyz " * (i % 7)} for i in range(30)]
    (root / "held-out.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (root / "few.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines[:3]))
    (root / "nothing.jsonl").write_text(json.dumps({"text": ""}) + "\n")
    return root


@pytest.fixture(scope="module")
def runs(root):
    def case(degrees: dict, *, held_out: str | None = "held-out", steps: int = BATCHES, **more) -> dict:
        sections = harness.mesh(**degrees)
        sections["training"].update(more.pop("training", {}))
        spec = harness.trainer_spec(root / "model", **sections, dataset={"path": str(root / "model.jsonl")})
        if held_out is not None:
            dataset = {"path": str(root / f"{held_out}.jsonl")}
            spec["validation"] = {"dataset": dataset, "interval": INTERVAL, "steps": steps}
        return {"spec": spec, **more}

    one = {
        "one": case({}, export=str(root / "exported")),
        "one without": case({}, held_out=None),
        "one row at a time": case({}, training={"localBatchSize": 1}),
        "few documents": case({}, held_out="few", steps=1000),
        "nothing to learn": case({}, held_out="nothing", fails=True),
    }
    two = {name: case(degrees) for name, degrees in MESHES.items()}
    two["two shards without"] = case({"dpShard": 2}, held_out=None)
    two["a pipeline without"] = case({"pp": 2}, held_out=None)
    two["stopped meanwhile"] = case({"tp": 2}, stopAt=4, stopInValidation=True)
    two["few documents on two"] = case({"dpShard": 2}, held_out="few", steps=1000)
    found = {}
    for world, cases in ((1, one), (2, two)):
        results = harness.run_worker(list(cases.values()), root / str(world), world=world)
        found |= dict(zip(cases, results, strict=True))
    return found


def rows(root: Path, tokenizer_folder: Path, name: str, batches: int) -> list[dict]:
    from hftitan_trainer.process import slim

    slim.install()
    from hftitan_api.models import DatasetSpec
    from hftitan_trainer.data.loader import dataloader_config
    from hftitan_trainer.data.tokenizer import tokenizer_config

    dataset = DatasetSpec(path=str(root / f"{name}.jsonl"))
    loader = dataloader_config(dataset, rows=4, seed=42, infinite=False).build(
        dp_world_size=1,
        dp_rank=0,
        tokenizer=tokenizer_config().build(tokenizer_path=str(tokenizer_folder)),
        seq_len=harness.SEQ,
        local_batch_size=4,
    )
    found = []
    for (inputs, labels), _ in zip(loader, range(batches), strict=False):
        for row in range(4):
            values = {"input": inputs["input"], "positions": inputs["positions"], "labels": labels}
            found.append({key: value[row].tolist() for key, value in values.items()})
    return found


def test_the_loss_equals_that_of_transformers_on_the_same_rows(root, runs, tokenizer_folder):
    step, loss, tokens = runs["one"]["validations"][-1]
    held_out = rows(root, tokenizer_folder, "held-out", BATCHES)
    expected, _ = reference(root / "exported", held_out)
    assert step == STEPS
    assert tokens == sum(label != -100 for row in held_out for label in row["labels"])
    assert loss == pytest.approx(expected, rel=1e-4)


def test_validation_runs_after_every_interval_and_after_the_last_step(runs):
    assert [step for step, _, _ in runs["one"]["validations"]] == [2, 4, 5]
    assert runs["one"]["phases"].count("validating") == 3 * BATCHES
    assert runs["one"]["mode"]


@pytest.mark.parametrize("name", [*MESHES, "one row at a time"])
def test_every_mesh_has_the_same_loss(runs, name):
    for (step, loss, tokens), (step_, loss_, tokens_) in zip(
        runs[name]["validations"], runs["one"]["validations"], strict=True
    ):
        assert (step, tokens) == (step_, tokens_)
        assert loss == pytest.approx(loss_, rel=1e-3)
    assert runs[name]["mode"]


@pytest.mark.parametrize(
    ("name", "without"),
    [("one", "one without"), ("two shards", "two shards without"), ("a pipeline", "a pipeline without")],
)
def test_training_is_the_same_with_and_without_validation(runs, name, without):
    for key in ("loss", "grad_norm", "tokens_seen"):
        assert [step[key] for step in runs[name]["steps"]] == [step[key] for step in runs[without]["steps"]], key
    for key in ("consumed", "random"):
        assert runs[name][key] == runs[without][key], key


@pytest.mark.parametrize("name", ["few documents", "few documents on two"])
def test_data_that_ends_early_is_used_once_and_completely(root, runs, tokenizer, name):
    texts = [json.loads(line)["text"] for line in (root / "few.jsonl").read_text().splitlines()]
    assert {tokens for _, _, tokens in runs[name]["validations"]} == {sum(len(tokenizer(t).input_ids) for t in texts)}
    first, second = (runs[n]["validations"] for n in ("few documents", "few documents on two"))
    assert [loss for _, loss, _ in first] == pytest.approx([loss for _, loss, _ in second], rel=1e-3)


def test_a_stop_request_ends_validation_and_the_step_is_saved(runs):
    stopped = runs["stopped meanwhile"]
    assert stopped["outcome"] == {"kind": "stopped", "step": 4}
    assert [step for step, _, _ in stopped["validations"]] == [2]
    assert stopped["phases"][-3:] == ["training", "checkpointing", "training"]
    assert stopped["mode"]


def test_data_with_nothing_to_learn_is_a_user_error(runs):
    assert runs["nothing to learn"] == {
        "error": "UserError",
        "message": "spec.validation.dataset: has nothing to learn: no document has at least two tokens",
    }
