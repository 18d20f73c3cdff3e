"""Dropout: a run that is interrupted at any step and resumed has the random numbers of an uninterrupted one."""

from __future__ import annotations

import harness
import pytest

from hftitan_api.wire import TrainerSpec
from hftitan_trainer.model.checks import check_model_on_mesh
from hftitan_trainer.process.errors import UserError

STEPS = 4
MODELS = {
    "attention": {"attention_dropout": 0.2},
    "residual": {"model_type": "phi", "pad_token_id": 0, "resid_pdrop": 0.2, "embd_pdrop": 0.2},
    "kept": {},
}
SHARDS = {"degrees": {"dpShard": 2}}
HOW = {
    "shards": SHARDS,
    "replicas": {"degrees": {"dpReplicate": 2}},
    "tp": {"degrees": {"tp": 2}},
    "pp": {"degrees": {"pp": 2}},
    "cp": {"degrees": {"cp": 2}},
    "accumulated": {**SHARDS, "localBatchSize": 1},
    "recomputed": {**SHARDS, "activationCheckpoint": "full"},
    "saved meanwhile": {**SHARDS, "mode": "async"},
    "hybrid shards": {"degrees": {"dpReplicate": 2, "dpShard": 2}},
    "shards x tp": {"degrees": {"dpShard": 2, "tp": 2}},
}
ON_FOUR = ("hybrid shards", "shards x tp")
RESUMED = [
    ("residual", "shards"),
    ("residual", "recomputed"),
    *(("attention", how) for how in HOW if how != "recomputed"),
]
"""Model and variant. test_resume_runs.py tests one process."""


@pytest.fixture(scope="module")
def root(tmp_path_factory, tokenizer):
    root = tmp_path_factory.mktemp("dropout")
    for name, how in MODELS.items():
        harness.make_text_model(root / name, tokenizer, **how)
    return root


@pytest.fixture(scope="module")
def runs(root):
    """Results by model, variant and step of the interruption (None: uninterrupted)."""

    def case(model: str, name: str, degrees: dict, step: int | None, *, mode: str = "disabled", **training) -> dict:
        sections = harness.mesh(STEPS, **degrees)
        sections["training"].update(training)
        spec = harness.trainer_spec(
            root / model,
            **sections,
            dataset={"path": str(root / f"{model}.jsonl")},
            checkpoint={"interval": min(breaks(model, name)), "keep": 9, "asyncMode": mode},
        )
        output = root / f"{model} {name}"
        if step is None:
            return {"spec": spec, "output": str(output)}
        return {"spec": spec, "output": f"{output} {step}", "from": [str(output), step], "stopAt": step + 2}

    def run(world: int, names: list, *more: tuple[tuple, dict]) -> dict:
        cases = {
            (model, how, step): case(model, how, step=step, **HOW[how])
            for model, how in names
            for step in (None, *breaks(model, how))
        }
        cases.update(more)
        results = harness.run_worker(list(cases.values()), root / str(world), world=world)
        return dict(zip(cases, results, strict=True))

    reshaped = [case("attention", "shards", {"tp": 2}, 2) | {"output": str(root / name)} for name in ("a", "b")]
    kept = case("kept", "shards", {"dpShard": 2}, None)
    found = run(
        2,
        [(model, how) for model, how in RESUMED if how not in ON_FOUR],
        (("kept", "shards", None), kept),
        *zip((("reshaped",), ("reshaped again",)), reshaped, strict=True),
    )
    return found | run(4, [("attention", how) for how in ON_FOUR])


def breaks(model: str, how: str) -> range:
    """Return the steps after which to interrupt the run."""
    return range(1, STEPS) if (model, how) == ("residual", "shards") else range(2, 3)


def numbers(result: dict) -> list[tuple[float, float]]:
    return [(step["loss"], step["grad_norm"]) for step in result["steps"]]


@pytest.mark.parametrize(("model", "how"), RESUMED)
def test_a_run_interrupted_at_any_step_resumes_bit_for_bit(runs, model, how):
    unbroken = runs[model, how, None]
    assert len(numbers(unbroken)) == STEPS
    for step in breaks(model, how):
        resumed = runs[model, how, step]
        end = min(step + 2, STEPS)
        assert numbers(resumed) == numbers(unbroken)[step:end], f"interrupted at {step}"
        assert resumed["random"] == unbroken["random"][step:end]


def test_dropout_is_active_and_differs_in_each_pass(runs):
    kept, dropping = numbers(runs["kept", "shards", None]), numbers(runs["attention", "shards", None])
    assert all(abs(ours[0] / without[0] - 1) > 1e-4 for ours, without in zip(dropping, kept, strict=True))
    assert len(set(runs["attention", "shards", None]["random"])) == STEPS
    assert numbers(runs["attention", "accumulated", None])[0] != dropping[0]


def test_recomputation_repeats_the_dropout_of_the_first_pass(runs):
    recomputed, shards = numbers(runs["residual", "recomputed", None]), numbers(runs["residual", "shards", None])
    for again, once in zip(recomputed, shards, strict=True):
        assert again == pytest.approx(once, rel=1e-5)


@pytest.mark.parametrize(
    ("mesh", "alike"),
    [
        ("shards", [0, 1]),
        ("replicas", [0, 1]),
        ("pp", [0, 1]),
        ("cp", [0, 1]),
        ("tp", [0, 0]),
        ("hybrid shards", [0, 1, 2, 3]),
        ("shards x tp", [0, 0, 1, 1]),
    ],
)
def test_only_ranks_of_one_tensor_parallel_group_draw_the_same_numbers(runs, mesh, alike):
    drawn = runs["attention", mesh, None]["first_random"]
    assert [drawn.index(state) for state in drawn] == [alike.index(group) for group in alike]


def test_on_another_mesh_the_numbers_restart_reproducibly(runs):
    first, again = runs["reshaped",], runs["reshaped again",]
    assert len(numbers(first)) == 2
    assert numbers(first) == numbers(again)
    losses = [loss for loss, _ in numbers(first)]
    assert losses == pytest.approx([loss for loss, _ in numbers(runs["attention", "shards", None])[2:4]], rel=0.1)


def test_dropout_with_soft_capped_attention_is_refused():
    from transformers import AutoConfig

    spec = TrainerSpec.model_validate(harness.trainer_spec("/model"))
    gemma = {**harness.TINY, "model_type": "gemma2"}
    check_model_on_mesh(AutoConfig.for_model(**gemma), spec)
    config = AutoConfig.for_model(**gemma, attention_dropout=0.1)
    with pytest.raises(UserError) as caught:
        check_model_on_mesh(config, spec)
    assert str(caught.value) == (
        "spec.model.overrides.attention_dropout: /model has 0.1, but soft-capped attention (attn_logit_softcapping) "
        "does not support dropout; set it to 0.0"
    )
