"""The process that a pod starts: torchrun, with SIGTERM handled from the first moment.

torchrun handles SIGTERM only while its ranks run. A container's first process (PID 1) has no default action for it, and
torchrun's main thread waits in C++ code during the rendezvous. So a gang that waits for a missing pod would keep its
GPUs for the whole grace period after it was deleted. Here the C-level signal handler wakes a thread
(signal.set_wakeup_fd), and the thread ends the process if no rank runs. While ranks run, torchrun stops them.
"""

from __future__ import annotations

import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from hftitan_api.wire import ENV_TERMINATION_LOG, ExitReport
from hftitan_trainer.process.report import Reporter
from hftitan_trainer.process.signals import EXIT_PREEMPTED, SIGNALS, live_children

POLL_SECONDS = 0.1
AFTER_RANKS_SECONDS = 2.0
"""Time for torchrun to exit by itself after the last rank has exited."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Run torchrun with the arguments of this process."""
    _handle_signals()
    from torch.distributed.run import main as torchrun  # takes seconds

    torchrun(sys.argv[1:] if arguments is None else list(arguments))


def _handle_signals() -> None:
    reader, writer = socket.socketpair()
    writer.setblocking(False)
    for number in SIGNALS:
        signal.signal(number, _no_rank_yet)
    signal.set_wakeup_fd(writer.fileno(), warn_on_full_buffer=False)
    # The thread keeps the writer open.
    threading.Thread(target=_watch, args=(reader, writer), name="hftitan-signals", daemon=True).start()


def _no_rank_yet(number: int, frame: object) -> None:
    """The handler until torchrun starts ranks and installs its own."""


def _watch(reader: socket.socket, writer: socket.socket) -> None:
    while data := reader.recv(64):
        number = next((n for n in data if n in SIGNALS), None)
        if number is not None:
            _wait_for_ranks(number)
            _exit(signal.Signals(number).name)


def _wait_for_ranks(number: int) -> None:
    """Return when no rank runs and torchrun does not react to the signal."""
    last_seen = time.monotonic() - AFTER_RANKS_SECONDS if signal.getsignal(number) is _no_rank_yet else time.monotonic()
    while time.monotonic() < last_seen + AFTER_RANKS_SECONDS:
        if live_children(os.getpid()) != 0:  # None: unknown
            last_seen = time.monotonic()
        time.sleep(POLL_SECONDS)


def _exit(name: str) -> NoReturn:
    log = os.environ.get(ENV_TERMINATION_LOG)
    reporter = Reporter(Path(log) if log else None)
    report = reporter.read()
    if report is None:
        message = f"{name} while no rank was running"
        reporter.write(ExitReport(reason="Preempted", retryable=True, message=message))
    print(f"hftitan-agent: {name}: no rank is running, exiting", file=sys.stderr, flush=True)
    # All ranks of this pod may be done while torchrun waits for those of other pods.
    os._exit(0 if report is not None and report.reason == "Completed" else EXIT_PREEMPTED)


if __name__ == "__main__":
    main()
