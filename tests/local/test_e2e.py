"""`hftitan run` with the real trainer: two nodes of one CPU process each, and a generated tiny model.

Starting torch takes most of the time, so all tests here share a few runs.
"""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import report_page
import yaml
from tiny import make_model, make_text

from hftitan_operator.local import store

STEPS, INTERVAL = 60, 10


class Runs:
    """Starts `hftitan run -o json` on the tiny job, each time in a new work folder."""

    def __init__(self, folder):
        self.folder = folder
        make_model(folder / "model")
        make_text(folder / "text.jsonl")
        job = {
            "apiVersion": "hftitan.io/v1alpha1",
            "kind": "HFTitanJob",
            "metadata": {"name": "tiny"},
            "spec": {
                "model": {"name": str(folder / "model")},
                "dataset": {"path": str(folder / "text.jsonl")},
                "mesh": {"nodes": 2, "device": "cpu"},
                "training": {"steps": STEPS, "seqLen": 128},
                "optimizer": {"lr": 1e-3},
                "checkpoint": {"interval": INTERVAL, "keep": 10},
            },
        }
        (folder / "job.yaml").write_text(yaml.safe_dump(job))

    def start(self, name):
        command = "from hftitan_operator.cli.main import main; main()"
        return subprocess.Popen(
            [sys.executable, "-c", command, "run", "job.yaml", "--workdir", name, "-o", "json"],
            cwd=self.folder,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"},
        )

    def finish(self, process, timeout=240):
        try:
            out, err = process.communicate(timeout=timeout)
        except subprocess.TimeoutExpired:
            process.kill()
            raise
        assert "Traceback" not in err
        return [json.loads(line) for line in out.splitlines()], process.returncode

    def rows(self, name, kind="step"):
        path = self.folder / name / "metrics.jsonl"
        if not path.exists():
            return []
        whole = path.read_text().rpartition("\n")[0]
        return [row for line in whole.splitlines() if (row := json.loads(line))["kind"] == kind]

    def losses(self, name):
        """Return step -> loss. If a step ran twice, the later loss counts."""
        return {row["step"]: row["loss"] for row in self.rows(name)}

    def until(self, name, step):
        """Wait until the first attempt has finished a step."""
        deadline = time.monotonic() + 180
        while time.monotonic() < deadline:
            for row in self.rows(name):
                if row["step"] >= step:
                    return
            time.sleep(0.005)
        logs = {path.name: path.read_text()[-2000:] for path in (self.folder / name / "logs").rglob("*.log")}
        raise AssertionError(f"{name}: step {step} was not reached: {logs}")

    def agent(self, name, pod):
        """Return the process id of a pod's torchrun."""
        return int((self.folder / name / ".pods" / pod / "pid").read_text())

    def worker(self, name, pod):
        """Return the process id of the trainer that a pod's torchrun started."""
        agent = self.agent(name, pod)
        for entry in Path("/proc").iterdir():
            if entry.name.isdigit():
                try:
                    parent = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
                except OSError:
                    continue
                if parent == agent and b"hftitan_trainer" in (entry / "cmdline").read_bytes():
                    return int(entry.name)
        raise AssertionError(f"pod {pod} has no worker")

    def leftovers(self, name):
        return store.tagged("HFTITAN_LOCAL_WORKDIR", str(self.folder / name))


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    runs = Runs(tmp_path_factory.mktemp("e2e"))
    yield runs
    for name in ("whole", "worker", "pod", "stopped"):
        store.kill_tagged("HFTITAN_LOCAL_WORKDIR", str(runs.folder / name))


@pytest.fixture(scope="module")
def whole(runs):
    """The uninterrupted run, with which the others are compared."""
    lines, code = runs.finish(runs.start("whole"))
    assert code == 0, lines[-1]
    return lines


@pytest.fixture(scope="module")
def pod_killed(runs):
    """Run `pod`: kill -9 of node 1's torchrun between two checkpoints."""
    process = runs.start("pod")
    runs.until("pod", INTERVAL + 3)
    os.kill(runs.agent("pod", "tiny-1-1"), signal.SIGKILL)
    return runs.finish(process)


@pytest.fixture(scope="module")
def stopped(runs):
    """Run `stopped`: SIGTERM to the whole run, then the same command again."""
    process = runs.start("stopped")
    runs.until("stopped", INTERVAL + 3)
    process.send_signal(signal.SIGTERM)
    first = runs.finish(process)
    left = runs.leftovers("stopped")
    return first, left, runs.finish(runs.start("stopped"))


def same(losses, reference):
    assert losses == pytest.approx(reference, rel=1e-6)


def test_two_node_job_succeeds(runs, whole):
    end = whole[-1]
    assert (end["phase"], end["reason"], end["step"], end["restarts"]) == ("Succeeded", "Completed", STEPS, 0)
    phases = [line["phase"] for line in whole if line["type"] == "phase"]
    assert phases == ["Pending", "Starting", "Running", "Succeeded"]
    losses = runs.losses("whole")
    assert list(losses) == list(range(1, STEPS + 1))
    assert losses[STEPS] < losses[1] - 1
    assert runs.leftovers("whole") == []


def test_json_output_has_every_step_with_all_metrics(runs, whole):
    steps = [line for line in whole if line["type"] == "step"]
    assert [line["step"] for line in steps] == list(range(1, STEPS + 1))
    assert {"loss", "gradNorm", "lr", "tokensPerSecond", "stepSeconds", "attempt", "time"} <= steps[-1].keys()
    assert {line["step"]: line["loss"] for line in steps} == runs.losses("whole")


def test_work_folder_has_export_checkpoint_and_rank_logs(runs, whole):
    folder = runs.folder / "whole"
    assert {path.name for path in (folder / "export").iterdir()} >= {
        "config.json",
        "model.safetensors",
        "tokenizer.json",
    }
    assert (folder / "checkpoint" / f"step-{STEPS}").is_dir()
    # Ranks follow the order of the nodes, so each rank's log is in the folder of its pod.
    for index in (0, 1):
        assert [path.name for path in (folder / "logs" / f"tiny-1-{index}").iterdir()] == [f"rank{index}.log"]


def test_killed_worker_restarts_in_place(runs, whole):
    process = runs.start("worker")
    runs.until("worker", INTERVAL + 3)
    os.kill(runs.worker("worker", "tiny-1-1"), signal.SIGKILL)
    lines, code = runs.finish(process)
    assert code == 0
    assert (lines[-1]["attempt"], lines[-1]["restarts"]) == (1, 0)
    same(runs.losses("worker"), runs.losses("whole"))
    again = [row["step"] for row in runs.rows("worker")]
    assert again.count(INTERVAL + 1) == 2  # lost, and repeated from the checkpoint
    assert again.count(INTERVAL) == 1
    assert "--- restarted in place ---" in (runs.folder / "worker/logs/tiny-1-0/rank0.log").read_text()


def test_killed_pod_starts_a_second_attempt(runs, whole, pod_killed):
    lines, code = pod_killed
    assert code == 0
    assert (lines[-1]["attempt"], lines[-1]["restarts"]) == (2, 1)
    second = [row["step"] for row in runs.rows("pod") if row["attempt"] == 2]
    assert second[0] % INTERVAL == 1
    assert second[0] > 1  # resumed from the newest checkpoint, not from the beginning
    assert second == list(range(second[0], STEPS + 1))
    assert runs.leftovers("pod") == []


def test_losses_after_a_restart_equal_those_of_an_uninterrupted_run(runs, whole, pod_killed):
    same(runs.losses("pod"), runs.losses("whole"))


def test_sigterm_saves_a_checkpoint_of_the_last_finished_step(runs, stopped):
    (lines, code), left, _ = stopped
    end = lines[-1]
    assert code == 143
    assert (end["phase"], end["reason"]) == ("Suspended", "Preempted")
    finished = max(row["step"] for row in runs.rows("stopped") if row["attempt"] == 1)
    assert end["step"] == end["checkpointStep"] == finished < STEPS
    assert left == []


def test_second_run_resumes_from_the_checkpoint(runs, whole, stopped):
    (first, _), _, (lines, code) = stopped
    assert code == 0
    assert (lines[-1]["attempt"], lines[-1]["step"]) == (2, STEPS)
    second = [row["step"] for row in runs.rows("stopped") if row["attempt"] == 2]
    assert second == list(range(first[-1]["checkpointStep"] + 1, STEPS + 1))
    same(runs.losses("stopped"), runs.losses("whole"))


def test_report_of_two_attempts_renders_in_a_browser(runs, stopped):
    expected = [
        "Loss",
        "Gradient norm",
        "Learning rate",
        "Throughput",
        "Step time",
        "Peak memory",
    ]
    saved = {row["step"] for row in runs.rows("stopped", "checkpoint")}
    for (width, scheme), shown in report_page.look(runs.folder / "stopped").items():
        report_page.good(shown, width, scheme)
        assert shown["titles"] == expected
        assert shown["curves"] == [1] * len(expected)
        assert shown["marks"] == [len(saved) + 1] * len(expected), (
            "a mark for each checkpoint and for the second attempt"
        )
