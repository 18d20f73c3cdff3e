"""Starts whole runs of `hftitan_trainer` and reads their output."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hftitan_api.wire import ExitReport

STEPS = 60
TORCHRUN = (
    "-m", "hftitan_trainer.process.agent", "--nnodes", "1", "--nproc-per-node", "2", "--rdzv-backend", "c10d",
    "--rdzv-endpoint", "127.0.0.1:0", "--local-addr", "127.0.0.1",
)  # fmt: skip


def make_home(folder: Path, tokenizer: Any) -> Path:
    """Write a tiny model with dropout, its tokenizer, and text."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=256, bos_token_id=1, eos_token_id=2, attention_dropout=0.1,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(folder / "model")
    tokenizer.save_pretrained(folder / "model")
    words = ["alpha", "beta", "gamma", "delta", "epsilon"]
    for number in range(9):
        text = " ".join(words[(number * 7 + place * place) % 5] for place in range(60 + 40 * number))
        (folder / f"text/{number}.txt").parent.mkdir(exist_ok=True)
        (folder / f"text/{number}.txt").write_text(text)
    return folder


@dataclass
class Run:
    """One start of a pod, in its own folder."""

    folder: Path
    process: subprocess.Popen[str]
    port: int

    @property
    def output(self) -> Path:
        return self.folder / "out"

    def lines(self, kind: str) -> list[dict[str, Any]]:
        path = self.output / "metrics.jsonl"
        text = path.read_text() if path.exists() else ""
        found = [json.loads(line) for line in text.splitlines(keepends=True) if line.endswith("\n")]
        return [line for line in found if line["kind"] == kind]

    def losses(self) -> dict[int, tuple[float, float]]:
        """Return (loss, gradient norm) by step; the last line of a step counts."""
        return {line["step"]: (line["loss"], line["gradNorm"]) for line in self.lines("step")}

    def wait_for_step(self, step: int, attempt: int = 1) -> None:
        """Wait until this attempt, or a later one, has finished the step."""
        deadline = time.monotonic() + 240
        while not any(line["step"] >= step and line["attempt"] >= attempt for line in self.lines("step")):
            assert self.process.poll() is None, (self.folder / "log").read_text()
            assert time.monotonic() < deadline, (self.folder / "log").read_text()
            time.sleep(0.02)

    def end(self) -> int:
        try:
            return self.process.wait(240)
        finally:
            for pid in (*workers_of(self), self.process.pid if self.process.poll() is None else 0):
                if pid:
                    os.kill(pid, signal.SIGKILL)

    def log(self) -> str:
        return (self.folder / "log").read_text()

    def report(self) -> ExitReport:
        return ExitReport.model_validate_json((self.folder / "termination").read_bytes())

    def get(self, path: str) -> str:
        with urllib.request.urlopen(f"http://127.0.0.1:{self.port}{path}", timeout=10) as answer:
            return str(answer.read().decode())


def start(
    folder: Path,
    home: Path,
    *,
    ranks: int,
    restarts: int = 0,
    attempt: int = 1,
    interval: int = 0,
    launcher: tuple[str, ...] | None = None,
    **spec: Any,
) -> Run:
    """Start a pod. In a folder used before, the run resumes. `env` adds environment variables."""
    folder.mkdir(exist_ok=True)
    variables = spec.pop("env", {})
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    document = {
        "jobName": "test", "jobNamespace": "default", "jobUid": "uid",
        "mesh": {
            "nodes": 1, "ranksPerNode": ranks, "dpReplicate": 1, "dpShard": ranks, "cp": 1, "tp": 1, "pp": 1, "ep": 1,
            "device": "cpu",
        },
        "model": {"name": str(home / "model")},
        "dataset": {"path": str(home / "text")},
        "training": {"steps": STEPS, "seqLen": 64, "localBatchSize": 1},
        "optimizer": {"lr": 0.01},
        "lrSchedule": {"warmupSteps": 5, "decayRatio": 0.5},
        "checkpoint": {"interval": interval, "exportDtype": "float32"},
        "monitoring": {"port": port, **spec.pop("monitoring", {})},
        **spec,
    }  # fmt: skip
    (folder / "spec.json").write_text(json.dumps(document))
    (folder / "termination").write_text("")
    env = {
        **os.environ,
        "HFTITAN_CONFIG": str(folder / "spec.json"),
        "HFTITAN_OUTPUT": str(folder / "out"),
        "HFTITAN_TERMINATION_LOG": str(folder / "termination"),
        "HFTITAN_ATTEMPT": str(attempt),
        "HFTITAN_POD_IP": "127.0.0.1",
        "PET_SHUTDOWN_TIMEOUT": "60",
        "PET_MONITOR_INTERVAL": "0.1",
        "TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1",
        "OMP_NUM_THREADS": "1",
        "CUDA_VISIBLE_DEVICES": "",
        "HF_HUB_OFFLINE": "1",
        "HF_TOKEN": "hf_thisIsNoTokenButLooksLikeOne",
        **variables,
    }
    if launcher is None:
        launcher = (*TORCHRUN, "--max-restarts", str(restarts)) if ranks > 1 else ()
    with (folder / "log").open("w") as log:
        process = subprocess.Popen(
            [sys.executable, *launcher, "-m", "hftitan_trainer"], env=env, stdout=log, stderr=log, text=True
        )
    return Run(folder, process, port)


def exported(run: Run) -> dict[str, Any]:
    from safetensors.torch import load_file

    return load_file(run.output / "export" / "model.safetensors")


def workers_of(run: Run) -> list[int]:
    children = subprocess.run(["ps", "-o", "pid=", "--ppid", str(run.process.pid)], capture_output=True, text=True)
    return [int(pid) for pid in children.stdout.split()]
