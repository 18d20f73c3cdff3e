"""Adam and AdamW compared with torch's own in a plain loop; DistMuon and LoRA are refused."""

from __future__ import annotations

from pathlib import Path

import harness
import pytest

STEPS, BATCH = 4, 4
SETTINGS = {"lr": 1e-2, "betas": [0.8, 0.9], "eps": 1e-6, "weightDecay": 0.5}
SCHEDULE = {"warmupSteps": 2, "decayRatio": 0.5, "decayType": "linear", "minLrFactor": 0.1}


def plain(folder: Path, rows: list[dict], name: str, lrs: list[float]) -> list[float]:
    """Return the losses of a plain training loop: one document per row, gradients clipped to norm 1."""
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    optimizer = getattr(torch.optim, name)(
        model.parameters(), lr=1.0, betas=tuple(SETTINGS["betas"]), eps=SETTINGS["eps"], weight_decay=0.5, foreach=False
    )
    losses = []
    for step, lr in enumerate(lrs):
        batch = rows[step * BATCH : (step + 1) * BATCH]
        tokens, labels = (torch.tensor([row[key] for row in batch]) for key in ("input", "labels"))
        optimizer.param_groups[0]["lr"] = lr
        optimizer.zero_grad()
        loss = torch.nn.functional.cross_entropy(model(tokens).logits.flatten(0, 1), labels.flatten())
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        losses.append(loss.item())
    return losses


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    root = tmp_path_factory.mktemp("optimizers")
    folder = harness.make_model(root / "tiny")
    rows = harness.rows(STEPS * BATCH, documents=False)
    training = {"steps": STEPS, "seqLen": harness.SEQ, "localBatchSize": BATCH}
    cases = {
        name: {
            "spec": harness.trainer_spec(
                folder, training=training, optimizer={"name": name, **SETTINGS}, lrSchedule=SCHEDULE
            ),
            "rows": rows,
            "fails": name == "DistMuon",
        }
        for name in ("AdamW", "Adam", "DistMuon")
    }
    adapters = harness.trainer_spec(folder, training={**training, "lora": {}})
    cases["LoRA"] = {"spec": adapters, "rows": rows, "fails": True}
    results = harness.run_worker(list(cases.values()), root / "work", world=1)
    return folder, rows, dict(zip(cases, results, strict=True))


@pytest.mark.parametrize("name", ["AdamW", "Adam"])
def test_an_optimizer_has_the_losses_of_torchs_own(trained, name):
    folder, rows, found = trained
    steps = found[name]["steps"]
    expected = plain(folder, rows, name, [step["lr"] for step in steps])
    assert [step["loss"] for step in steps] == pytest.approx(expected, rel=1e-5)
    assert [step["lr"] for step in steps] == pytest.approx([0.005, 0.01, 0.01, 0.0055], rel=1e-6)


def test_adam_and_adamw_apply_weight_decay_differently(trained):
    _, _, found = trained
    adam, adamw = (found[name]["steps"][-1]["loss"] for name in ("Adam", "AdamW"))
    assert abs(adam / adamw - 1) > 1e-3


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("DistMuon", "spec.optimizer.name: DistMuon is not supported yet; use AdamW ("),
        ("LoRA", "spec.training.lora: lora is not supported yet; remove it ("),
    ],
)
def test_the_trainer_refuses_unsupported_fields_by_name(trained, name, said):
    _, _, found = trained
    assert found[name]["error"] == "UserError"
    assert found[name]["message"].startswith(said)
