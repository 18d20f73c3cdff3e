"""Compares the losses of fine-tuning SmolLM2-135M with those of transformers' Trainer.

Both train on the same packed rows in float32. The peer is transformers' Trainer with a mask per document, torch's
AdamW on all weights (the Trainer's default excludes norms), the Trainer's clipping, and the same schedule. Our trainer
runs in one process and on meshes of two.

    python bench/losses.py [--steps 30] [--seq-len 256] [--batch 2] [--mesh one fsdp2 ddp2 pp2 cp2]
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT / "tests/support/trainer"), str(ROOT / "hack")]
MODEL = "HuggingFaceTB/SmolLM2-135M-Instruct"
TEXT = Path("/usr/share/common-licenses/GPL-3")
OPTIMIZER: dict[str, Any] = {"lr": 3e-4, "betas": [0.9, 0.95], "eps": 1e-8, "weightDecay": 0.1}
SCHEDULE: dict[str, Any] = {"warmupSteps": 3, "decayRatio": 0.5, "minLrFactor": 0.1}
MAX_NORM = 1.0


def model_folder() -> Path:
    """Return the folder of SmolLM2-135M on disk."""
    from huggingface_hub import snapshot_download

    from fetch_smollm2 import fetch

    env = fetch()
    cache = str(Path(env["HF_HOME"]) / "hub") if "HF_HOME" in env else None
    return Path(snapshot_download(MODEL, cache_dir=cache, local_files_only=True))


def packed(model: Path, count: int, seq_len: int) -> list[dict[str, list[int]]]:
    """Return packed rows of the text. Each paragraph is a document with its own positions and labels."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(model)
    tokens: list[int] = []
    labels: list[int] = []
    positions: list[int] = []
    paragraphs = TEXT.read_text().split("\n\n")
    while len(tokens) < count * seq_len:
        for paragraph in paragraphs:
            ids = [*tokenizer(paragraph).input_ids, tokenizer.eos_token_id]
            tokens += ids
            labels += [*ids[1:], -100]
            positions += range(len(ids))
    rows = []
    for start in range(0, count * seq_len, seq_len):
        part = slice(start, start + seq_len)
        first = positions[start]
        # A document cut by the end of a row starts again at position 0 in the next row.
        cut = next((i for i in range(1, seq_len) if positions[start + i] == 0), seq_len)
        restarted = [p - first if i < cut else p for i, p in enumerate(positions[part])]
        rows.append({"input": tokens[part], "labels": labels[part], "positions": restarted})
    return rows


MESHES: dict[str, dict[str, int]] = {
    "one": {},
    "fsdp2": {"dpShard": 2},
    "ddp2": {"dpReplicate": 2},
    "pp2": {"pp": 2},
    "cp2": {"cp": 2},
}
"""No tp: the model has nine heads."""
PEER = "transformers"


def ours(
    model: Path, rows: list[dict[str, list[int]]], steps: int, batch: int, folder: Path, mesh: dict[str, int]
) -> list[float]:
    """Return the losses of our trainer."""
    import harness

    dp = mesh.get("dpShard", 1) * mesh.get("dpReplicate", 1)
    world = 2 if mesh else 1
    training = {
        "steps": steps,
        "seqLen": len(rows[0]["input"]),
        "localBatchSize": batch // dp,
        "globalBatchSize": batch,
        "maxNorm": MAX_NORM,
    }
    degrees = {**mesh, "ranksPerNode": world}
    spec = harness.trainer_spec(model, mesh=degrees, training=training, optimizer=OPTIMIZER, lrSchedule=SCHEDULE)
    (result,) = harness.run_worker([{"spec": spec, "rows": rows}], folder, world=world, timeout=3600)
    return [step["loss"] for step in result["steps"]]


def theirs(model: Path, rows: list[dict[str, list[int]]], steps: int, batch: int, folder: Path) -> list[float]:
    """Return the losses of transformers' Trainer."""
    import torch
    from transformers import AutoModelForCausalLM, Trainer, TrainingArguments

    class Recording(Trainer):  # type: ignore[misc]
        def compute_loss(self, model: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
            loss = super().compute_loss(model, inputs, *args, **kwargs)
            losses.append(loss.item())
            return loss

    def collate(part: list[dict[str, list[int]]]) -> dict[str, Any]:
        tokens, labels, positions = (torch.tensor([row[k] for row in part]) for k in ("input", "labels", "positions"))
        document = (positions == 0).cumsum(1)
        mask = (document[:, :, None] == document[:, None, :]).tril().unsqueeze(1)
        # The labels are shifted already, also across the end of a row.
        return {
            "input_ids": tokens, "labels": labels, "shift_labels": labels, "position_ids": positions,
            "attention_mask": mask,
        }  # fmt: skip

    losses: list[float] = []
    net = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32, attn_implementation="sdpa")
    optimizer = torch.optim.AdamW(
        net.parameters(),
        lr=OPTIMIZER["lr"],
        betas=tuple(OPTIMIZER["betas"]),
        eps=OPTIMIZER["eps"],
        weight_decay=OPTIMIZER["weightDecay"],
    )
    arguments = TrainingArguments(
        output_dir=str(folder / "trainer"), max_steps=steps, per_device_train_batch_size=batch, max_grad_norm=MAX_NORM,
        use_cpu=True, report_to=[], save_strategy="no", logging_strategy="no", disable_tqdm=True,
        remove_unused_columns=False, train_sampling_strategy="sequential",
    )  # fmt: skip
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: factor(min(step, steps - 1), steps))
    Recording(
        model=net, args=arguments, train_dataset=rows, data_collator=collate, optimizers=(optimizer, schedule)
    ).train()
    return losses


def factor(step: int, steps: int) -> float:
    """Return the learning rate factor in `step` (from 0): linear warm-up, 1, linear decay to minLrFactor."""
    warmup, decay = SCHEDULE["warmupSteps"], round(SCHEDULE["decayRatio"] * steps)
    if step < warmup:
        return float((step + 1) / warmup)
    left = 1 - max(0, step - (steps - decay)) / decay
    return float(SCHEDULE["minLrFactor"] + (1 - SCHEDULE["minLrFactor"]) * left)


def compare(
    steps: int, seq_len: int, batch: int, folder: Path, meshes: Sequence[str] = ("one",)
) -> dict[str, list[float]]:
    """Return the losses of every step, by mesh and for PEER."""
    model = model_folder()
    rows = packed(model, steps * batch, seq_len)
    found = {PEER: theirs(model, rows, steps, batch, folder)}
    for name in meshes:
        found[name] = ours(model, rows, steps, batch, folder / name, MESHES[name])
    return found


def largest_difference(losses: list[float], peer: list[float]) -> float:
    return max(abs(a / b - 1) for a, b in zip(losses, peer, strict=True))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--seq-len", type=int, default=256)
    parser.add_argument("--batch", type=int, default=2)
    parser.add_argument("--mesh", nargs="+", choices=MESHES, default=list(MESHES), help=", ".join(MESHES))
    args = parser.parse_args()
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    with tempfile.TemporaryDirectory() as folder:
        losses = compare(args.steps, args.seq_len, args.batch, Path(folder), args.mesh)
    print("step  " + "".join(f"{name:>14}" for name in losses))
    for step, row in enumerate(zip(*losses.values(), strict=True), start=1):
        print(f"{step:4}  " + "".join(f"{loss:14.6f}" for loss in row))
    differences = [largest_difference(losses[name], losses[PEER]) for name in losses]
    print("diff  " + "".join(f"{difference:14.1e}" for difference in differences))
    print(f"largest relative difference: {max(differences):.1e}")


if __name__ == "__main__":
    main()
