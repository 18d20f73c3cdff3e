"""Follows a cluster job with the same reporters as a local run."""

from __future__ import annotations

import asyncio
import contextlib
import re
import time
from collections.abc import Sequence
from typing import Any

from hftitan_api.models import KIND, TERMINAL, HFTitanJob, ProgressStatus
from hftitan_api.wire import ExitReport, Progress
from hftitan_operator.cli.client import Cluster, Trouble
from hftitan_operator.core import clock
from hftitan_operator.core.lifecycle import status as st
from hftitan_operator.core.state import Event
from hftitan_operator.kube.api import Json
from hftitan_operator.kube.views import job_view, pod_view
from hftitan_operator.local.run import EXIT_FAILED, EXIT_OK, End, Reporter

EVENT_SECONDS = 2.0
"""Seconds between two reads of the events."""

LAST_EVENT_SECONDS = 6.0
"""Longest wait, after a job has ended, for the event that explains its end."""

Reported = set[tuple[str, int, str]]
"""Events that were already reported, by uid, count and reason."""

_UNITS = {"d": 86_400, "h": 3600, "m": 60, "s": 1}


async def watch(cluster: Cluster, name: str, reporter: Reporter, *, from_start: bool = False) -> int:
    """Report on a job until it ends; return its exit code. `from_start`: also report past events."""
    reported: Reported = set()
    if not from_start:
        await _report_events(cluster, name, None, reported)
    events = asyncio.create_task(_events(cluster, name, reporter, reported))
    try:
        job = await _follow(cluster, name, reporter)
    finally:
        events.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await events
    await _last_events(cluster, job, reporter, reported)
    end = summary(job, await _reports(cluster, job))
    reporter.end(end)
    return end.exit_code


async def _follow(cluster: Cluster, name: str, reporter: Reporter) -> HFTitanJob:
    phase: tuple[str | None, int] | None = None
    step: tuple[int, int] | None = None
    async for obj in cluster.follow(name):
        if obj is None:
            raise Trouble(f"job {name} was deleted")
        job = job_view(obj).job
        if phase != (job.status.phase, job.status.attempt):
            phase = (job.status.phase, job.status.attempt)
            reporter.phase(job)
        seen = job.status.progress
        if seen is not None and step != (job.status.attempt, seen.step):
            step = (job.status.attempt, seen.step)
            reporter.record(record(job.status.attempt, seen))
        reporter.progress(job, progress(job))
        if job.status.phase in TERMINAL:
            return job
    raise AssertionError("Cluster.follow ended before the job")


async def _events(cluster: Cluster, name: str, reporter: Reporter, reported: Reported) -> None:
    while True:
        await _report_events(cluster, name, reporter, reported)
        await asyncio.sleep(EVENT_SECONDS)


async def _report_events(cluster: Cluster, name: str, reporter: Reporter | None, reported: Reported) -> None:
    with contextlib.suppress(Trouble):  # without permission to list events, still show the job
        for event in await cluster.events(kind=KIND, name=name):
            key = (event["metadata"]["uid"], event.get("count") or 1, event.get("reason", ""))
            if key not in reported:
                reported.add(key)
                if reporter is not None:
                    reporter.event(_event(event))


async def _last_events(cluster: Cluster, job: HFTitanJob, reporter: Reporter, reported: Reported) -> None:
    """Wait for the event that explains the end of the job. The operator writes events after the status, under load
    several seconds later."""
    ended = clock.maybe_unix(job.status.completion_time) or 0.0
    while True:
        await _report_events(cluster, job.metadata.name, reporter, reported)
        last = {"Succeeded"} | {c.reason for c in job.status.conditions if c.type == "Failed"}
        if time.time() - ended > LAST_EVENT_SECONDS or last & {reason for _, _, reason in reported}:
            return
        await asyncio.sleep(EVENT_SECONDS / 4)


async def _reports(cluster: Cluster, job: HFTitanJob) -> list[ExitReport]:
    """Return the exit reports of the last attempt. Their step may be newer than the one in the status."""
    with contextlib.suppress(Trouble):
        views = [pod_view(pod) for pod in await cluster.pods(job.metadata.name)]
        return [view.report for view in views if view and view.report and view.attempt == job.status.attempt]
    return []


def _event(event: Json) -> Event:
    kind = "Warning" if event.get("type") == "Warning" else "Normal"
    return Event(kind, event.get("reason", ""), event.get("message") or "")  # type: ignore[arg-type]


def record(attempt: int, seen: ProgressStatus) -> dict[str, Any]:
    """Return the newest step in the status, in the form of a line of metrics.jsonl."""
    found = seen.to_dict()
    eta = seconds(found.pop("eta", None))
    found["time"] = clock.maybe_unix(found.pop("updated", None))
    return {"kind": "step", "attempt": attempt, **found, **({} if eta is None else {"etaSeconds": eta})}


def progress(job: HFTitanJob) -> Progress | None:
    """Return the progress in the status, in the form of the document at /progress."""
    status = job.status
    if status.progress is None:
        return None
    seen = status.progress
    return Progress(
        attempt=status.attempt,
        phase="training",
        step=seen.step,
        steps=seen.steps,
        loss=seen.loss,
        grad_norm=seen.grad_norm,
        tokens_per_second=seen.tokens_per_second,
        mfu=seen.mfu,
        eta_seconds=seconds(seen.eta),
        updated=clock.maybe_unix(seen.updated) or 0.0,
        checkpoint_step=status.checkpoint.step if status.checkpoint else None,
        export_path=status.export_path,
    )


def seconds(text: str | None) -> float | None:
    """Parse a duration: `1h12m` -> 4320."""
    parts = re.findall(r"(\d+)([dhms])", text or "")
    return float(sum(int(count) * _UNITS[unit] for count, unit in parts)) if parts else None


def age(job: HFTitanJob) -> float:
    """Return the seconds since the job started, or was created."""
    since = clock.maybe_unix(job.status.start_time or job.metadata.creation_timestamp)
    return 0.0 if since is None else max(0.0, time.time() - since)


def summary(job: HFTitanJob, reports: Sequence[ExitReport] = ()) -> End:
    """Return the result of a job, from its status and the exit reports of its pods."""
    status = job.status
    failed = st.condition(status, "Failed")
    began = clock.maybe_unix(status.start_time or job.metadata.creation_timestamp)
    ended = clock.maybe_unix(status.completion_time)
    return End(
        phase=status.phase or "Pending",
        exit_code=EXIT_OK if status.phase == "Succeeded" else EXIT_FAILED,
        message=status.message or "",
        reason=failed.reason if failed and failed.status == "True" else None,
        step=max([report.step for report in reports], default=status.progress.step if status.progress else 0),
        steps=job.spec.training.steps,
        attempt=status.attempt,
        restarts=status.restarts,
        seconds=max(0.0, ended - began) if ended and began else 0.0,
        checkpoint_step=status.checkpoint.step if status.checkpoint else None,
        export_path=status.export_path,
        log=None,
        log_tail=(),
    )
