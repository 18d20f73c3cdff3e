"""One local pod: its supervisor process, and its state as Kubernetes would report it."""

from __future__ import annotations

import asyncio
import contextlib
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from hftitan_api.wire import TERMINATION_LOG_LIMIT, ExitReport
from hftitan_operator.core.state import PodView
from hftitan_operator.local import supervise
from hftitan_operator.local.machine import Place
from hftitan_operator.local.pod import Launch
from hftitan_operator.local.store import kill_tagged

TAG = "HFTITAN_LOCAL_POD"


class LocalPod:
    """A pod that runs as a process. The constructor starts it; `changed` is called when it ends."""

    def __init__(
        self, name: str, attempt: int, index: int, place: Place, launch: Launch, log: Path, changed: Callable[[], None]
    ) -> None:
        self.name, self.attempt, self.index, self.place, self.launch, self.log = (
            name,
            attempt,
            index,
            place,
            launch,
            log,
        )
        self.started_at = time.time()
        self.deletion_deadline: float | None = None
        self.killed = False
        self.ended: PodView | None = None
        self.pid: int | None = None
        """Process id of the pod's command; None until the supervisor has printed it."""
        self._changed = changed
        for folder in launch.folders:
            folder.mkdir(parents=True, exist_ok=True)
        log.parent.mkdir(parents=True, exist_ok=True)
        launch.termination_log.unlink(missing_ok=True)
        (launch.cwd / "pid").unlink(missing_ok=True)
        command = [sys.executable, "-I", "-S", supervise.__file__, str(log), *launch.argv]
        self._process = subprocess.Popen(
            command,
            env=launch.env,
            cwd=launch.cwd,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        self._loop = asyncio.get_running_loop()
        assert self._process.stdout is not None
        os.set_blocking(self._process.stdout.fileno(), False)
        self._loop.add_reader(self._process.stdout.fileno(), self._readable)

    @property
    def alive(self) -> bool:
        return self.ended is None

    def _readable(self) -> None:
        """Read the process id that the supervisor prints. The end of the pipe means that the supervisor exited."""
        assert self._process.stdout is not None
        try:
            data = os.read(self._process.stdout.fileno(), 4096)
        except BlockingIOError:
            return
        if data.startswith(b"pid "):
            self.pid = int(data.split()[1])
            (self.launch.cwd / "pid").write_text(f"{self.pid}\n", encoding="utf-8")
        elif not data:
            self._end()

    def _end(self) -> None:
        if self.ended is not None:
            return
        assert self._process.stdout is not None
        assert self._process.stdin is not None
        self._loop.remove_reader(self._process.stdout.fileno())
        self._process.stdout.close()
        code = self._process.wait()
        with contextlib.suppress(BrokenPipeError):  # the supervisor exited before it read everything
            self._process.stdin.close()
        if code < 0:
            # The supervisor itself was killed, and with it only its direct child.
            kill_tagged(TAG, self.place.uid)
            code = 128 - code
        self.ended = PodView(
            name=self.name,
            uid=self.place.uid,
            attempt=self.attempt,
            index=self.index,
            phase="Succeeded" if code == 0 else "Failed",
            deleting=self.deletion_deadline is not None,
            node="localhost",
            created_at=self.started_at,
            started_at=self.started_at,
            exit_code=code,
            reason="Completed" if code == 0 else "Error",
            report=read_report(self.launch.termination_log),
        )
        self._changed()

    def view(self) -> PodView:
        """Return the state for the core."""
        if self.ended is not None:
            return self.ended
        return PodView(
            name=self.name,
            uid=self.place.uid,
            attempt=self.attempt,
            index=self.index,
            phase="Running",
            ready=self.deletion_deadline is None,
            deleting=self.deletion_deadline is not None,
            deletion_deadline=self.deletion_deadline,
            node="localhost",
            created_at=self.started_at,
            started_at=self.started_at,
        )

    def stop(self, grace: float | None = None) -> None:
        """Send SIGTERM, and SIGKILL to the whole tree after the grace period. A second call can only shorten it."""
        grace = self.launch.grace_seconds if grace is None else grace
        deadline = time.time() + grace
        if not self.alive or (self.deletion_deadline is not None and self.deletion_deadline <= deadline):
            return
        self.deletion_deadline = deadline
        self._send("kill" if grace <= 0 else f"stop {grace}")

    def close(self) -> None:
        """Kill the pod and wait until it has ended."""
        if self.alive:
            self._send("kill")
            try:
                self._process.wait(timeout=15)
            except subprocess.TimeoutExpired:
                self._process.kill()
            self._end()

    def _send(self, line: str) -> None:
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(line.encode() + b"\n")
            self._process.stdin.flush()
        except (BrokenPipeError, ValueError):
            pass  # The supervisor has just exited; `_readable` handles its end.


def read_report(path: Path) -> ExitReport | None:
    """Return the exit report in the termination log; None if it is missing or invalid."""
    try:
        with path.open("rb") as file:
            return ExitReport.model_validate_json(file.read(TERMINATION_LOG_LIMIT))
    except (OSError, ValueError):
        return None
