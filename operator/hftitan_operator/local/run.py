"""`hftitan run`: runs one job on this machine, from its first pod to its exit code.

Like the operator, the loop calls `step` until the job is terminal. It adds what a user at a terminal needs: signals,
each step as it happens, and the last log lines of the rank that failed.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import signal
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from hftitan_api import mesh
from hftitan_api.mesh import MeshPlan
from hftitan_api.models import TERMINAL, HFTitanJob
from hftitan_api.wire import Progress
from hftitan_operator.core.lifecycle import classify
from hftitan_operator.core.rendering import sizing
from hftitan_operator.core.state import Event, PodView
from hftitan_operator.local.cluster import LocalCluster
from hftitan_operator.local.machine import Machine, Refused
from hftitan_operator.local.prepare import Prepared
from hftitan_operator.port import Conflict
from hftitan_operator.step import step

IDLE_SECONDS = 0.5
"""Longest wait between two reads of a run's files."""
FAULTS_IN_A_ROW = 5
TAIL_LINES = 25

EXIT_OK, EXIT_FAILED, EXIT_BAD_INPUT = 0, 1, 2


@dataclass(frozen=True, slots=True)
class End:
    """The result of a run, for every kind of output."""

    phase: str
    exit_code: int
    message: str
    reason: str | None
    """From the exit report of the pod that decided the end."""
    step: int
    steps: int
    attempt: int
    restarts: int
    seconds: float
    checkpoint_step: int | None
    export_path: str | None
    log: Path | None
    """Log of the rank that failed first, if the job failed."""
    log_tail: tuple[str, ...]


class Reporter(Protocol):
    """An output format for a run. Called from the loop; must not block."""

    def note(self, text: str) -> None:
        """Print a choice that was made for the user."""

    def event(self, event: Event) -> None: ...

    def phase(self, job: HFTitanJob) -> None:
        """Report a new phase or attempt."""

    def record(self, record: dict[str, Any]) -> None:
        """Report one line of metrics.jsonl: `kind: step`, or another kind."""

    def progress(self, job: HFTitanJob, progress: Progress | None) -> None:
        """Report the progress, which may be unchanged."""

    def end(self, end: End) -> None: ...


class MetricsTail:
    """Reads the lines that are appended to metrics.jsonl after construction."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._offset = path.stat().st_size if path.exists() else 0

    def read(self) -> Iterator[dict[str, Any]]:
        """Yield the objects of complete new lines; skip lines that are not JSON objects."""
        try:
            with self._path.open("rb") as file:
                if file.seek(0, 2) < self._offset:
                    self._offset = 0  # The file was replaced.
                file.seek(self._offset)
                data = file.read()
        except FileNotFoundError:
            return
        complete = data[: data.rfind(b"\n") + 1]
        self._offset += len(complete)
        for line in complete.splitlines():
            with contextlib.suppress(ValueError):
                record = json.loads(line)
                if isinstance(record, dict):
                    yield record


def run(prepared: Prepared, reporter: Reporter) -> int:
    """Run the job to its end and return the exit code. Raises `Busy` if another run holds the work folder."""
    return asyncio.run(_drive(prepared, reporter))


async def _drive(prepared: Prepared, reporter: Reporter) -> int:
    for note in prepared.notes:
        reporter.note(note)
    started = time.monotonic()
    workdir = prepared.machine.workdir
    try:
        workdir.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ValueError(f"work folder {workdir}: {error.strerror}; give another with --workdir") from error
    tail = MetricsTail(workdir / "metrics.jsonl")

    def report_event(event: Event) -> None:
        if event.reason != "Suspended" or interrupt.signal is None:  # the note about the signal replaces it
            reporter.event(event)

    async with LocalCluster(prepared.job, prepared.machine, report_event) as cluster:
        interrupt = _Interrupt(cluster, reporter)
        job = await _until_the_end(cluster, reporter, tail, interrupt)
        end = summary(job, cluster, interrupt.signal, time.monotonic() - started)
    reporter.end(end)
    return end.exit_code


class _Interrupt:
    """Signal handler: the first signal suspends the job, so that its ranks save a checkpoint; the second kills it."""

    def __init__(self, cluster: LocalCluster, reporter: Reporter) -> None:
        self.signal: signal.Signals | None = None
        self._cluster, self._reporter = cluster, reporter
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            loop.add_signal_handler(number, self._caught, number)

    def _caught(self, number: signal.Signals) -> None:
        if self.signal is None:
            self.signal = number
            self._reporter.note(f"{number.name}: saving a checkpoint and stopping; repeat to kill")
            self._cluster.suspend()
        else:
            self._reporter.note(f"{number.name} again: killing")
            self._cluster.kill()


async def _until_the_end(
    cluster: LocalCluster, reporter: Reporter, tail: MetricsTail, interrupt: _Interrupt
) -> HFTitanJob:
    job = cluster.job
    namespace, name = job.metadata.namespace, job.metadata.name
    reported: tuple[str | None, int] | None = None
    faults = 0
    while True:
        cluster.changed.clear()
        for record in tail.read():  # first: these steps happened before this pass
            reporter.record(record)
        recheck: float | None = 0.0
        # The status must include the last reports, so the last pass is one that began after all pods had ended.
        all_ended = not cluster.alive
        try:
            recheck = await step(cluster, namespace, name, time.time())
            faults = 0
        except Conflict:
            continue
        except Refused:
            raise
        except OSError as error:
            faults += 1
            reporter.note(f"{error}; retrying")
            if faults >= FAULTS_IN_A_ROW:
                raise
            await asyncio.sleep(faults)
            continue
        job = cluster.job
        if reported != (job.status.phase, job.status.attempt):
            reported = (job.status.phase, job.status.attempt)
            reporter.phase(job)
        reporter.progress(job, cluster.progress)
        phase = job.status.phase
        if phase in TERMINAL or (phase == "Suspended" and interrupt.signal is not None):
            if all_ended and not cluster.alive:
                for record in tail.read():
                    reporter.record(record)
                return job
            if not cluster.alive:
                continue
            if job.spec.run_policy.clean_pod_policy == "None":
                # A cluster would leave these pods running; a local run leaves no process behind.
                for pod in cluster.alive:
                    pod.stop(sizing.DRAIN_GRACE_SECONDS)
        wait = IDLE_SECONDS if recheck is None else min(IDLE_SECONDS, max(0.0, recheck))
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(cluster.changed.wait(), wait)


# --- the end ------------------------------------------------------------------------------------------------


def summary(job: HFTitanJob, cluster: LocalCluster, interrupted: signal.Signals | None, seconds: float) -> End:
    """Return the result of a run that has ended."""
    status, progress = job.status, cluster.progress
    phase = status.phase or "Pending"
    if phase == "Succeeded":
        code = EXIT_OK
    elif phase == "Failed":
        code = EXIT_FAILED
    else:
        code = 128 + (interrupted or signal.SIGTERM)
    last = [pod for pod in cluster.ended if pod.attempt == status.attempt]
    pod = decisive(last, mesh.plan(job.spec))
    report = pod.report if pod else None
    log = failure_log(cluster.machine, pod) if pod and phase == "Failed" else None
    reports = [p.report for p in last if p.report]
    saved = [r.checkpoint_step for r in reports if r.checkpoint_step is not None]
    known = [status.checkpoint.step] if status.checkpoint else []
    return End(
        phase=phase,
        exit_code=code,
        message=status.message or (report.message if report else ""),
        reason=report.reason if report else None,
        # A run stopped before its first step is at the step that an earlier run saved.
        step=max([r.step for r in reports] + [status.progress.step if status.progress else 0] + saved + known),
        steps=job.spec.training.steps,
        attempt=status.attempt,
        restarts=status.restarts,
        seconds=seconds,
        checkpoint_step=max(saved + known, default=progress.checkpoint_step if progress else None),
        export_path=status.export_path,
        log=log,
        log_tail=tuple(tail_of(log)) if log else (),
    )


def decisive(pods: Sequence[PodView], plan: MeshPlan) -> PodView | None:
    """Return the pod that decided the end of its gang, by the core's order of causes. Pods being deleted come last."""
    bad = [(pod.deleting, cause, i) for i, pod in enumerate(pods) if (cause := classify.of_pod(pod, plan))]
    if bad:
        return pods[min(bad)[2]]
    return min(pods, key=lambda pod: pod.index, default=None)


def failure_log(machine: Machine, pod: PodView) -> Path | None:
    """Return the log to read first: of the rank that reported, else of a rank with a traceback, else of the pod."""
    ranks = sorted(machine.rank_logs(pod.name).glob("rank*.log"), key=lambda path: path.stat().st_mtime)
    if pod.report is not None:
        named = machine.rank_logs(pod.name) / f"rank{pod.report.rank}.log"
        if named in ranks:
            return named
    for path in ranks:
        if any(line.startswith("Traceback") for line in tail_of(path, 500)):
            return path
    pod_log = machine.pod_log(pod.name)
    return pod_log if pod_log.exists() else None


def tail_of(path: Path, lines: int = TAIL_LINES) -> list[str]:
    """Return the last lines of a file, from its last 64 KiB at most."""
    try:
        with path.open("rb") as file:
            size = file.seek(0, 2)
            file.seek(max(0, size - 65_536))
            return file.read().decode("utf-8", "replace").splitlines()[-lines:]
    except OSError:
        return []
