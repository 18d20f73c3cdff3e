"""The operator as a child process of the tests, which can kill, freeze and restart it.

`OperatorProcess` runs the command `hftitan operator`. `QuickOperator` runs the same code, forked from a process that
has already imported it. This saves a second per start for tests that restart the operator hundreds of times.
"""

from __future__ import annotations

import logging
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import urllib.error
import urllib.request
from collections.abc import Sequence
from pathlib import Path

from control_plane import die_with_parent, free_ports
from kubectl import wait

READY_SECONDS = 30.0


COMMAND = (sys.executable, "-m", "hftitan_operator.cli", "operator")


class OperatorProcess:
    def __init__(self, kubeconfig: Path, log: Path, *options: str, command: Sequence[str] = COMMAND) -> None:
        """`options`: as on the command line, for example `--namespace team`."""
        self.kubeconfig, self.log, self.options, self.command = kubeconfig, log, options, command
        self.port = free_ports(1)[0]
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> OperatorProcess:
        """Start the process, without waiting."""
        assert not self.alive
        words = ["--kubeconfig", str(self.kubeconfig), "--host", "127.0.0.1", "--port", str(self.port), *self.options]
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                [*self.command, *words],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env={**os.environ, "NO_PROXY": "127.0.0.1"},
                start_new_session=True,
                preexec_fn=die_with_parent,
            )
        return self

    @property
    def alive(self) -> bool:
        return self._process is not None and self._process.poll() is None

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    def wait_ready(self) -> None:
        wait(self._is_ready, f"the operator to be ready (see {self.log})", READY_SECONDS)

    def _is_ready(self) -> bool:
        assert self.alive, f"the operator exited:\n{self.log.read_text()[-3000:]}"
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.port}/readyz", timeout=1) as answer:
                return bool(answer.status == 200)
        except OSError:
            return False

    def kill(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()

    def terminate(self) -> None:
        """Send SIGTERM, without waiting."""
        assert self._process is not None
        self._process.terminate()

    def freeze(self) -> None:
        assert self._process is not None
        self._process.send_signal(signal.SIGSTOP)

    def thaw(self) -> None:
        assert self._process is not None
        self._process.send_signal(signal.SIGCONT)

    def ended(self, timeout: float) -> int:
        """Wait for the end of the process and return its exit code."""
        assert self._process is not None
        return self._process.wait(timeout)


_FORKSERVER = multiprocessing.get_context("forkserver")
_FORKSERVER.set_forkserver_preload(["hftitan_operator.kube.operator"])


class QuickOperator:
    """The operator without /metrics and /readyz. `with` starts and kills it."""

    def __init__(
        self, kubeconfig: Path, log: Path, *namespaces: str, leader_elect: bool = False, silence: float | None = None
    ) -> None:
        """`leader_elect`: use a Lease in the first namespace. `silence`: see reflector.Timing."""
        lease = namespaces[0] if leader_elect else None
        self._arguments = (str(kubeconfig), str(log), namespaces, lease, silence)
        self._process: multiprocessing.process.BaseProcess | None = None
        self._lock = threading.RLock()
        """A proxy's thread may call kill() before start() has returned."""

    def start(self) -> QuickOperator:
        with self._lock:
            assert not self.alive
            self._process = _FORKSERVER.Process(target=_operate, args=self._arguments, daemon=True)
            self._process.start()
            return self

    def __enter__(self) -> QuickOperator:
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.kill()

    @property
    def alive(self) -> bool:
        with self._lock:
            return self._process is not None and self._process.is_alive()

    def kill(self) -> None:
        with self._lock:
            if self._process is not None:
                self._process.kill()
                self._process.join()


def _operate(kubeconfig: str, log: str, namespaces: tuple[str, ...], lease: str | None, silence: float | None) -> None:
    from hftitan_operator.kube import operator

    threading.Thread(target=_end_with_the_test, daemon=True).start()
    os.environ["NO_PROXY"] = "127.0.0.1"
    output = os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    os.dup2(output, 1)
    os.dup2(output, 2)
    logging.root.handlers.clear()
    elect = {"leader_elect": lease is not None, "lease_namespace": lease}
    timing = operator.Timing() if silence is None else operator.Timing(silence=silence)
    operator.main(operator.Options(namespaces=namespaces, kubeconfig=kubeconfig, port=0, timing=timing, **elect))


def _end_with_the_test() -> None:
    """Exit with the test process. PR_SET_PDEATHSIG would wait for the forkserver, which outlives a killed test run."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)
