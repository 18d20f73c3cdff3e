"""The process that a pod starts: torchrun, with SIGTERM handled from the first moment.

torchrun handles SIGTERM only while its ranks run. A container's first process (PID 1) has no default action for it, and
torchrun's main thread waits in C++ code during the rendezvous. So a gang that waits for a missing pod would keep its
GPUs for the whole grace period after it was deleted. Here a thread gets the signal (signals.watch), and ends
the process if no rank runs. While ranks run, torchrun stops them.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from hftitan_api.wire import ENV_TERMINATION_LOG, ExitReport
from hftitan_trainer.process.report import Reporter
from hftitan_trainer.process.signals import EXIT_PREEMPTED, ignored, live_children, watch

POLL_SECONDS = 0.1
AFTER_RANKS_SECONDS = 2.0
"""Time for torchrun to exit by itself after the last rank has exited."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Run torchrun with the arguments of this process."""
    watch(_stop)
    from torch.distributed.run import main as torchrun  # takes seconds

    torchrun(sys.argv[1:] if arguments is None else list(arguments))


def _stop(number: signal.Signals) -> NoReturn:
    _wait_for_ranks(number)
    _exit(number.name)


def _wait_for_ranks(number: signal.Signals) -> None:
    """Return when no rank runs and torchrun does not react to the signal."""
    if signal.getsignal(number) is ignored:  # torchrun installs its own handler when it starts ranks
        return
    last_seen = time.monotonic()
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
