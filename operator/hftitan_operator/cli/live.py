"""Shows a run on a terminal: a block with phase, step, losses, tokens/s and ETA, below a scrolling log."""

from __future__ import annotations

import math
import os
import time
from collections import deque
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console, ConsoleOptions, ConsoleRenderable, Group, RenderableType, RenderResult
from rich.control import Control
from rich.live import Live
from rich.markup import escape
from rich.progress_bar import ProgressBar
from rich.segment import ControlType, Segment, Segments
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
"""The block is drawn at this rate and not at every change, so that it does not flicker and its duration is current."""
BAR, LEAST = 40, 8
"""Maximum and minimum columns of the bar."""


class LiveReporter:
    def __init__(
        self, job: HFTitanJob, workdir: Path | None, console: Console | None = None, *, age: float = 0.0
    ) -> None:
        """Start drawing. `workdir` is None for a job on a cluster, which has run for `age` seconds."""
        self.console = console or Console()
        self._job = job
        self._workdir = workdir
        self._progress: Progress | None = None
        self._record: dict[str, Any] = {}
        self._losses: deque[float] = deque(maxlen=BAR)
        self._validation: str | None = None
        self._widths: dict[str, int] = {}
        """The greatest width of each number so far. A shorter number is padded, so that the next one does not move."""
        self._told = ""
        self._started = time.monotonic() - age
        self._spinner = Spinner("dots" if self.console.encoding.startswith("utf") else "line")
        self._live = Block(console=self.console, get_renderable=self.render, refresh_per_second=REFRESH_PER_SECOND)
        self._live.start()

    def note(self, text: str) -> None:
        self._live.log(f"[dim]{escape(text)}[/]")

    def event(self, event: Event) -> None:
        if event.reason == "Succeeded":  # `end` prints this
            return
        self._told = event.message
        style = "yellow" if event.type == "Warning" else "dim"
        self._live.log(f"[{style}]{escape(event.reason)}[/]: {escape(' '.join(event.message.split()))}")

    def phase(self, job: HFTitanJob) -> None:
        self._job = job

    def record(self, record: dict[str, Any]) -> None:
        if record.get("kind") == "validation":
            self._live.log(f"[dim]{escape(validation(record))}[/]")
            self._validation = _loss(record.get("loss"))
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
        # The terminal wraps these lines itself, so that paths can be copied.
        self.console.print(last_words(end, told=self._told), style=style, markup=False, highlight=False, soft_wrap=True)
        if end.log is not None:
            for line in end.log_tail:
                self.console.print(f"  {line}", markup=False, highlight=False, style="dim", soft_wrap=True)
            self.console.print(f"log: {end.log}", markup=False, highlight=False, soft_wrap=True)

    def close(self) -> None:
        """Erase the block. May be called twice."""
        self._live.stop()

    def render(self) -> RenderableType:
        """Return the block for the current width of the terminal."""
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
        """Return the line with the step. The bar takes the columns that the other parts leave; it may be omitted."""
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
            cells["loss"] = Text.assemble("loss ", (_loss(self._losses[-1]), "bold"))
        if held_out := self._held_out:
            cells["validation"] = Text.assemble("validation ", (held_out, "bold"))
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
        # On its own line, because it grows.
        if self.console.encoding.startswith("utf") and (curve := spark(self._losses)):
            lines.append(Text.assemble("loss ", (curve[-max(1, width - len("loss ")) :], "green"), no_wrap=True))
        return lines

    @property
    def _held_out(self) -> str | None:
        """The last validation loss. A run that resumes has it only in its progress at first."""
        if self._validation is None and self._progress and self._progress.validation_loss is not None:
            return _loss(self._progress.validation_loss)
        return self._validation

    @property
    def _current(self) -> bool:
        """Whether the progress is that of the newest attempt. The last progress of the old one stays until then."""
        return self._progress is not None and self._progress.attempt == self._job.status.attempt

    @property
    def _step(self) -> int:
        seen = [int(self._record.get("step", 0)), self._progress.step if self._progress and self._current else 0]
        return min(max(seen), self._job.spec.training.steps)


class Block(Live):
    """Draws the block below the log, and erases all of its rows after the terminal became narrower.

    A terminal that becomes narrower wraps the lines on its screen again, and the block then has more rows. rich erases
    only as many rows as it has drawn, so the upper ones would stay.
    """

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self._drawn: list[int] = []
        """Columns of each line on the screen. The cursor is at the start of the last one."""

    def log(self, markup: str) -> None:
        """Print a line above the block."""
        with self._lock:  # the thread that refreshes must not draw between erasing and printing
            self.console.print(markup, highlight=False)

    def process_renderables(self, renderables: list[ConsoleRenderable]) -> list[ConsoleRenderable]:
        """Erase the block, print `renderables` and draw the block again. The last refresh, in `stop`, only erases."""
        if not self.console.is_interactive:
            return renderables
        with self._lock:
            erase = self._erase()
            self._drawn = []
            return [erase, *renderables, *([_Lines(self.renderable, self._drawn)] if self.is_started else [])]

    def _erase(self) -> ConsoleRenderable:
        if not self._drawn:
            return Control()
        width = self.console.width if wraps_again(os.environ) else max(self._drawn)
        up = sum(max(1, math.ceil(columns / max(1, width))) for columns in self._drawn[:-1])
        codes = [Control((ControlType.CURSOR_UP, up)).segment] if up else []
        return Segments([*codes, Segment("\x1b[J", None, [(ControlType.CLEAR,)])])


class _Lines:
    """Draws a renderable and appends the columns of each line to `drawn`.

    Leaves the cursor at the start of the last line. At its end, the position after a resize depends on the terminal.
    """

    def __init__(self, renderable: RenderableType, drawn: list[int]) -> None:
        self._renderable, self._drawn = renderable, drawn

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        lines = console.render_lines(self._renderable, options, pad=False)[: options.size.height]
        for i, line in enumerate(map(_stripped, lines)):
            if i:
                yield Segment.line()
            yield from line
            self._drawn.append(Segment.get_line_length(line))
        yield Control(ControlType.CARRIAGE_RETURN)


def _stripped(line: Sequence[Segment]) -> list[Segment]:
    """Remove spaces at the end, which some terminals wrap and others drop."""
    kept = list(line)
    while kept and not kept[-1].text.rstrip():
        kept.pop()
    if kept:
        kept[-1] = Segment(kept[-1].text.rstrip(), kept[-1].style)
    return kept


def wraps_again(environ: Mapping[str, str]) -> bool:
    """Return whether the terminal wraps the lines on its screen again when it becomes narrower.

    Most do. xterm, GNU screen and the Linux console cut the lines.
    """
    if environ.get("TMUX"):
        return True
    return not (environ.get("XTERM_VERSION") or environ.get("STY") or environ.get("TERM") == "linux")


def _loss(value: float | None) -> str:
    return "not finite" if value is None else f"{value:.4f}"


def flow(parts: Sequence[Text], width: int) -> Text:
    """Join the parts, two columns apart. Lines break between parts; only a part wider than a line is folded."""
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
    """Return a path below the current folder as a relative path, others unchanged."""
    here = Path.cwd()
    return path.relative_to(here) if path.is_relative_to(here) else path


def spark(values: deque[float]) -> str:
    """Return the finite values as a curve of block characters; empty for fewer than two."""
    finite = [value for value in values if value == value and abs(value) != float("inf")]
    if len(finite) < 2:
        return ""
    low, high = min(finite), max(finite)
    scale = 7 / (high - low) if high > low else 0.0
    return "".join("▁▂▃▄▅▆▇█"[round((value - low) * scale)] for value in finite)
