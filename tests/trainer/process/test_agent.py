"""The process of a pod as PID 1 of a PID namespace: it ends on SIGTERM while it waits for a pod that never comes."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from hftitan_api.wire import ENV_TERMINATION_LOG, ExitReport
from hftitan_trainer.process.report import Reporter, parse

ENDED_SECONDS = 5.0
"""The limit that users notice: the GPUs are free again."""


def children(pid: int) -> list[int]:
    return [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


class Pod:
    """Node 0 of two. Its rendezvous waits for node 1."""

    def __init__(self, folder: Path, *arguments: str) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        self.termination = folder / "termination"
        self.log = folder / "log"
        unshare = ["unshare", "--pid", "--fork", "--kill-child", "--mount-proc"]
        if os.geteuid():
            unshare += ["--user", "--map-root-user"]
        command = [
            *unshare, sys.executable, "-m", "hftitan_trainer.process.agent",
            "--rdzv-backend=c10d", f"--rdzv-endpoint=127.0.0.1:{self.port}", "--rdzv-id=x",
            "--rdzv-conf=is_host=true,join_timeout=600,read_timeout=600", "--local-addr=127.0.0.1", *arguments,
        ]  # fmt: skip
        with self.log.open("w") as log:
            environ = {**os.environ, ENV_TERMINATION_LOG: str(self.termination), "CUDA_VISIBLE_DEVICES": ""}
            self.outer = subprocess.Popen(command, env=environ, stdout=log, stderr=log)

    def until(self, condition: object) -> None:
        deadline = time.monotonic() + 60
        while not condition():  # type: ignore[operator]
            assert self.outer.poll() is None, self.log.read_text()
            assert time.monotonic() < deadline, self.log.read_text()
            time.sleep(0.05)

    @property
    def first(self) -> int:
        """The process that is PID 1 inside."""
        self.until(lambda: children(self.outer.pid))
        return children(self.outer.pid)[0]

    def listening(self) -> bool:
        with socket.socket() as probe:
            return probe.connect_ex(("127.0.0.1", self.port)) == 0

    def stop(self) -> tuple[int, float]:
        """Send SIGTERM; return the exit code and the seconds until the end."""
        began = time.monotonic()
        os.kill(self.first, signal.SIGTERM)
        return self.outer.wait(60), time.monotonic() - began


@pytest.fixture
def pod(tmp_path: Path) -> Iterator[object]:
    assert shutil.which("unshare"), "util-linux"
    started: list[Pod] = []

    def start(*arguments: str) -> Pod:
        started.append(Pod(tmp_path, *arguments))
        return started[-1]

    yield start
    for each in started:
        each.outer.kill()
        each.outer.wait()


def test_sigterm_in_the_rendezvous_ends_the_first_process_of_a_container(pod) -> None:
    waiting = pod("--nnodes=2", "--nproc-per-node=1", "-m", "hftitan_trainer")
    waiting.until(waiting.listening)
    time.sleep(1)  # now its main thread waits in C++ code for the other node
    code, seconds = waiting.stop()
    assert (code, seconds < ENDED_SECONDS) == (143, True), (seconds, waiting.log.read_text())
    report = parse(waiting.termination.read_bytes())
    assert report == ExitReport(reason="Preempted", retryable=True, message="SIGTERM while no rank was running")


def test_sigterm_during_the_import_of_torch(pod) -> None:
    starting = pod("--nnodes=2", "--nproc-per-node=1", "-m", "hftitan_trainer")
    starting.until(lambda: int(_caught(starting.first), 16) >> (signal.SIGTERM - 1) & 1)
    code, seconds = starting.stop()
    assert (code, seconds < ENDED_SECONDS) == (143, True), (seconds, starting.log.read_text())


def test_torchrun_stops_ranks_that_run_and_their_report_stays(pod, tmp_path: Path) -> None:
    rank = tmp_path / "rank.py"
    rank.write_text(
        "import os, signal, sys, time\n"
        "from pathlib import Path\n"
        "from hftitan_api.wire import ExitReport\n"
        "from hftitan_trainer.process.report import Reporter\n"
        "def save(*_):\n"
        "    time.sleep(3)\n"
        f"    Reporter(Path(os.environ['{ENV_TERMINATION_LOG}'])).write(\n"
        "        ExitReport(reason='Preempted', retryable=True, message='saved', checkpoint_step=7))\n"
        "    os._exit(143)\n"
        "signal.signal(signal.SIGTERM, save)\n"
        f"Path({str(tmp_path / 'ready')!r}).touch()\n"
        "time.sleep(600)\n"
    )
    running = pod("--nnodes=1", "--nproc-per-node=2", "--shutdown-timeout=60", str(rank))
    running.until((tmp_path / "ready").exists)
    time.sleep(0.5)
    code, seconds = running.stop()
    assert code != 0
    assert seconds >= 3, "the ranks save first"
    report = Reporter(running.termination).read()
    assert report is not None
    assert (report.message, report.checkpoint_step) == ("saved", 7)


def _caught(pid: int) -> str:
    status = Path(f"/proc/{pid}/status").read_text()
    return status.split("SigCgt:")[1].split()[0]
