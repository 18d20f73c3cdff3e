"""A run resumed on another mesh has the rows and losses of the uninterrupted run, step by step."""

from __future__ import annotations

import harness
import pytest

STEPS, BROKEN = 8, 4

FROM_ONE = {
    "one to two shards": {"dpShard": 2},
    "one to two replicas": {"dpReplicate": 2},
    "one to tensor parallel": {"tp": 2},
    "one to a pipeline": {"pp": 2},
}
FROM_TWO = {
    "two shards to two replicas": {"dpReplicate": 2},
    "two shards to tensor parallel": {"tp": 2},
    "two shards to a pipeline": {"pp": 2},
    "two shards to context parallel": {"cp": 2},
    "two shards to another local batch": {"dpShard": 2},
}


MEANWHILE = {"shards saved meanwhile": {"dpShard": 2}, "replicas saved meanwhile": {"dpReplicate": 2}}


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return tmp_path_factory.mktemp("reshape")


@pytest.fixture(scope="module")
def runs(root, tokenizer):
    model = harness.make_text_model(root / "model", tokenizer, tied=True)

    def case(name: str, degrees: dict, **more) -> dict:
        sections = harness.mesh(**degrees)
        sections["training"]["steps"] = STEPS
        sections["training"].update(more.pop("training", {}))
        spec = harness.trainer_spec(
            model,
            **sections,
            dataset={"path": str(root / "model.jsonl")},
            lrSchedule={"warmupSteps": 2, "decayRatio": 0.5},
            checkpoint={"interval": BROKEN, "keep": 9, "asyncMode": more.pop("mode", "disabled")},
        )
        return {"spec": spec, "output": str(root / name.replace(" ", "-")), **more}

    def run(cases: dict, folder: str, world: int) -> dict:
        return dict(zip(cases, harness.run_worker(list(cases.values()), root / folder, world=world), strict=True))

    one, two, four = ([str(root / name), BROKEN] for name in ("one", "two", "four"))
    found = run({"one": case("one", {})}, "1", 1)
    cases = {
        "four": case("four", {"dpShard": 2, "tp": 2}, stopAt=BROKEN),
        "one to four": case("one to four", {"dpReplicate": 2, "dpShard": 2}, **{"from": one}),
    }
    found |= run(cases, "4", 4)
    cases = {"two": case("two", {"dpShard": 2})}
    cases |= {name: case(name, degrees, **{"from": one}) for name, degrees in FROM_ONE.items()}
    cases |= {name: case(name, degrees, **{"from": two}) for name, degrees in FROM_TWO.items()}
    cases["two shards to another local batch"]["spec"]["training"]["localBatchSize"] = 1
    cases["pipeline"] = case("pipeline", {"pp": 2}, stopAt=BROKEN)
    cases["a pipeline to two shards"] = case(
        "pipeline to shards", {"dpShard": 2}, **{"from": [str(root / "pipeline"), BROKEN]}
    )
    for name, degrees in MEANWHILE.items():
        cases[name] = case(name, degrees, mode="async")
        before = [str(root / name.replace(" ", "-")), BROKEN]
        cases[f"{name}, resumed"] = case(f"{name} resumed", degrees, mode="async", **{"from": before})
    for mode in ("disabled", "async"):
        cases[f"full disk, {mode}"] = case(
            f"full disk {mode}", {"dpShard": 2}, mode=mode, fails=True, smallDiskAfter=BROKEN
        )
    cases["four to two"] = case("four to two", {"tp": 2}, **{"from": four})
    cases["another global batch"] = case(
        "another global batch", {"dpShard": 2}, fails=True, training={"globalBatchSize": 8}, **{"from": one}
    )
    found |= run(cases, "2", 2)
    cases = {
        "two to one": case("two to one", {}, **{"from": two}),
        "two to one, a row at a time": case("rows", {}, training={"localBatchSize": 1}, **{"from": two}),
        "four to one": case("four to one", {}, **{"from": four}),
    }
    return found | run(cases, "1 again", 1)


RESHAPED = (
    *FROM_ONE,
    *FROM_TWO,
    "one to four",
    "four to two",
    "two to one",
    "two to one, a row at a time",
    "four to one",
    "a pipeline to two shards",
)


def test_each_step_of_the_uninterrupted_run_has_different_rows(runs):
    rows = [row for step in runs["one"]["consumed"].values() for row in step]
    assert len(rows) == len(set(rows)) == 4 * STEPS


def test_a_run_on_two_ranks_consumes_the_rows_of_one(runs):
    assert runs["two"]["consumed"] == runs["one"]["consumed"]
    assert losses(runs["two"]) == pytest.approx(losses(runs["one"]), rel=1e-3)


def losses(result: dict) -> list[float]:
    return [step["loss"] for step in result["steps"]]


@pytest.mark.parametrize("name", RESHAPED)
def test_a_run_resumed_on_another_mesh_has_the_rows_and_losses_of_the_uninterrupted_run(runs, name):
    unbroken, resumed = runs["one"], runs[name]
    after = [str(step) for step in range(BROKEN + 1, STEPS + 1)]
    assert resumed["consumed"] == {step: unbroken["consumed"][step] for step in after}
    assert losses(resumed) == pytest.approx(losses(unbroken)[BROKEN:], rel=1e-3)
    assert [step["grad_norm"] for step in resumed["steps"]] == pytest.approx(
        [step["grad_norm"] for step in unbroken["steps"]][BROKEN:], rel=2e-3
    )
    for key in ("tokens_seen", "lr", "step"):
        assert [step[key] for step in resumed["steps"]] == [step[key] for step in unbroken["steps"]][BROKEN:]


def test_another_global_batch_is_refused_with_the_value_to_set(runs):
    assert runs["another global batch"]["error"] == "UserError"
    assert runs["another global batch"]["message"].startswith("spec.training.globalBatchSize: the checkpoint ")
    assert "set 4 (mesh and localBatchSize may change)" in runs["another global batch"]["message"]


@pytest.mark.parametrize("name", MEANWHILE)
def test_an_asynchronous_checkpoint_has_the_state_of_its_own_step(runs, name):
    unbroken, resumed = runs[name], runs[f"{name}, resumed"]
    for key in ("loss", "grad_norm", "tokens_seen"):
        assert [step[key] for step in resumed["steps"]] == [step[key] for step in unbroken["steps"]][BROKEN:]
    assert losses(unbroken) == pytest.approx(losses(runs["two"]), rel=1e-6)


@pytest.mark.parametrize("mode", ["disabled", "async"])
def test_a_full_disk_of_one_rank_is_a_storage_error_and_keeps_older_checkpoints(runs, root, mode):
    failed = runs[f"full disk, {mode}"]
    assert failed["error"] == "StorageError", failed
    assert "step-8 failed" in failed["message"]
    folder = root / f"full-disk-{mode}" / "checkpoint"
    assert [p.name for p in folder.iterdir()] == [f"step-{BROKEN}"]
    assert (folder / f"step-{BROKEN}" / "complete.json").exists()
