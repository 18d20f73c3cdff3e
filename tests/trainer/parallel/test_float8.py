"""Linear layers in float8: emulated on CPUs, multiplied in float8 on GPUs that support it."""

from __future__ import annotations

from pathlib import Path

import harness
import pytest

STEPS, LR = 4, 1e-3
NOISE = 3e-2
"""Effect of rounding to three bits over some steps: measured 1.4e-2 from float32, 5.5e-3 between meshes."""
RECIPES = ("rowwise", "rowwise_with_gw_hp")
MESHES = {"dp_shard": {"dpShard": 2}, "tp": {"tp": 2}, "pp": {"pp": 2}, "cp": {"cp": 2}}


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    root = tmp_path_factory.mktemp("float8")
    harness.make_model(root / "llama", tied=True, hidden_size=64, intermediate_size=128)
    harness.make_model(root / "odd", hidden_size=24, intermediate_size=40)
    return root


def case(root: Path, recipe: str | None, mesh: dict, *, model: str = "llama", **more) -> dict:
    sections = harness.mesh(STEPS, **mesh)
    if recipe:
        sections["training"]["float8"] = recipe
    spec = harness.trainer_spec(root / model, **sections, optimizer={"lr": LR})
    return {"spec": spec, "rows": harness.rows(4), **more}


@pytest.fixture(scope="module")
def runs(root):
    alone = {recipe: case(root, recipe, {}) for recipe in (None, *RECIPES)}
    alone["rowwise"]["export"] = str(root / "exported")
    alone["odd"] = case(root, "rowwise", {}, model="odd", fails=True)
    alone["selective"] = case(root, "rowwise", {})
    alone["selective"]["spec"]["training"]["activationCheckpoint"] = "selective"
    two = {mesh: case(root, "rowwise", degrees) for mesh, degrees in MESHES.items()}
    found = dict(zip(alone, harness.run_worker(list(alone.values()), root / "1", world=1), strict=True))
    return found | dict(zip(two, harness.run_worker(list(two.values()), root / "2", world=2), strict=True))


def losses(result: dict) -> list[float]:
    return [step["loss"] for step in result["steps"]]


def test_float8_rounds_and_has_the_losses_of_training_without(runs):
    plain = losses(runs[None])
    for recipe in RECIPES:
        assert losses(runs[recipe]) == pytest.approx(plain, rel=NOISE)
        assert all(ours != without for ours, without in zip(losses(runs[recipe]), plain, strict=True))
    assert runs["rowwise"] != runs["rowwise_with_gw_hp"]
    assert plain[-1] < plain[0] - 0.3


@pytest.mark.parametrize("how", [*MESHES, "selective"])
def test_every_mesh_rounds_alike(runs, how):
    found, one = losses(runs[how]), losses(runs["rowwise"])
    assert found[0] == pytest.approx(one[0], rel=1e-5)
    assert found == pytest.approx(one, rel=NOISE)


def test_the_export_keeps_names_and_dtypes(root, runs):
    from safetensors.torch import load_file

    before, after = (load_file(root / name / "model.safetensors") for name in ("llama", "exported"))
    assert {name: tensor.dtype for name, tensor in after.items()} == {name: t.dtype for name, t in before.items()}
    # AdamW moves a weight by about the learning rate per step; rounding to float8 would move it farther.
    moved = {name: float((after[name] - before[name]).abs().max()) for name in before}
    assert all(0 < distance < 2 * STEPS * LR for distance in moved.values()), moved


def test_layer_sizes_that_float8_does_not_support_are_refused(runs):
    assert runs["odd"]["error"] == "UserError"
    assert runs["odd"]["message"] == (
        "spec.training.float8: rowwise needs linear layers whose sizes are multiples of 16 x tp 1 = 16, but the model "
        "has none; remove it"
    )


def test_a_gpu_without_float8_is_refused(monkeypatch):
    """Needs no GPU: torch's answers are patched."""
    import torch

    from hftitan_trainer.parallel import float8
    from hftitan_trainer.process.errors import UserError

    monkeypatch.setattr(float8, "device_type", "cuda")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (8, 0))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "A100")
    with pytest.raises(UserError) as caught:
        float8.convert(torch.nn.Linear(16, 16), "rowwise", tp=1)
    assert str(caught.value) == (
        "spec.training.float8: rowwise needs GPUs with float8 (Ada, Hopper or newer), but this GPU is A100; remove it"
    )
