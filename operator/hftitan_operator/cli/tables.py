"""Cluster jobs as text: tables, a summary, a description. Pure: API objects in, text out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from hftitan_operator.cli.plan import folded, table
from hftitan_operator.cli.text import numbers
from hftitan_operator.core import clock
from hftitan_operator.kube.views import pod_view

Json = Mapping[str, Any]
NONE = "<none>"


LEAST_MODEL = 16
"""Characters of a model's name that are always shown."""


def jobs_table(jobs: Sequence[Json], now: float, *, namespaces: bool, width: int | None = None) -> str:
    """Return one line per job, with the columns of `kubectl get htj`. Models are cut at the start to fit `width`."""
    header = ["NAME", "PHASE", "MODEL", "MESH", "STEP", "LOSS", "TOK/S", "RESTARTS", "AGE"]
    rows = [_row(job, now) for job in jobs]
    if namespaces:
        header = ["NAMESPACE", *header]
        rows = [[job["metadata"]["namespace"], *row] for job, row in zip(jobs, rows, strict=True)]
    shown = table(header, rows)
    excess = max(map(len, shown.splitlines())) - width if width else 0
    if excess <= 0:
        return shown
    model = header.index("MODEL")
    room = max(LEAST_MODEL, max(len(row[model]) for row in rows) - excess)
    for row in rows:
        if len(row[model]) > room:
            row[model] = "…" + row[model][1 - room :]
    return table(header, rows)


def _row(job: Json, now: float) -> list[str]:
    status, progress = job.get("status") or {}, (job.get("status") or {}).get("progress") or {}
    speed = progress.get("tokensPerSecond")
    return [
        job["metadata"]["name"],
        status.get("phase") or "Pending",
        str(((job.get("spec") or {}).get("model") or {}).get("name", "")),
        status.get("mesh") or "",
        _steps(job),
        _loss(progress.get("loss")),
        "" if speed is None else f"{speed:,.0f}",
        str(status.get("restarts", 0)),
        _ago(job["metadata"].get("creationTimestamp"), now),
    ]


def summary(job: Json, now: float, width: int | None = None) -> str:
    """Return the main facts about a job; unknown ones have no line."""
    status = job.get("status") or {}
    progress, pods, checkpoint = (status.get(key) or {} for key in ("progress", "pods", "checkpoint"))
    attempt = f"attempt {status.get('attempt', 0)}, restarts {status.get('restarts', 0)}"
    saved = f"step {checkpoint.get('step')}" + (
        f", {_ago(checkpoint['time'], now)} ago" if checkpoint.get("time") else ""
    )
    counted = ", ".join(f"{pods[key]} {key}" for key in ("active", "ready", "succeeded", "failed") if key in pods)
    old = _ago(job["metadata"].get("creationTimestamp"), now)
    goodput = status.get("goodput")
    lines = {
        "job": f"{job['metadata']['namespace']}/{job['metadata']['name']}",
        "phase": f"{status.get('phase') or 'Pending'}  ({attempt}, {old} old)",
        "message": status.get("message"),
        "model": ((job.get("spec") or {}).get("model") or {}).get("name"),
        "mesh": status.get("mesh") and f"{status['mesh']}, world size {status.get('worldSize')}",
        "step": progress and f"{_steps(job)}  {step_numbers(progress)}".rstrip(),
        "saved": checkpoint and saved,
        "pods": counted,
        "goodput": None if goodput is None else f"{goodput:.1%}",
        "export": status.get("exportPath"),
    }
    return "".join(f"{key:<10}{folded(str(value), 10, width)}\n" for key, value in lines.items() if value)


def step_numbers(progress: Json) -> str:
    """Format `status.progress` as `loss 4.1250  grad 1.733  1,000 tok/s  eta 3m20s`."""
    eta = progress.get("eta")
    return "  ".join(filter(None, (numbers(dict(progress)), f"eta {eta}" if eta else "")))


def description(job: Json, pods: Sequence[Json], events: Sequence[Json], now: float, width: int | None = None) -> str:
    """Return the summary with conditions, restarts, pods and events."""
    status = job.get("status") or {}
    conditions = [
        [c["type"], c["status"], c.get("reason", ""), _ago(c.get("lastTransitionTime"), now), c.get("message", "")]
        for c in status.get("conditions") or ()
    ]
    restarts = [
        [
            str(r["attempt"]),
            r["reason"],
            str(r.get("step", 0)),
            "yes" if r.get("counted", True) else "no",
            _ago(r["time"], now),
        ]
        for r in status.get("restartHistory") or ()
    ]
    parts = [
        summary(job, now, width),
        _section("conditions", ["TYPE", "STATUS", "REASON", "AGE", "MESSAGE"], conditions, width=width),
        _section("restarts", ["ATTEMPT", "REASON", "STEP", "COUNTED", "AGE"], restarts, width=width),
        _section("pods", ["NAME", "PHASE", "READY", "NODE", "AGE", "MESSAGE"], _pods(pods, now), width=width),
        _section("events", *_events(events, now), width=width),
    ]
    return "\n".join(part for part in parts if part)


def events_table(events: Sequence[Json], now: float, width: int | None = None) -> str:
    """Return one line per event, newest last. Long messages are folded to `width`."""
    return table(*_events(events, now), width)


def event_line(event: Json) -> str:
    """Return one event as a line."""
    return (
        f"{_when(event) or ''}  {event.get('type', '')}  {_object(event)}  {event.get('reason', '')}: {_message(event)}"
    )


def _section(title: str, header: list[str], rows: list[list[str]], width: int | None) -> str:
    return f"{title}\n{_indented(table(header, rows, width and width - 2))}" if rows else ""


def _pods(pods: Sequence[Json], now: float) -> list[list[str]]:
    """Return rows for the pods: newest attempt first, then by node."""
    views = [(view, pod) for pod in pods if (view := pod_view(pod)) is not None]
    rows = []
    for view, pod in sorted(views, key=lambda pair: (-pair[0].attempt, pair[0].index)):
        message = f"{view.report.reason}: {view.report.message}" if view.report else view.message or view.reason or ""
        phase = "Terminating" if view.deleting else view.phase
        age = _ago(pod["metadata"].get("creationTimestamp"), now)
        rows.append([view.name, phase, "yes" if view.ready else "no", view.node or NONE, age, _one_line(message)])
    return rows


def _events(events: Sequence[Json], now: float) -> tuple[list[str], list[list[str]]]:
    rows = []
    for event in events:
        count = event.get("count") or 1
        age = _ago(_when(event), now) + (f" (x{count})" if count > 1 else "")
        rows.append([age, event.get("type", ""), _object(event), event.get("reason", ""), _message(event)])
    return ["AGE", "TYPE", "OBJECT", "REASON", "MESSAGE"], rows


def _object(event: Json) -> str:
    about = event.get("involvedObject") or {}
    name = about.get("name", "")
    return f"pod/{name}" if about.get("kind") == "Pod" else f"job/{name}"


def _when(event: Json) -> str | None:
    when = event.get("lastTimestamp") or event.get("eventTime") or event["metadata"].get("creationTimestamp")
    return str(when) if when else None


def _message(event: Json) -> str:
    return _one_line(event.get("message") or "")


def _steps(job: Json) -> str:
    progress = (job.get("status") or {}).get("progress") or {}
    steps = progress.get("steps") or (((job.get("spec") or {}).get("training")) or {}).get("steps", "")
    return f"{progress.get('step', 0)}/{steps}"


def _loss(loss: float | None) -> str:
    return "" if loss is None else f"{loss:.4f}"


def _ago(time: str | None, now: float) -> str:
    """Return the time since then, as `3m20s`; `?` for an invalid or missing time."""
    try:
        return clock.duration(now - clock.unix(time)) if time else "?"
    except ValueError:
        return "?"


def _one_line(text: str) -> str:
    return " ".join(text.split())


def _indented(text: str) -> str:
    return "".join(f"  {line}\n" for line in text.splitlines())
