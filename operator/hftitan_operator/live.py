"""A run told on a terminal: one live block with phase, step, loss, tokens/s and ETA; what stays scrolls above it."""

from __future__ import annotations

import time
from collections import deque
from pathlib import Path
from typing import Any

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.markup import escape
from rich.progress_bar import ProgressBar
from rich.spinner import Spinner
from rich.table import Table
from rich.text import Text

from hftitan_api.models import HFTitanJob
from hftitan_api.wire import Progress
from hftitan_operator.cli_output import duration, last_words, validation
from hftitan_operator.core.state import Event
from hftitan_operator.run import End

STYLES = {
    "Pending": "yellow",
    "Starting": "yellow",
    "Running": "green",
    "Restarting": "magenta",
    "Suspended": "cyan",
    "Succeeded": "bold green",
    "Failed": "bold red",
}
REFRESH_PER_SECOND = 4
"""The block is drawn by a clock, not by changes: a fast job does not flicker, a slow one still counts its seconds."""


class LiveReporter:
    def __init__(
        self, job: HFTitanJob, workdir: Path | None, console: Console | None = None, *, age: float = 0.0
    ) -> None:
        """`workdir` None: the job runs elsewhere, and has for `age` seconds."""
        self.console = console or Console()
        self._job = job
        self._workdir = workdir
        self._progress: Progress | None = None
        self._record: dict[str, Any] = {}
        self._losses: deque[float] = deque(maxlen=40)
        self._started = time.monotonic() - age
        self._spinner = Spinner("dots")
        self._live = Live(
            console=self.console,
            get_renderable=self.render,
            refresh_per_second=REFRESH_PER_SECOND,
            transient=True,
        )
        self._live.start()

    def note(self, text: str) -> None:
        self.console.print(f"[dim]{escape(text)}[/]")

    def event(self, event: Event) -> None:
        style = "yellow" if event.type == "Warning" else "dim"
        self.console.print(f"[{style}]{escape(event.reason)}[/]: {escape(event.message)}")

    def phase(self, job: HFTitanJob) -> None:
        self._job = job

    def record(self, record: dict[str, Any]) -> None:
        if record.get("kind") == "validation":
            self.console.print(f"[dim]{escape(validation(record))}[/]")
        if record.get("kind", "step") != "step":
            return
        self._record = record
        if isinstance(record.get("loss"), int | float):
            self._losses.append(record["loss"])

    def progress(self, job: HFTitanJob, progress: Progress | None) -> None:
        self._job, self._progress = job, progress

    def end(self, end: End) -> None:
        self.close()
        style = STYLES.get(end.phase, "cyan")
        self.console.print(f"[{style}]{escape(last_words(end))}[/]")
        if end.log is not None:
            for line in end.log_tail:
                self.console.print(f"  {line}", markup=False, highlight=False, style="dim")
            self.console.print(f"log: {end.log}", markup=False, highlight=False)

    def close(self) -> None:
        """Take the block off the screen. May be called twice."""
        self._live.stop()

    def render(self) -> RenderableType:
        return Group(self._head(), self._bar(), self._numbers())

    def _head(self) -> RenderableType:
        status = self._job.status
        phase = status.phase or "Pending"
        line = Text.assemble((self._job.metadata.name, "bold"), "  ", (phase, STYLES.get(phase, "")))
        trainer = self._progress.phase if self._progress and self._current else None
        if trainer and trainer not in ("training", "done"):
            line.append(f" ({trainer})", "dim")
        line.append(f"  {status.mesh or ''}  {duration(time.monotonic() - self._started)}", "dim")
        if status.attempt > 1:
            line.append(f"  attempt {status.attempt}, restarts {status.restarts}", "magenta")
        if self._progress and self._current and self._progress.worker_restarts:
            line.append(f"  workers restarted {self._progress.worker_restarts}x", "magenta")
        row = Table.grid(padding=(0, 1))
        row.add_row(self._spinner, line)
        return row

    def _bar(self) -> RenderableType:
        steps = self._job.spec.training.steps
        done = self._step
        row = Table.grid(padding=(0, 1))
        eta = self._progress.eta_seconds if self._progress and self._current else None
        left = Text(f"eta {duration(eta)}" if eta else "", "cyan")
        row.add_row(Text(f"step {done}/{steps}"), ProgressBar(steps, done, width=40), Text(f"{done / steps:.0%}"), left)
        return row

    def _numbers(self) -> RenderableType:
        progress = self._progress
        cells = []
        if self._losses:
            cells.append(
                Text.assemble("loss ", (f"{self._losses[-1]:.4f}", "bold"), " ", (spark(self._losses), "green"))
            )
        if progress is not None:
            if progress.tokens_per_second:
                cells.append(Text(f"{progress.tokens_per_second:,.0f} tok/s"))
            if progress.mfu:
                cells.append(Text(f"mfu {progress.mfu:.1%}"))
            if progress.grad_norm is not None:
                cells.append(Text(f"grad {progress.grad_norm:.3f}"))
            if progress.lr is not None:
                cells.append(Text(f"lr {progress.lr:.3g}"))
            if progress.checkpoint_step is not None:
                cells.append(Text(f"checkpoint {progress.checkpoint_step}", "dim"))
        if not cells:
            waits = f"logs in {self._workdir / 'logs'}" if self._workdir else self._job.status.message or ""
            cells = [Text(waits, "dim")]
        row = Table.grid(padding=(0, 2))
        row.add_row(*cells)
        return row

    @property
    def _current(self) -> bool:
        """Whether /progress speaks of the newest attempt: an old one's last word stays until then."""
        return self._progress is not None and self._progress.attempt == self._job.status.attempt

    @property
    def _step(self) -> int:
        seen = [int(self._record.get("step", 0)), self._progress.step if self._progress and self._current else 0]
        return min(max(seen), self._job.spec.training.steps)


def spark(values: deque[float]) -> str:
    """The curve of a few numbers in block characters."""
    finite = [value for value in values if value == value and abs(value) != float("inf")]
    if len(finite) < 2:
        return ""
    low, high = min(finite), max(finite)
    scale = 7 / (high - low) if high > low else 0.0
    return "".join("▁▂▃▄▅▆▇█"[round((value - low) * scale)] for value in finite)
