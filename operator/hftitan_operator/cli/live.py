"""The live view of a run on a terminal: one block with phase, step, loss, tokens/s and ETA, below a scrolling log."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Sequence
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
from hftitan_operator.cli.text import duration, last_words, validation
from hftitan_operator.core.state import Event
from hftitan_operator.local.run import End

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
BAR, LEAST = 40, 8
"""Columns of the bar at most, and at least."""


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
        self._losses: deque[float] = deque(maxlen=BAR)
        self._widths: dict[str, int] = {}
        """Of the numbers so far: what follows one does not move when it becomes shorter."""
        self._told = ""
        self._started = time.monotonic() - age
        self._spinner = Spinner("dots" if self.console.encoding.startswith("utf") else "line")
        self._live = Live(
            console=self.console,
            get_renderable=self.render,
            refresh_per_second=REFRESH_PER_SECOND,
            transient=True,
        )
        self._live.start()

    def note(self, text: str) -> None:
        self.console.print(f"[dim]{escape(text)}[/]", highlight=False)

    def event(self, event: Event) -> None:
        if event.reason == "Succeeded":  # the last words say it
            return
        self._told = event.message
        style = "yellow" if event.type == "Warning" else "dim"
        self.console.print(
            f"[{style}]{escape(event.reason)}[/]: {escape(' '.join(event.message.split()))}", highlight=False
        )

    def phase(self, job: HFTitanJob) -> None:
        self._job = job

    def record(self, record: dict[str, Any]) -> None:
        if record.get("kind") == "validation":
            self.console.print(f"[dim]{escape(validation(record))}[/]", highlight=False)
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
        # Not broken into lines here: a path that the terminal itself wraps can be copied.
        self.console.print(last_words(end, told=self._told), style=style, markup=False, highlight=False, soft_wrap=True)
        if end.log is not None:
            for line in end.log_tail:
                self.console.print(f"  {line}", markup=False, highlight=False, style="dim", soft_wrap=True)
            self.console.print(f"log: {end.log}", markup=False, highlight=False, soft_wrap=True)

    def close(self) -> None:
        """Take the block off the screen. May be called twice."""
        self._live.stop()

    def render(self) -> RenderableType:
        """As wide as the terminal is at that moment."""
        width = self.console.width
        lines = [self._head(width - 2), self._bar(width), *self._numbers(width)]
        rows = Table.grid(padding=(0, 1, 0, 0))
        rows.add_row(self._spinner, lines[0])
        return Group(rows, *lines[1:])

    def _head(self, width: int) -> Text:
        status = self._job.status
        phase = status.phase or "Pending"
        state = Text(phase, STYLES.get(phase, ""))
        trainer = self._progress.phase if self._progress and self._current else None
        if trainer and trainer not in ("training", "done", phase.lower()):
            state.append(f" ({trainer})", "dim")
        parts = [Text(self._job.metadata.name, "bold"), state]
        if status.mesh:
            parts.append(Text(status.mesh, "dim"))
        parts.append(Text(duration(time.monotonic() - self._started), "dim"))
        if status.attempt > 1:
            parts.append(Text(f"attempt {status.attempt}, restarts {status.restarts}", "magenta"))
        if self._progress and self._current and self._progress.worker_restarts:
            parts.append(Text(f"workers restarted {self._progress.worker_restarts}x", "magenta"))
        return flow(parts, width)

    def _bar(self, width: int) -> RenderableType:
        """All but the bar keeps its width; the bar takes what is left, or is left out."""
        steps, done = self._job.spec.training.steps, self._step
        eta = self._progress.eta_seconds if self._progress and self._current else None
        step, share = f"step {done:>{len(str(steps))}}/{steps}", f"{done * 100 // steps:3}%"
        left = f"eta {duration(eta)}" if eta else ""
        room = min(BAR, width - len(step) - len(share) - len("eta 59m59s") - 3)
        bar = [ProgressBar(steps, done, width=room)] if room >= LEAST else []
        row = Table.grid(padding=(0, 1, 0, 0))
        row.add_row(step, *bar, share, Text(left, "cyan", no_wrap=True))
        return row

    def _numbers(self, width: int) -> list[RenderableType]:
        progress, cells = self._progress, {}
        if self._losses:
            cells["loss"] = Text.assemble("loss ", (f"{self._losses[-1]:.4f}", "bold"))
        if progress is not None:
            if progress.tokens_per_second:
                cells["speed"] = Text(f"{progress.tokens_per_second:,.0f} tok/s")
            if progress.mfu:
                cells["mfu"] = Text(f"mfu {progress.mfu:.1%}")
            if progress.grad_norm is not None:
                cells["grad"] = Text(f"grad {progress.grad_norm:.3f}")
            if progress.lr is not None:
                cells["lr"] = Text(f"lr {progress.lr:.3g}")
            if progress.checkpoint_step is not None:
                cells["checkpoint"] = Text(f"checkpoint {progress.checkpoint_step}", "dim")
        if not cells:
            waits = f"logs in {nearby(self._workdir / 'logs')}" if self._workdir else self._job.status.message or ""
            return [Text(waits, "dim", overflow="fold")]
        for key, cell in cells.items():
            self._widths[key] = max(self._widths.get(key, 0), len(cell))
            cell.pad_right(self._widths[key] - len(cell))
        lines: list[RenderableType] = [flow(list(cells.values()), width)]
        # Below the numbers: it grows, and would push them aside.
        if self.console.encoding.startswith("utf") and (curve := spark(self._losses)):
            lines.append(Text(curve[-width:], "green", no_wrap=True))
        return lines

    @property
    def _current(self) -> bool:
        """Whether /progress speaks of the newest attempt: an old one's last word stays until then."""
        return self._progress is not None and self._progress.attempt == self._job.status.attempt

    @property
    def _step(self) -> int:
        seen = [int(self._record.get("step", 0)), self._progress.step if self._progress and self._current else 0]
        return min(max(seen), self._job.spec.training.steps)


def flow(parts: Sequence[Text], width: int) -> Text:
    """The parts two columns apart, broken into lines between them only; what is wider than a line is folded."""
    made, used = Text(overflow="fold"), 0
    for part in parts:
        if used:
            fits = used + 2 + len(part) <= width
            made.append("  " if fits else "\n")
            used = used + 2 if fits else 0
        made.append_text(part)
        used += len(part)
    return made


def nearby(path: Path) -> Path:
    """As one would type it here."""
    here = Path.cwd()
    return path.relative_to(here) if path.is_relative_to(here) else path


def spark(values: deque[float]) -> str:
    """The curve of a few numbers in block characters."""
    finite = [value for value in values if value == value and abs(value) != float("inf")]
    if len(finite) < 2:
        return ""
    low, high = min(finite), max(finite)
    scale = 7 / (high - low) if high > low else 0.0
    return "".join("▁▂▃▄▅▆▇█"[round((value - low) * scale)] for value in finite)
