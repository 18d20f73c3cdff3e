"""Asynchronous checkpoints: a kill during a save keeps the older checkpoint, and SIGTERM waits for a save."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path
from typing import Any

import pytest
from runs import make_home, start

KEY = "0123456789abcdef0123456789abcdef01234567"
SLOW_DISK = """
import os, time
fsync = os.fsync
def slow(descriptor):
    if "step-6/__" in os.readlink(f"/proc/self/fd/{descriptor}"):
        time.sleep(float(os.environ["SLOW_SECONDS"]))
    fsync(descriptor)
os.fsync = slow
"""


def checkpoints(output: Path) -> dict[str, bool]:
    """Return whether each checkpoint is complete, by folder name."""
    return {p.name: (p / "complete.json").exists() for p in sorted((output / "checkpoint").glob("step-*"))}


def tensorboard(folder: Path) -> list[tuple[int, float]]:
    """Return (step, loss) as TensorBoard shows them."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    accumulator = EventAccumulator(str(folder))
    accumulator.Reload()
    return [(event.step, event.value) for event in accumulator.Scalars("train/loss")]


def test_a_kill_during_a_save_and_a_signal_that_waits_for_one(
    tmp_path: Path, tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = make_home(tmp_path / "home", tokenizer)
    (tmp_path / "slow").mkdir()
    (tmp_path / "slow/sitecustomize.py").write_text(SLOW_DISK)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "slow"), prepend=os.pathsep)
    monkeypatch.setenv("SLOW_SECONDS", "600")
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    monkeypatch.setenv("WANDB_MODE", "offline")
    spec = {
        "checkpoint": {"interval": 3, "asyncMode": "async", "keep": 9},
        "monitoring": {"tensorboard": True, "wandbSecret": {"name": "wandb"}},
    }

    killed = start(tmp_path / "run", home, ranks=1, **spec)
    killed.wait_for_step(8)  # two steps after the start of a save that never ends
    killed.process.send_signal(signal.SIGKILL)
    killed.end()
    assert checkpoints(killed.output) == {"step-3": True, "step-6": False}
    assert [line["step"] for line in killed.lines("checkpoint")] == [3, 6]

    monkeypatch.setenv("SLOW_SECONDS", "4")
    stopped = start(tmp_path / "run", home, ranks=1, attempt=2, **spec)
    stopped.wait_for_step(7, attempt=2)
    stopped.process.send_signal(signal.SIGTERM)
    assert stopped.end() == 143, stopped.log()
    assert "step-6: it has no complete.json: the save did not finish" in stopped.log()
    assert [line["step"] for line in stopped.lines("resumed")] == [3]
    last = stopped.report().step
    assert last >= 7  # or a few steps later: training continues until the signal arrives
    assert stopped.report().checkpoint_step == last
    saved = {3, 6, *range(9, last, 3), last}
    assert checkpoints(stopped.output) == {f"step-{step}": True for step in saved}
    steps = {(line["attempt"], line["step"]): (line["loss"], line["gradNorm"]) for line in stopped.lines("step")}
    both = [step for step in range(4, 9) if (1, step) in steps and (2, step) in steps]
    assert both[:4] == [4, 5, 6, 7]
    assert [steps[1, step] for step in both] == [steps[2, step] for step in both]
    written = json.loads((stopped.output / "checkpoint/step-6/complete.json").read_text())
    assert written["attempt"] == 2

    # TensorBoard shows one run, without the killed attempt's steps after the checkpoint. W&B has two files.
    shown = tensorboard(stopped.output / "tensorboard")
    assert [step for step, _ in shown] == list(range(1, last + 1))
    assert [loss for _, loss in shown] == pytest.approx([steps[1 if s < 4 else 2, s][0] for s in range(1, last + 1)])
    assert len(list((stopped.output / "wandb").glob("offline-run-*/run-uid.wandb"))) == 2
    for path in [p for p in (tmp_path / "run").rglob("*") if p.is_file()]:
        assert KEY.encode() not in path.read_bytes(), path
