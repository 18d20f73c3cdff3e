"""The first step of a training run equals transformers' own forward and backward on the same packed batch."""

from __future__ import annotations

import importlib.util

import harness
import pytest
from comparison import reference
from paths import ROOT

VARIANTS = {
    **harness.OTHERS,
    **{family: how for family, how in harness.FAMILIES.items() if "sliding_window" in how},
    "gemma4_text-shared-keys-and-values": {**harness.OTHERS["gemma4_text"], "attention_k_eq_v": True},
    "llama-tied": {"tied": True},
    "llama-bfloat16-file": {"dtype": "bfloat16"},
    "llama-biases": {"attention_bias": True, "mlp_bias": True},
    **{f"llama-{rope}-rope": {"rope": rope} for rope in harness.ROPES if rope != "default"},
}


@pytest.fixture(scope="module")
def families(tmp_path_factory):
    """One process trains one step of every variant. Returns (folder, first step's report) by variant, and the rows."""
    root = tmp_path_factory.mktemp("families")
    rows = harness.rows(4)
    folders = {name: harness.make_model(root / name, **how) for name, how in VARIANTS.items()}
    one_step = {"steps": 1, "seqLen": harness.SEQ, "localBatchSize": 4}
    cases = [{"spec": harness.trainer_spec(folder, training=one_step), "rows": rows} for folder in folders.values()]
    results = harness.run_worker(cases, root / "work", world=1)
    steps = [result["steps"][0] for result in results]
    return dict(zip(folders, zip(folders.values(), steps, strict=True), strict=True)), rows


@pytest.mark.parametrize("name", VARIANTS)
def test_first_step_equals_transformers(families, name):
    found, rows = families
    folder, step = found[name]
    loss, norm = reference(folder, rows)
    assert step["loss"] == pytest.approx(loss, rel=1e-4)
    assert step["grad_norm"] == pytest.approx(norm, rel=1e-4)


def test_sliding_windows_equal_the_masks_of_transformers(families):
    found, rows = families
    windowed = [name for name, how in VARIANTS.items() if "sliding_window" in how]
    assert len(windowed) > 10
    for name in windowed:
        folder, step = found[name]
        loss, norm = reference(folder, rows, own_mask=True)
        assert [step["loss"], step["grad_norm"]] == pytest.approx([loss, norm], rel=1e-4), name


def test_smollm2_first_loss_equals_transformers_in_ten_materialisations(tmp_path):
    """Real weights, real text: SmolLM2-135M on two documents packed into one row."""
    from transformers import AutoTokenizer

    folder = bench("losses").model_folder()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    texts = [(ROOT / name).read_text() for name in ("LICENSE", "tests/support/trainer/harness.py")]
    rows = [pack([tokenizer(text).input_ids[:150] for text in texts], 256)]
    training = {"steps": 1, "seqLen": 256, "localBatchSize": 1}
    case = {"spec": harness.trainer_spec(folder, training=training), "rows": rows, "forwards": 10}
    (result,) = harness.run_worker([case], tmp_path, world=1)
    loss, _ = reference(folder, rows)
    assert result["losses"][0] == pytest.approx(loss, rel=1e-3)
    assert 1.0 < loss < 4.0, "with wrong positions or masks the loss is far higher on such text"
    assert len(set(result["losses"])) == 1


def pack(documents: list[list[int]], seq: int) -> dict[str, list[int]]:
    tokens, labels, positions = [], [], []
    for document in documents:
        tokens += document[:-1]
        labels += document[1:]
        positions += range(len(document) - 1)
    return {"input": tokens[:seq], "labels": labels[:seq], "positions": positions[:seq]}


def test_smollm2_has_the_losses_of_transformers_trainer(tmp_path):
    """bench/losses.py does the same with 30 steps, and on meshes."""
    losses = bench("losses").compare(steps=4, seq_len=128, batch=1, folder=tmp_path)
    assert losses["one"] == pytest.approx(losses["transformers"], rel=1e-3)
    assert losses["one"][-1] < losses["one"][0]


def bench(name: str):
    source = importlib.util.spec_from_file_location(f"bench_{name}", ROOT / "bench" / f"{name}.py")
    module = importlib.util.module_from_spec(source)
    source.loader.exec_module(module)
    return module
