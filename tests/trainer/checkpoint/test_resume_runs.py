"""Whole runs of `hftitan_trainer`: an interrupted and resumed run has the losses of an uninterrupted one, bit for bit.

Starting a run takes many seconds, so each test checks several things.
"""

from __future__ import annotations

import os
import shutil
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from runs import STEPS, Run, exported, make_home, start, workers_of

from hftitan_api.wire import ExitReport, Progress


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory, tokenizer: Any) -> Path:
    return make_home(tmp_path_factory.mktemp("home"), tokenizer)


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory: pytest.TempPathFactory, home: Path) -> Iterator[Run]:
    run = start(tmp_path_factory.mktemp("runs") / "unbroken", home, ranks=2)
    while not answers(run):  # during the imports
        time.sleep(0.05)
    run.wait_for_step(1)
    run.live = (run.get("/progress"), run.get("/metrics"))  # type: ignore[attr-defined]
    while run.process.poll() is None and not run.lines("end"):
        time.sleep(0.05)
    # After regular scrapes, here every few seconds, the process waits for one more.
    run.last = run.get("/metrics")  # type: ignore[attr-defined]
    assert run.end() == 0, run.log()
    return run


def answers(run: Run) -> bool:
    assert run.process.poll() is None, run.log()
    try:
        return bool(run.get("/metrics"))
    except OSError:
        return False


def card(run: Run) -> str:
    return (run.output / "export" / "README.md").read_text()


def report_and_progress(run: Run) -> tuple[ExitReport, Progress]:
    """Return the exit report without its progress, and the progress."""
    report = run.report()
    assert report.progress is not None
    assert (report.progress.export_path, report.progress.model_revision) == (None, None), "the report has them"
    return report.model_copy(update={"progress": None}), report.progress


def test_a_run_of_two_processes_from_start_to_end(unbroken: Run) -> None:
    report, last = report_and_progress(unbroken)
    assert (last.step, last.loss, last.grad_norm) == (STEPS, *unbroken.losses()[STEPS])
    assert report == ExitReport(
        reason="Completed", message=f"all {STEPS} steps done", step=STEPS, retryable=False, checkpoint_step=STEPS,
        export_path=str(unbroken.output / "export"),
    )  # fmt: skip
    losses = unbroken.losses()
    assert list(losses) == list(range(1, STEPS + 1))
    assert losses[STEPS][0] < losses[1][0] - 1
    assert f"| Loss of the last step | {losses[STEPS][0]:.5f} |" in card(unbroken)
    assert str(unbroken.folder.parent) not in card(unbroken)
    progress, metrics = unbroken.live  # type: ignore[attr-defined]
    seen = Progress.model_validate_json(progress)
    assert (seen.attempt, seen.steps) == (1, STEPS)
    assert seen.step >= 1
    assert 'hftitan_step{job_name="test",job_namespace="default",node_index="0"}' in metrics
    last = unbroken.last  # type: ignore[attr-defined]
    assert f'hftitan_step{{job_name="test",job_namespace="default",node_index="0"}} {STEPS}.0' in last
    stages = unbroken.lines("startup")[0]["seconds"]
    assert list(stages) == ["start", "import", "fetch", "build", "load", "first_step"]
    assert stages["start"] > 0
    assert "hf_thisIsNo" not in unbroken.log()
    # One line for each step, and little else.
    assert len(unbroken.log().splitlines()) < STEPS + 20, unbroken.log()


def test_sigterm_saves_the_last_finished_step_and_a_killed_worker_resumes_from_the_newest_checkpoint(
    tmp_path: Path, home: Path, unbroken: Run
) -> None:
    broken = start(tmp_path / "run", home, ranks=2, restarts=3)
    broken.wait_for_step(5)
    broken.process.send_signal(signal.SIGTERM)
    assert broken.end() != 0
    stopped = max(broken.losses())
    assert 5 <= stopped < STEPS
    report, last = report_and_progress(broken)
    assert (last.step, last.loss) == (stopped, broken.losses()[stopped][0])
    assert report == ExitReport(
        reason="Preempted", message=f"SIGTERM: saved step {stopped} and stopped", step=stopped,
        retryable=True, rank=report.rank, checkpoint_step=stopped,
    )  # fmt: skip
    assert broken.lines("end")[-1]["reason"] == "Preempted"
    assert [p.name for p in (broken.output / "checkpoint").iterdir()] == [f"step-{stopped}"]
    assert not (broken.output / "export").exists()

    resumed = start(tmp_path / "run", home, ranks=2, restarts=1, attempt=2, interval=3)
    resumed.wait_for_step(stopped + 4)
    os.kill(workers_of(resumed)[1], signal.SIGKILL)
    assert resumed.end() == 0, resumed.log()
    lives = resumed.lines("resumed")
    assert lives[0]["step"] == stopped
    assert len(lives) == 2
    assert lives[1]["step"] > stopped
    assert lives[1]["step"] % 3 == 0
    assert resumed.report().reason == "Completed"
    assert resumed.losses() == unbroken.losses()
    for name, weight in exported(unbroken).items():
        assert weight.equal(exported(resumed)[name]), name
    assert card(resumed) == card(unbroken)


def test_a_signal_to_one_rank_stops_all_at_one_step_without_a_restart(tmp_path: Path, home: Path) -> None:
    """As when one pod of several is evicted."""
    run = start(tmp_path / "run", home, ranks=2, restarts=3)
    run.wait_for_step(3)
    os.kill(workers_of(run)[1], signal.SIGTERM)
    assert run.end() != 0
    stopped = max(run.losses())
    report = run.report()
    assert (report.reason, report.step, report.checkpoint_step) == ("Preempted", stopped, stopped)
    assert report.message in (
        f"SIGTERM: saved step {stopped} and stopped",
        f"signal on another rank: saved step {stopped} and stopped",
    )
    assert [line["reason"] for line in run.lines("end")] == ["Preempted"]
    assert len(run.lines("startup")) == 1


def test_one_process_without_torchrun_skips_an_incomplete_checkpoint(tmp_path: Path, home: Path) -> None:
    training = {"steps": 8, "seqLen": 64, "localBatchSize": 2}
    whole = start(
        tmp_path / "whole", home, ranks=1, interval=2, training=training, checkpoint={"interval": 2, "keep": 9}
    )
    assert whole.end() == 0, whole.log()
    shutil.copytree(whole.output, tmp_path / "half/out")
    for line in ("step-8", "step-6/complete.json"):
        path = tmp_path / "half/out/checkpoint" / line
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    half = start(tmp_path / "half", home, ranks=1, attempt=2, training=training, checkpoint={"interval": 2, "keep": 9})
    assert half.end() == 0, half.log()
    assert half.lines("resumed")[-1]["step"] == 4
    assert "step-6: it has no complete.json: the save did not finish" in half.log()
    again = [(line["step"], line["loss"], line["gradNorm"]) for line in half.lines("step") if line["attempt"] == 2]
    assert again == [(step, *values) for step, values in whole.losses().items() if step > 4]
    assert sorted(p.name for p in (half.output / "checkpoint").iterdir()) == ["step-2", "step-4", "step-6", "step-8"]


def test_a_user_error_is_reported_at_once_and_not_restarted(tmp_path: Path, home: Path) -> None:
    run = start(tmp_path / "run", home, ranks=2, restarts=3, dataset={"path": "/nowhere/data.jsonl"})
    assert run.end() != 0
    report = run.report()
    assert (report.reason, report.retryable, report.step) == ("UserError", False, 0)
    assert report.message.startswith("spec.dataset.path: /nowhere/data.jsonl does not exist in this pod")
    assert 1 <= run.log().count("ERROR UserError: spec.dataset.path") <= 2
    assert len(run.lines("end")) <= 1  # one for each start of rank 0


def test_a_signal_before_the_first_step_stops_the_process_at_once(tmp_path: Path, home: Path) -> None:
    run = start(tmp_path / "run", home, ranks=1)
    deadline = time.monotonic() + 60
    while True:
        try:
            assert Progress.model_validate_json(run.get("/progress")).phase == "starting"
            break
        except OSError:
            assert time.monotonic() < deadline, run.log()
            time.sleep(0.05)
    run.process.send_signal(signal.SIGTERM)
    began = time.monotonic()
    assert run.end() == 143
    assert time.monotonic() - began < 5
    report, last = report_and_progress(run)
    assert report == ExitReport(reason="Preempted", message="SIGTERM while starting", retryable=True)
    assert (last.phase, last.step, last.loss) == ("starting", 0, None)
