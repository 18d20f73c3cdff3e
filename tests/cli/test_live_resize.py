"""The live block on a terminal whose width changes: no line of the old block stays on the screen."""

import io
import re

import pytest
from rich.console import Console

from hftitan_api.models import HFTitanJob, JobStatus
from hftitan_api.wire import Progress
from hftitan_operator.cli import live
from hftitan_operator.core.state import Event

JOB = HFTitanJob.model_validate(
    {
        "apiVersion": "hftitan.io/v1alpha1",
        "kind": "HFTitanJob",
        "metadata": {"name": "llama-3-70b-instruct"},
        "spec": {"model": {"name": "m"}, "dataset": {"name": "d"}, "training": {"steps": 1000}},
    }
)
CODE = re.compile(r"\x1b\[(\??\d*)([A-Za-z])")


class Terminal(io.TextIOBase):
    """A terminal without end: text, line breaks, and the control codes of the live block.

    When its width changes it wraps its lines again, like most terminals, or it cuts them, like xterm.
    """

    encoding = "utf-8"

    def __init__(self, width, wraps=True):
        self.width, self.wraps = width, wraps
        self.rows, self.joined = [""], [False]
        """The rows, and whether a row is continued in the next one."""
        self.row = self.column = 0

    def isatty(self):
        return True

    def write(self, text):
        at = 0
        while at < len(text):
            code = CODE.match(text, at)
            if code:
                self._control(*code.groups())
                at = code.end()
            else:
                self._character(text[at])
                at += 1
        return len(text)

    def _control(self, value, letter):
        if letter == "A":
            self.row -= int(value or 1)
            assert self.row >= 0, "the cursor moves above the first line"
        elif letter == "K" and value == "2":
            self.rows[self.row] = ""
        elif letter == "J" and value in ("", "0"):
            self.rows[self.row] = self.rows[self.row][: self.column]
            del self.rows[self.row + 1 :], self.joined[self.row :]
            self.joined.append(False)
        else:
            assert letter in "hlm", f"unknown control code {value}{letter}"

    def _character(self, character):
        if character == "\r":
            self.column = 0
            return
        wrapped = self.column == self.width and character != "\n"
        if character == "\n" or wrapped:
            self.joined[self.row] = wrapped
            self.row, self.column = self.row + 1, 0
            if self.row == len(self.rows):
                self.rows.append("")
                self.joined.append(False)
        if character != "\n":
            line = self.rows[self.row].ljust(self.column)
            self.rows[self.row] = line[: self.column] + character + line[self.column + 1 :]
            self.column += 1

    def resize(self, width):
        self.width = width
        if not self.wraps:
            self.rows = [row[:width] for row in self.rows]
            self.column = min(self.column, width)
            return
        rows, joined, cursor, line = [], [], (0, 0), ""
        offset, started = 0, None
        for i, row in enumerate(self.rows):
            if i == self.row:
                offset = len(line) + self.column
                started = len(rows)
            line += row
            if not self.joined[i]:
                parts = [line[at : at + width] for at in range(0, len(line), width)] or [""]
                if started is not None:
                    last = min(offset // width, len(parts) - 1)
                    cursor, started = (started + last, offset - last * width), None
                rows += parts
                joined += [True] * (len(parts) - 1) + [False]
                line = ""
        self.rows, self.joined, (self.row, self.column) = rows, joined, cursor

    def lines(self):
        """The lines that are not empty, without the line breaks of the terminal."""
        text = "".join(row + ("" if more else "\n") for row, more in zip(self.rows, self.joined, strict=True))
        return [line.rstrip() for line in text.splitlines() if line.strip()]


class Run:
    """A live view whose clock stands still, and which draws only when the test says so."""

    def __init__(self, terminal):
        self.terminal = terminal
        self.console = Console(
            file=terminal, force_terminal=True, width=terminal.width, color_system=None, get_time=lambda: 0.0,
            _environ={"TERM": "xterm-256color"},
        )  # fmt: skip
        self.view = live.LiveReporter(JOB, None, self.console, age=90_000)
        for step in range(1, 60):
            self.view.record({"kind": "step", "step": step, "loss": 1 / step})
        status = JobStatus(phase="Running", mesh="8x8: rep2 dp4 tp8", attempt=3, restarts=2)
        progress = Progress(
            attempt=3, phase="training", step=59, steps=1000, updated=1, tokens_per_second=1_234_567, mfu=0.412,
            grad_norm=12.345, lr=2.99e-4, eta_seconds=123_456.0, checkpoint_step=50, worker_restarts=1,
        )  # fmt: skip
        self.view.progress(JOB.model_copy(update={"status": status}), progress)

    def draw(self):
        self.view._live.refresh()

    def resize(self, width):
        self.console.width = width
        self.terminal.resize(width)


@pytest.fixture(autouse=True)
def _terminal(monkeypatch):
    monkeypatch.setattr(live, "REFRESH_PER_SECOND", 1e-3)
    for name in ("TMUX", "XTERM_VERSION", "STY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TERM", "xterm-256color")


def fresh(width):
    """The lines of a block on a terminal that always had this width."""
    run = Run(Terminal(width))
    run.draw()
    found = run.terminal.lines()
    run.view.close()
    assert sum(JOB.metadata.name in line for line in found) == 1
    assert sum(bool(re.match("loss [▁-█]", line)) for line in found) == 1
    return found


@pytest.mark.parametrize("widths", [(100, 99, 60, 30), (120, 30, 110, 40), (80, 40, 25, 80), (61, 60, 59, 58)])
@pytest.mark.parametrize("wraps", [True, False])
def test_a_new_width_leaves_nothing_of_the_old_block(monkeypatch, widths, wraps):
    if not wraps:
        monkeypatch.setenv("XTERM_VERSION", "XTerm(390)")
    run = Run(Terminal(widths[0], wraps))
    log = []
    for width in widths:
        run.resize(width)
        run.view.event(Event("Normal", "Resized", f"to {width}"))
        log.append(f"Resized: to {width}")
        run.draw()
        assert run.terminal.lines() == [*log, *fresh(width)]
    run.resize(widths[-1] - 10)
    run.view.close()
    assert run.terminal.lines() == log


def test_a_resize_without_a_new_line_of_the_log():
    run = Run(Terminal(120))
    for width in (120, 50, 40, 30, 120):
        run.resize(width)
        run.draw()
        assert run.terminal.lines() == fresh(width)
    run.view.close()
    assert run.terminal.lines() == []


@pytest.mark.parametrize(
    ("environ", "expected"),
    [
        ({"TERM": "xterm-256color"}, True),
        ({"TERM": "xterm", "XTERM_VERSION": "XTerm(390)"}, False),
        ({"TERM": "screen", "STY": "1.pts"}, False),
        ({"TERM": "linux"}, False),
        ({"TERM": "tmux", "TMUX": "/tmp/t", "XTERM_VERSION": "XTerm(390)"}, True),
    ],
)
def test_terminals_that_wrap_lines_again(environ, expected):
    assert live.wraps_again(environ) is expected
