"""Measures the seconds from a job file to the first finished step of a tiny model on two CPU processes, by phase.

    python bench/startup.py [--rounds 3]

start: `hftitan run`, torchrun and the rank's interpreter; import: torch, transformers and torchtitan; fetch: the model
folder; build: process groups and model; load: weights or random initialisation; first_step: the first step. Prints the
median of each phase. The wall time also includes the time of `hftitan run` before and after.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parent.parent
TINY = {
    "num_hidden_layers": 2,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}


def startup(folder: Path) -> dict[str, float]:
    """Run once. Return phase -> seconds."""
    job: dict[str, Any] = yaml.safe_load((ROOT / "examples/smollm2.yaml").read_text())
    job["spec"]["model"].update(initialize="random", overrides=TINY)
    job["spec"]["training"].update(steps=2, seqLen=64)
    job["spec"]["lrSchedule"] = {}
    job["spec"]["checkpoint"] = {"interval": 0, "exportHF": False}
    (folder / "job.yaml").write_text(yaml.safe_dump(job))
    hftitan = Path(sys.executable).with_name("hftitan")
    command = [hftitan, "run", "job.yaml", "--workdir", "run"]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, cwd=folder)
    for line in (folder / "run/metrics.jsonl").read_text().splitlines():
        row = json.loads(line)
        if row["kind"] == "startup":
            seconds: dict[str, float] = row["seconds"]
            return seconds
    raise SystemExit("bench/startup: the run wrote no startup record")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    sys.path.insert(0, str(ROOT / "hack"))
    from fetch_smollm2 import fetch

    os.environ.update(fetch())
    rounds = []
    for _ in range(args.rounds):
        with tempfile.TemporaryDirectory() as folder:
            rounds.append(startup(Path(folder)))
    for phase in rounds[0]:
        print(f"{phase:12} {statistics.median(r[phase] for r in rounds):6.2f} s")
    print(f"{'total':12} {statistics.median(sum(r.values()) for r in rounds):6.2f} s  (median of {len(rounds)} runs)")


if __name__ == "__main__":
    main()
