"""Compares tokens/s with transformers' Trainer: same model, text, batch, optimizer and number of processes.

Both fine-tune SmolLM2-135M in float32 on two CPU processes, one sequence of 256 tokens each. They run alternately, so
that noise on the machine affects both. The result is the ratio of the medians over all steps, without the first three
of each run. transformers uses DDP over gloo with its default attention (SDPA).

    python bench/trainer.py [--rounds 2] [--steps 12] [--seq-len 256] [--batch 1]
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parent.parent
RANKS = 2
WARMUP = 3
LR = 2e-4


def ours(folder: Path, args: argparse.Namespace) -> list[float]:
    """Return the seconds of each step of `hftitan run`."""
    job: dict[str, Any] = yaml.safe_load((ROOT / "examples/smollm2.yaml").read_text())
    job["spec"]["training"].update(steps=args.steps, seqLen=args.seq_len, localBatchSize=args.batch)
    job["spec"]["optimizer"]["lr"] = LR
    job["spec"]["lrSchedule"] = {}
    job["spec"]["checkpoint"] = {"interval": 0, "exportHF": False}
    file = folder / "job.yaml"
    file.write_text(yaml.safe_dump(job))
    hftitan = Path(sys.executable).with_name("hftitan")
    subprocess.run(
        [hftitan, "run", file, "--workdir", folder / "run"], check=True, stdout=subprocess.DEVNULL, cwd=folder
    )
    rows = map(json.loads, (folder / "run/metrics.jsonl").read_text().splitlines())
    return [row["stepSeconds"] for row in rows if "stepSeconds" in row]


def theirs(folder: Path, args: argparse.Namespace) -> list[float]:
    """Return the seconds of each step of transformers' Trainer under torchrun."""
    out = folder / "steps.json"
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={RANKS}", __file__]
    command += [
        "--peer-output",
        str(out),
        f"--steps={args.steps}",
        f"--seq-len={args.seq_len}",
        f"--batch={args.batch}",
    ]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, cwd=folder)
    seconds: list[float] = json.loads(out.read_text())
    return seconds


def peer(args: argparse.Namespace) -> None:
    """Run one rank of the peer."""
    import torch
    import transformers as t

    sys.path.insert(0, str(ROOT / "hack"))
    from fetch_smollm2 import MODEL

    tokenizer = t.AutoTokenizer.from_pretrained(MODEL)
    model = t.AutoModelForCausalLM.from_pretrained(MODEL, dtype=torch.float32)
    files = sorted(p for p in Path("/usr/share/common-licenses").iterdir() if not p.is_symlink())
    ids = [i for p in files for i in [*tokenizer(p.read_text(errors="replace"))["input_ids"], tokenizer.eos_token_id]]
    rows = [ids[i : i + args.seq_len] for i in range(0, len(ids) - args.seq_len, args.seq_len)]

    class Clock(t.TrainerCallback):  # type: ignore[misc]
        def __init__(self) -> None:
            self.steps: list[float] = []
            self.began = 0.0

        def on_step_begin(self, *_: Any, **__: Any) -> None:
            self.began = time.perf_counter()

        def on_step_end(self, *_: Any, **__: Any) -> None:
            self.steps.append(time.perf_counter() - self.began)

    clock = Clock()
    t.Trainer(
        model=model,
        args=t.TrainingArguments(
            output_dir=".",
            use_cpu=True,
            per_device_train_batch_size=args.batch,
            max_steps=args.steps,
            learning_rate=LR,
            lr_scheduler_type="constant",
            weight_decay=0.1,
            max_grad_norm=1.0,
            save_strategy="no",
            report_to=[],
            disable_tqdm=True,
            ddp_find_unused_parameters=False,
        ),
        train_dataset=[{"input_ids": row, "labels": row} for row in rows],
        callbacks=[clock],
    ).train()
    if os.environ["RANK"] == "0":
        Path(args.peer_output).write_text(json.dumps(clock.steps))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--seq-len", type=int, default=256)
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--peer-output", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.peer_output:
        peer(args)
        return

    sys.path.insert(0, str(ROOT / "hack"))
    from fetch_smollm2 import fetch

    os.environ.update(fetch())
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or RANKS) // RANKS)))
    seconds: dict[str, list[float]] = {"hftitan": [], "transformers": []}
    for round_ in range(args.rounds):
        for name, run in (("hftitan", ours), ("transformers", theirs)):
            with tempfile.TemporaryDirectory() as folder:
                steps = run(Path(folder), args)
            seconds[name] += steps[WARMUP:]
            print(f"round {round_ + 1} {name:12} {statistics.median(steps[WARMUP:]):6.2f} s/step", flush=True)

    tokens = RANKS * args.batch * args.seq_len
    rate = {name: tokens / statistics.median(values) for name, values in seconds.items()}
    for name, value in rate.items():
        print(f"{name:12} {value:8.1f} tokens/s  (median of {len(seconds[name])} steps)")
    print(f"ratio hftitan / transformers: {rate['hftitan'] / rate['transformers']:.2f}")


if __name__ == "__main__":
    main()
