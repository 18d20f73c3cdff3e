"""Reports a run as lines of text, or as JSON lines for programs."""

from __future__ import annotations

import contextlib
import json
import os
import sys
import time
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Any, TextIO

from hftitan_api.models import HFTitanJob
from hftitan_api.wire import Progress
from hftitan_operator.cli.text import last_words, numbers, timestamp, validation
from hftitan_operator.core.state import Event
from hftitan_operator.local.run import End, Reporter

STEP_LINE_SECONDS = 1.0
"""Minimum time between two step lines. The first and the last step always have a line."""


def put(out: TextIO, line: str) -> None:
    """Print a line and flush it. If the reader has closed the pipe, the job continues and the output is discarded."""
    try:
        print(line, file=out, flush=True)
    except BrokenPipeError:
        # Recommended in Python's documentation of SIGPIPE. Otherwise the flush at exit fails and changes the exit code.
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, out.fileno())
        os.close(null)


@contextlib.contextmanager
def reporter(job: HFTitanJob, workdir: Path | None, *, as_json: bool, age: float = 0.0) -> Iterator[Reporter]:
    """Return the reporter: JSON if requested, a live view on a terminal that can move its cursor, else plain lines.

    `workdir` is None for a job on a cluster, which has run for `age` seconds.
    """
    if as_json:
        yield JsonReporter()
    elif sys.stdout.isatty() and os.environ.get("TERM", "dumb") not in ("dumb", "unknown"):
        from hftitan_operator.cli.live import LiveReporter

        live = LiveReporter(job, workdir, age=age)
        try:
            yield live
        finally:
            live.close()
    else:
        yield LineReporter()


class JsonReporter:
    """Prints one JSON object per line, each with `time` and `type`.

    Types: `note` (a choice made for the user), `event`, `phase`, `step` (all metrics of a step), `trainer` (other lines
    of metrics.jsonl, with their `kind`), and one `end` as the last line.
    """

    def __init__(self, out: TextIO | None = None) -> None:
        self._out = out or sys.stdout

    def note(self, text: str) -> None:
        self._write("note", {"message": text})

    def event(self, event: Event) -> None:
        self._write("event", {"level": event.type, "reason": event.reason, "message": event.message})

    def phase(self, job: HFTitanJob) -> None:
        status = job.status
        fields = {"phase": status.phase, "attempt": status.attempt, "restarts": status.restarts}
        self._write("phase", fields | {"mesh": status.mesh, "message": status.message})

    def record(self, record: dict[str, Any]) -> None:
        fields = {key: value for key, value in record.items() if key not in ("kind", "time")}
        if record.get("kind", "step") == "step":
            self._write("step", fields, record.get("time"))
        else:
            self._write("trainer", fields | {"kind": record["kind"]}, record.get("time"))

    def progress(self, job: HFTitanJob, progress: Progress | None) -> None:
        return

    def end(self, end: End) -> None:
        fields = {
            "phase": end.phase,
            "exitCode": end.exit_code,
            "reason": end.reason,
            "message": end.message,
            "step": end.step,
            "steps": end.steps,
            "attempt": end.attempt,
            "restarts": end.restarts,
            "seconds": round(end.seconds, 3),
            "checkpointStep": end.checkpoint_step,
            "exportPath": end.export_path,
            "log": str(end.log) if end.log else None,
            "logTail": list(end.log_tail),
        }
        self._write("end", fields)

    def _write(self, kind: str, fields: dict[str, Any], when: float | None = None) -> None:
        line = {**fields, "type": kind, "time": timestamp(when)}
        put(self._out, json.dumps(line, sort_keys=True))


class LineReporter:
    """Prints plain lines: events, which include every change of phase, and some of the steps."""

    def __init__(self, out: TextIO | None = None) -> None:
        self._out = out or sys.stdout
        self._last = 0.0
        self._waiting: dict[str, Any] | None = None
        self._steps = 0
        self._trainer = ""
        self._told = ""

    def note(self, text: str) -> None:
        self._write(text)

    def event(self, event: Event) -> None:
        if event.reason != "Succeeded":  # `end` prints this
            self._told = event.message
            message = " ".join(event.message.split())  # errors of libraries contain line breaks
            self._write(f"{'! ' if event.type == 'Warning' else ''}{event.reason}: {message}")

    def phase(self, job: HFTitanJob) -> None:
        self._steps = job.spec.training.steps

    def record(self, record: dict[str, Any]) -> None:
        if record.get("kind") == "validation":
            self._write(validation(record))
        if record.get("kind", "step") != "step":
            return
        if time.monotonic() - self._last < STEP_LINE_SECONDS:
            self._waiting = record
            return
        self._last = time.monotonic()
        self._waiting = None
        self._write(f"step {record.get('step')}/{self._steps or record.get('steps')}  {numbers(record)}")

    def progress(self, job: HFTitanJob, progress: Progress | None) -> None:
        if progress is not None and progress.phase != self._trainer:
            self._trainer = progress.phase
            if progress.phase in ("loading", "exporting", "pushing"):
                self._write(progress.phase)

    def end(self, end: End) -> None:
        if self._waiting is not None:
            self._last = 0.0
            self.record(self._waiting)
        self._write(last_words(end, told=self._told))
        if end.log is not None:
            for line in end.log_tail:
                put(self._out, f"    {line}")
            self._write(f"log: {end.log}")

    def _write(self, text: str) -> None:
        put(self._out, f"{datetime.now():%H:%M:%S} {text}")
