"""Every mesh trains the same model: losses, gradient norms, and the exported folder."""

from __future__ import annotations

import json
from pathlib import Path

import harness
import pytest
from comparison import distance, losses, norms

MESHES = {
    "dp_shard": {"dpShard": 2},
    "dp_replicate": {"dpReplicate": 2},
    "tp": {"tp": 2},
    "pp": {"pp": 2},
    "cp": {"cp": 2},
}
LARGER = {
    "dp_shard x tp": {"dpShard": 2, "tp": 2},
    "tp x pp": {"tp": 2, "pp": 2},
    "dp_shard x cp": {"dpShard": 2, "cp": 2},
    "dp_replicate x dp_shard": {"dpReplicate": 2, "dpShard": 2},
}
SPREAD = {
    "dp_shard": {"dpShard": 2},
    "dp_replicate": {"dpReplicate": 2},
    "cp": {"cp": 2},
    "ep": {"dpShard": 2, "ep": 2},
}
SPREAD_LARGER = {
    "ep inside dp_shard": {"dpShard": 4, "ep": 2},
    "ep over dp_shard x cp": {"dpShard": 2, "cp": 2, "ep": 4},
    "ep inside replicas": {"dpReplicate": 2, "dpShard": 2, "ep": 2},
}
MODELS = ("untied", "tied", "random")
MIXTURES = ("mixture", "random mixture")
CUT = ("gemma3_text", "olmo2", "phi3")
"""Families with special rules for tensor parallelism, and with windows that pipeline stages must not mix up."""
RESUMED = ("dp_replicate", "dp_shard", "tp", "pp")
STEPS = 10
ROWS = 40


def case(root: Path, model: str, mesh: dict, **more) -> dict:
    sections = harness.mesh(STEPS, **mesh)
    if model.startswith("random"):
        sections["model"] = {"initialize": "random"}
    folder = root / {"random": "untied", "random mixture": "mixture"}.get(model, model)
    return {"spec": harness.trainer_spec(folder, **sections), "rows": harness.rows(ROWS), **more}


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    root = tmp_path_factory.mktemp("meshes")
    harness.make_model(root / "biased", attention_bias=True, mlp_bias=True)
    harness.make_model(root / "deep", tied=True, num_hidden_layers=6)
    harness.make_model(root / "mixture", **harness.FAMILIES["qwen3_moe"])
    for family in CUT:
        harness.make_model(root / family, **harness.FAMILIES[family])
    for name in ("untied", "tied"):
        folder = harness.make_model(root / name, tied=name == "tied")
        (folder / "tokenizer_config.json").write_text('{"tokenizer_class": "PreTrainedTokenizerFast"}')
        (folder / "chat_template.jinja").write_text("{{ messages }}")
        (folder / "tokenizer.json").write_text(tokenizer())
    return root


def tokenizer() -> str:
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel

    return Tokenizer(WordLevel({f"w{i}": i for i in range(harness.VOCAB)}, unk_token="w0")).to_str()


@pytest.fixture(scope="module")
def one(root):
    """Results of the models on one process."""
    cases = {
        model: case(root, model, {}, export=str(root / f"one-{model}"), logits=True) for model in (*MODELS, *MIXTURES)
    }
    cases |= {model: case(root, model, {}) for model in ("biased", "deep")}
    cases |= {family: case(root, family, {}, logits=True) for family in CUT}
    cases["compiled"] = case(root, "tied", {})
    cases["compiled"]["spec"]["training"]["compile"] = True
    return dict(zip(cases, harness.run_worker(list(cases.values()), root / "one", world=1), strict=True))


@pytest.fixture(scope="module")
def two(root):
    """Results of the models on every mesh of two processes, and of cases that need several processes."""
    cases = {
        (mesh, model): case(
            root, model, degrees, export=str(root / f"{mesh}-{model}"), logits=mesh in ("dp_shard", "tp")
        )
        for mesh, degrees in MESHES.items()
        for model in MODELS
    }
    for mesh, degrees in SPREAD.items():
        for model in MIXTURES:
            cases[mesh, model] = case(root, model, degrees, export=str(root / f"{mesh}-{model}"))
    cases["interleaved"] = case(root, "deep", {"pp": 2})
    cases["interleaved"]["spec"]["training"]["pipelineSchedule"] = "Interleaved1F1B"
    for mesh, degrees in (("shards", {"dpShard": 2}), ("replicas", {"dpReplicate": 2})):
        cases[f"accumulation over {mesh}"] = case(root, "tied", degrees)
        cases[f"accumulation over {mesh}"]["spec"]["training"]["localBatchSize"] = 1
    pipeline = case(root, "tied", {"pp": 2})
    pipeline["spec"]["training"].update(localBatchSize=2, pipelineSchedule="GPipe")
    cases["accumulation in a pipeline"] = pipeline
    for kind, mesh in (("selective", "dpShard"), ("full", "dpReplicate")):
        cases[kind] = case(root, "tied", {mesh: 2})
        cases[kind]["spec"]["training"]["activationCheckpoint"] = kind
    cases["routed"] = case(root, "mixture", SPREAD["ep"])
    cases["routed"]["spec"]["training"]["activationCheckpoint"] = "selective"
    for mesh in RESUMED:
        output = str(root / f"resumed-{mesh}")
        for part, stop in (("stopped", 3), ("resumed", None)):
            cases[part, mesh] = case(root, "tied", MESHES[mesh], output=output, stopAt=stop)
            cases[part, mesh]["spec"]["checkpoint"] = {"interval": 100}
    cases["small files"] = case(root, "tied", {"tp": 2}, export=str(root / "small files"), fileBytes=20_000)
    cases["biases"] = case(root, "biased", {"tp": 2})
    cases["exploding"] = case(root, "untied", {"pp": 2}, fails=True, poison=2)
    results = harness.run_worker(list(cases.values()), root / "two", world=2)
    return dict(zip(cases, results, strict=True))


@pytest.fixture(scope="module")
def four(root):
    """Results of two axes at a time, on four processes."""
    cases = {(mesh, "tied"): case(root, "tied", degrees) for mesh, degrees in LARGER.items()}
    for family in CUT:
        cases["tp x pp", family] = case(root, family, LARGER["tp x pp"], export=str(root / f"tp x pp-{family}"))
    for mesh, degrees in SPREAD_LARGER.items():
        cases[mesh, "mixture"] = case(root, "mixture", degrees, export=str(root / f"{mesh}-mixture"))
    results = harness.run_worker(list(cases.values()), root / "four", world=4)
    return dict(zip(cases, results, strict=True))


def alike(result: dict, other: dict, *, norm: float = 1e-3) -> None:
    assert len(losses(result)) == STEPS
    assert losses(result) == pytest.approx(losses(other), rel=1e-3)
    assert norms(result) == pytest.approx(norms(other), rel=norm)


ROUTED = 5e-2
"""If two experts are nearly equal for a token, rounding can change its route. This changes the gradient's norm, but
hardly the loss: by 6e-3 and 2e-5 in ten steps from random weights, where all experts are nearly equal."""


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("mesh", MESHES)
def test_losses_and_norms_equal_those_of_one_process(one, two, mesh, model):
    alike(two[mesh, model], one[model])


@pytest.mark.parametrize("model", MIXTURES)
@pytest.mark.parametrize("mesh", SPREAD)
def test_experts_on_two_processes_have_the_losses_of_one(one, two, mesh, model):
    alike(two[mesh, model], one[model], norm=ROUTED)


def test_recomputation_of_experts_changes_nothing(one, two):
    alike(two["routed"], one["mixture"], norm=ROUTED)


@pytest.mark.parametrize("mesh", LARGER)
def test_two_axes_together_change_nothing(one, four, mesh):
    alike(four[mesh, "tied"], one["tied"])


@pytest.mark.parametrize("family", CUT)
def test_pipeline_stages_of_split_layers_change_nothing(root, one, four, family):
    alike(four["tp x pp", family], one[family])
    assert distance(reloaded(root / f"tp x pp-{family}"), one[family]["logits"]) < 5e-3


@pytest.mark.parametrize("mesh", SPREAD_LARGER)
def test_experts_on_two_axes_change_nothing(root, one, four, mesh):
    alike(four[mesh, "mixture"], one["mixture"], norm=ROUTED)
    assert distance(reloaded(root / f"{mesh}-mixture"), one["mixture"]["logits"]) < ROUTED


@pytest.mark.parametrize(
    "name",
    [
        "accumulation over shards",
        "accumulation over replicas",
        "accumulation in a pipeline",
        "selective",
        "full",
    ],
)
def test_accumulation_and_recomputation_change_nothing(one, two, name):
    alike(two[name], one["tied"])


def test_two_stages_on_each_rank_change_nothing(one, two):
    alike(two["interleaved"], one["deep"])


def test_compilation_changes_nothing(one):
    alike(one["compiled"], one["tied"])


@pytest.mark.parametrize("mesh", RESUMED)
def test_a_stop_request_of_one_rank_stops_all_and_a_new_run_resumes(two, mesh):
    stopped, resumed, unbroken = two["stopped", mesh], two["resumed", mesh], two[mesh, "tied"]
    assert stopped["outcome"] == {"kind": "stopped", "step": 3}
    assert [step["step"] for step in stopped["steps"] + resumed["steps"]] == list(range(1, STEPS + 1))
    assert losses(stopped) + losses(resumed) == losses(unbroken)
    assert norms(stopped) + norms(resumed) == norms(unbroken)


def test_tensor_parallelism_adds_biases_once(one, two):
    """Upstream adds the whole bias on every rank (decoder_sharding.py rowwise_config)."""
    alike(two["biases"], one["biased"])


def test_reports_count_all_ranks(one, two):
    tokens = 4 * harness.SEQ
    for result in (one["tied"], *(two[mesh, "tied"] for mesh in MESHES)):
        assert [step["tokens_seen"] for step in result["steps"]] == [tokens * n for n in range(1, STEPS + 1)]
        for step in result["steps"]:
            assert step["tokens_per_second"] == pytest.approx(tokens / step["step_seconds"])
            assert step["mfu"] is None


def test_a_non_finite_loss_is_the_same_error_on_all_ranks_of_a_pipeline(two):
    assert two["exploding"]["error"] == "NonFiniteLossError"
    assert "spec.optimizer.lr" in two["exploding"]["message"]


# --- the export -------------------------------------------------------------------------------------------------


def reloaded(folder: Path) -> list[list[float]]:
    """Return the logits of the exported folder in transformers, for the row whose in-memory logits the worker
    returned."""
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    with torch.no_grad():
        return model(torch.tensor([harness.rows(ROWS)[0]["input"]])).logits[0].tolist()


@pytest.mark.parametrize("model", MODELS)
def test_the_exported_model_has_the_logits_of_the_one_in_memory(root, one, two, model):
    assert distance(reloaded(root / f"one-{model}"), one[model]["logits"]) < 1e-4
    for mesh in ("dp_shard", "tp"):
        assert distance(reloaded(root / f"{mesh}-{model}"), two[mesh, model]["logits"]) < 1e-4


@pytest.mark.parametrize("model", MIXTURES)
def test_an_exported_mixture_has_the_logits_of_the_one_in_memory(root, one, two, model):
    assert distance(reloaded(root / f"one-{model}"), one[model]["logits"]) < 1e-4
    for mesh in SPREAD:
        assert distance(reloaded(root / f"{mesh}-{model}"), one[model]["logits"]) < ROUTED


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("mesh", MESHES)
def test_every_mesh_exports_the_same_model(root, one, two, mesh, model):
    assert distance(reloaded(root / f"{mesh}-{model}"), one[model]["logits"]) < 5e-3


def test_training_changes_the_model(root, one):
    assert distance(reloaded(root / "untied"), one["untied"]["logits"]) > 0.1


def test_the_export_is_complete_and_has_no_other_files(root, one, two):
    from transformers import AutoTokenizer

    files = {"chat_template.jinja", "config.json", "generation_config.json", "model.safetensors", "tokenizer.json"}
    for name in ("one-tied", "pp-tied"):
        assert {path.name for path in (root / name).iterdir()} == {*files, "tokenizer_config.json"}
    before, after = (json.loads((root / name / "config.json").read_text()) for name in ("tied", "one-tied"))
    assert after == before
    assert AutoTokenizer.from_pretrained(root / "one-tied").chat_template == "{{ messages }}"
    assert not [path for path in root.iterdir() if path.name.startswith(".")], "no partial folder is left"


def test_large_models_are_exported_in_several_files(root, one, two):
    folder = root / "small files"
    index = json.loads((folder / "model.safetensors.index.json").read_text())
    files = sorted({*index["weight_map"].values()})
    assert len(files) > 2
    assert files == sorted(path.name for path in folder.glob("*.safetensors"))
    assert files[0] == f"model-00001-of-{len(files):05d}.safetensors"
    assert all((folder / file).stat().st_size < 30_000 for file in files)
    assert "lm_head.weight" not in index["weight_map"], "a tied head is not a separate weight"
    assert distance(reloaded(folder), one["tied"]["logits"]) < 5e-3
