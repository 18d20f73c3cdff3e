"""Handles SIGTERM and SIGINT: stops at a step boundary, or at once if there is nothing to save.

Python runs signal handlers only between bytecodes of the main thread, and the main thread may wait minutes in a
rendezvous or a collective. So the C-level handler wakes a thread (signal.set_wakeup_fd), and that thread acts.

Before and after the training loop there is nothing to save, so the process exits at once. In the loop the thread only
records the stop request. The ranks agree on it after a step (Observer.stop_requested), since only one pod may get the
signal.
"""

from __future__ import annotations

import logging
import os
import signal
import socket
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path

logger = logging.getLogger(__name__)

EXIT_PREEMPTED = 143
"""Exit code of a trainer stopped by a signal, as in a shell (128 + SIGTERM). If it were 0, Kubernetes would count the
pod as Succeeded."""

SIGNALS = (signal.SIGTERM, signal.SIGINT)
SETTLE_SECONDS = 0.5
"""Wait before exit. A stopped agent signals its workers one after the other. No worker exits before all have the
signal, so a missing worker was gone before the signal."""


def watch(received: Callable[[signal.Signals], None]) -> None:
    """Call `received` in a thread for each SIGTERM and SIGINT, also after other Python handlers were installed.

    Call it in the main thread.
    """
    reader, writer = socket.socketpair()
    writer.setblocking(False)
    for number in SIGNALS:
        signal.signal(number, ignored)
    signal.set_wakeup_fd(writer.fileno(), warn_on_full_buffer=False)
    threading.Thread(target=_read, args=(reader, writer, received), name="hftitan-signals", daemon=True).start()


def ignored(number: int, frame: object) -> None:
    """The Python handler that `watch` installs: only the C-level handler acts."""


def _read(reader: socket.socket, writer: socket.socket, received: Callable[[signal.Signals], None]) -> None:
    """Pass on each signal. `writer` is an argument so that it stays open."""
    while data := reader.recv(64):
        number = next((n for n in data if n in SIGNALS), None)
        if number is not None:
            received(signal.Signals(number))


class StopFlag:
    """Records whether this process was asked to stop.

    If the signal comes outside the training loop, the signal thread calls `on_stop(signal_name, lost_sibling)`, which
    writes the report. The process then exits with EXIT_PREEMPTED.
    """

    def __init__(self, on_stop: Callable[[str, bool], None] | None = None) -> None:
        self._asked = threading.Event()
        self._lock = threading.Lock()
        self._training = False
        self._on_stop = on_stop
        self.signal_name = ""

    def __call__(self) -> bool:
        return self._asked.is_set()

    def install(self) -> None:
        """Handle SIGTERM and SIGINT. Call it in the main thread."""
        watch(self._received)

    def training(self, on: bool) -> None:
        """Set whether the training loop runs; while it runs, a signal takes effect at the next step boundary."""
        with self._lock:
            self._training = on

    def _received(self, number: signal.Signals) -> None:
        if not self._asked.is_set():
            self.signal_name = number.name
            self._react(siblings_lost())
        elif number == signal.SIGINT:
            os._exit(128 + signal.SIGINT)  # a second Ctrl-C exits at once

    def _react(self, lost_sibling: bool) -> None:
        with self._lock:
            self._asked.set()
            if self._training:
                logger.warning("%s: stopping after this step", self.signal_name)
                return
        time.sleep(SETTLE_SECONDS)
        with self._lock:
            if self._training:  # the loop has started: it sees the flag after its first step
                return
            if self._on_stop is not None:
                self._on_stop(self.signal_name, lost_sibling)
            os._exit(EXIT_PREEMPTED)


def stop_agent(env: Mapping[str, str] | None = None) -> None:
    """Stop the torchrun agent of this worker, if there is one.

    torchrun restarts its workers whatever their exit code is. Stop it if a restart would fail the same way, or if all
    ranks agreed to stop although only one pod got the signal.
    """
    env = os.environ if env is None else env
    if "TORCHELASTIC_RUN_ID" in env:
        try:
            os.kill(os.getppid(), signal.SIGTERM)
        except ProcessLookupError:
            return


def siblings_lost(env: Mapping[str, str] | None = None, proc: Path = Path("/proc")) -> bool:
    """Return whether a worker of this torchrun agent is gone: then a SIGTERM is torchrun's clean-up, not a
    preemption."""
    env = os.environ if env is None else env
    expected = int(env.get("LOCAL_WORLD_SIZE", "1"))
    if "TORCHELASTIC_RUN_ID" not in env or expected < 2:
        return False
    children = live_children(os.getppid(), proc)
    return children is not None and children < expected


def live_children(parent: int, proc: Path) -> int | None:
    """Return the number of `parent`'s children that are not zombies; None if /proc cannot be read."""
    count = 0
    try:
        for entry in proc.iterdir():
            if not entry.name.isdigit():
                continue
            try:
                # pid (comm) state ppid ...; comm may hold spaces and brackets
                state, ppid = (entry / "stat").read_text().rpartition(")")[2].split()[:2]
            except (OSError, ValueError):
                continue
            count += int(ppid) == parent and state not in "ZX"
    except OSError:
        return None
    return count
