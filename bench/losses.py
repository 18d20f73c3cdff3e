"""Losses of fine-tuning SmolLM2-135M on the demo's text, beside those of transformers and torch alone.

Both see the same packed rows. The peer is the loop anyone would write: the model of transformers with a mask for each
document, torch's AdamW and clip_grad_norm_, and the schedule of the demo written out. float32, one process.

    python bench/losses.py [--steps 30] [--seq-len 256] [--batch 2]
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT / "tests/trainer"), str(ROOT / "hack")]
MODEL = "HuggingFaceTB/SmolLM2-135M-Instruct"
TEXT = Path("/usr/share/common-licenses/GPL-3")
OPTIMIZER: dict[str, Any] = {"lr": 3e-4, "betas": [0.9, 0.95], "eps": 1e-8, "weightDecay": 0.1}
SCHEDULE: dict[str, Any] = {"warmupSteps": 3, "decayRatio": 0.5, "minLrFactor": 0.1}
MAX_NORM = 1.0


def model_folder() -> Path:
    """SmolLM2-135M on this machine's disk."""
    from huggingface_hub import snapshot_download

    from fetch_smollm2 import fetch

    env = fetch()
    cache = str(Path(env["HF_HOME"]) / "hub") if "HF_HOME" in env else None
    return Path(snapshot_download(MODEL, cache_dir=cache, local_files_only=True))


def packed(model: Path, count: int, seq_len: int) -> list[dict[str, list[int]]]:
    """Rows of the text, whose paragraphs are the documents; positions restart and labels end with each."""
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
        # A document that is cut begins anew in the next row.
        cut = next((i for i in range(1, seq_len) if positions[start + i] == 0), seq_len)
        restarted = [p - first if i < cut else p for i, p in enumerate(positions[part])]
        rows.append({"input": tokens[part], "labels": labels[part], "positions": restarted})
    return rows


def ours(model: Path, rows: list[dict[str, list[int]]], steps: int, batch: int, folder: Path) -> list[float]:
    """Losses of the trainer."""
    import harness

    training = {
        "steps": steps,
        "seqLen": len(rows[0]["input"]),
        "localBatchSize": batch,
        "globalBatchSize": batch,
        "maxNorm": MAX_NORM,
    }
    spec = harness.trainer_spec(model, training=training, optimizer=OPTIMIZER, lrSchedule=SCHEDULE)
    (result,) = harness.run_worker([{"spec": spec, "rows": rows}], folder, world=1, timeout=3600)
    return [step["loss"] for step in result["steps"]]


def theirs(model: Path, rows: list[dict[str, list[int]]], steps: int, batch: int) -> list[float]:
    """Losses of a plain loop."""
    import torch
    from torch.nn.functional import cross_entropy
    from transformers import AutoModelForCausalLM

    net = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32, attn_implementation="sdpa")
    net.train()
    optimizer = torch.optim.AdamW(
        net.parameters(),
        lr=OPTIMIZER["lr"],
        betas=tuple(OPTIMIZER["betas"]),
        eps=OPTIMIZER["eps"],
        weight_decay=OPTIMIZER["weightDecay"],
    )
    losses = []
    for step in range(steps):
        part = rows[step * batch : (step + 1) * batch]
        tokens, labels, positions = (torch.tensor([row[k] for row in part]) for k in ("input", "labels", "positions"))
        document = (positions == 0).cumsum(1)
        mask = (document[:, :, None] == document[:, None, :]).tril().unsqueeze(1)
        logits = net(tokens, attention_mask=mask, position_ids=positions, use_cache=False).logits
        loss = cross_entropy(logits.flatten(0, 1), labels.flatten())
        loss.backward()
        torch.nn.utils.clip_grad_norm_(net.parameters(), MAX_NORM)
        for group in optimizer.param_groups:
            group["lr"] = OPTIMIZER["lr"] * factor(step, steps)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    return losses


def factor(step: int, steps: int) -> float:
    """Of the learning rate in `step` (from 0): up over the warm-up, then 1, then down to minLrFactor."""
    warmup, decay = SCHEDULE["warmupSteps"], round(SCHEDULE["decayRatio"] * steps)
    if step < warmup:
        return float((step + 1) / warmup)
    left = 1 - max(0, step - (steps - decay)) / decay
    return float(SCHEDULE["minLrFactor"] + (1 - SCHEDULE["minLrFactor"]) * left)


def compare(steps: int, seq_len: int, batch: int, folder: Path) -> list[tuple[float, float]]:
    """Our loss and theirs, step by step."""
    model = model_folder()
    rows = packed(model, steps * batch, seq_len)
    mine = ours(model, rows, steps, batch, folder)
    return list(zip(mine, theirs(model, rows, steps, batch), strict=True))


def largest_difference(losses: list[tuple[float, float]]) -> float:
    return max(abs(a / b - 1) for a, b in losses)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--seq-len", type=int, default=256)
    parser.add_argument("--batch", type=int, default=2)
    args = parser.parse_args()
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    with tempfile.TemporaryDirectory() as folder:
        losses = compare(args.steps, args.seq_len, args.batch, Path(folder))
    print("step   hftitan  transformers")
    for step, (a, b) in enumerate(losses, start=1):
        print(f"{step:4} {a:9.6f}     {b:9.6f}")
    print(f"largest relative difference: {largest_difference(losses):.1e}")


if __name__ == "__main__":
    main()
