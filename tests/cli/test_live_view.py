"""The live block on terminals of several widths: no word is cut, and numbers keep their places."""

import io
from pathlib import Path

import pytest
from rich.console import Console

from hftitan_api.models import HFTitanJob, JobStatus
from hftitan_api.wire import Progress
from hftitan_operator.cli.live import LiveReporter, flow, nearby
from hftitan_operator.cli.output import JsonReporter, LineReporter, reporter
from hftitan_operator.core.state import Event
from hftitan_operator.local.run import End

NAME = "llama-3-70b-instruct-finetune"
JOB = HFTitanJob.model_validate(
    {
        "apiVersion": "hftitan.io/v1alpha1",
        "kind": "HFTitanJob",
        "metadata": {"name": NAME},
        "spec": {"model": {"name": "m"}, "dataset": {"name": "d"}, "training": {"steps": 100_000}},
    }
)
WIDTHS = (40, 80, 120)


class Terminal:
    def __init__(self, width, encoding="utf-8"):
        self.out = io.TextIOWrapper(io.BytesIO(), encoding=encoding, errors="replace")
        console = Console(file=self.out, force_terminal=True, width=width, color_system=None)
        self.live = LiveReporter(JOB, Path("/w"), console)
        self.live.close()

    def training(self, step, loss=2.5, eta=123_456.0, **changes):
        status = JobStatus(phase="Running", mesh="8x8: rep2 dp4 tp8", attempt=3, restarts=2)
        self.live.record({"kind": "step", "step": step, "loss": loss})
        known = {
            "attempt": 3, "phase": "training", "step": step, "steps": 100_000, "updated": 1,
            "tokens_per_second": 1_234_567, "mfu": 0.412, "grad_norm": 12.345, "lr": 2.99e-4, "eta_seconds": eta,
            "checkpoint_step": 50, "worker_restarts": 1,
        }  # fmt: skip
        self.live.progress(JOB.model_copy(update={"status": status}), Progress(**{**known, **changes}))
        return self

    def lines(self):
        with self.live.console.capture() as capture:
            self.live.console.print(self.live.render())
        return [line.rstrip() for line in capture.get().splitlines()]


@pytest.mark.parametrize("width", WIDTHS)
def test_no_word_is_cut(width):
    lines = Terminal(width).training(59).lines()
    assert all(len(line) <= width for line in lines)
    for words in (
        NAME, "Running", "8x8: rep2 dp4 tp8", "attempt 3, restarts 2", "workers restarted 1x", "step     59/100000",
        "0% eta 1d10h", "loss 2.5000", "1,234,567 tok/s", "mfu 41.2%", "grad 12.345", "lr 0.000299", "checkpoint 50",
    ):  # fmt: skip
        assert any(words in line for line in lines), f"{words}: {lines}"


@pytest.mark.parametrize("width", WIDTHS)
def test_numbers_keep_their_places(width):
    terminal = Terminal(width)
    for step in range(50):  # until the curve has its full width
        terminal.training(step, loss=12.3456)
    before = terminal.lines()
    after = terminal.training(99_999, 9.8765, None, tokens_per_second=987, grad_norm=1.5, lr=1e-3, mfu=0.4).lines()
    assert len(after) == len(before)
    for word in ("/100000", "%", "mfu", "grad", "lr", "checkpoint"):
        places = [[(i, line.find(word)) for i, line in enumerate(lines) if word in line] for lines in (before, after)]
        assert places[0] == places[1], word


def test_terminal_without_unicode_shows_no_curve():
    terminal = Terminal(80, "latin-1")
    for step in range(3):
        terminal.training(step)
    text = "\n".join(terminal.lines())
    assert text.encode("ascii")
    assert "loss 2.5000" in text


def test_validation_loss_is_in_the_block():
    terminal = Terminal(80).training(59)
    assert not any("validation" in line for line in terminal.lines())
    terminal.live.record({"kind": "validation", "step": 50, "loss": 2.25})
    assert any("loss 2.5000  validation 2.2500  1,234,567 tok/s" in line for line in terminal.lines())
    terminal.live.record({"kind": "validation", "step": 60, "loss": None})
    assert any("loss 2.5000  validation not finite  1,234,567 tok/s" in line for line in terminal.lines())


def test_validation_loss_of_a_resumed_run_comes_from_its_progress():
    terminal = Terminal(80).training(59, validation_step=50, validation_loss=2.25)
    assert any("validation 2.2500" in line for line in terminal.lines())
    terminal.live.record({"kind": "validation", "step": 60, "loss": 2.125})
    assert any("validation 2.1250" in line for line in terminal.lines())


@pytest.mark.parametrize("width", WIDTHS)
def test_curve_is_labelled_and_fits(width):
    terminal = Terminal(width)
    for step in range(50):
        terminal.training(step, loss=50 - step)
    curve = terminal.lines()[-1]
    assert curve.startswith("loss ")
    assert curve.endswith("▁")
    assert len(curve) == min(width, len("loss ") + 40)


def ended(message, log=None, *tail):
    return End(
        phase="Failed", exit_code=1, message=message, reason="UserError", step=3, steps=10, attempt=1, restarts=0,
        seconds=61.0, checkpoint_step=None, export_path=None, log=log, log_tail=tail,
    )  # fmt: skip


def test_paths_at_the_end_can_be_copied():
    """A line break within a path would be copied with it."""
    terminal = Terminal(40)
    log = Path("/home/somebody/with/a/long/path/to/the/runs/logs/rank0.log")
    terminal.live.end(ended("no such file", log, "a line of a traceback that is longer than the terminal"))
    terminal.out.flush()
    text = terminal.out.buffer.getvalue().decode()
    assert f"log: {log}\n" in text
    assert "  a line of a traceback that is longer than the terminal\n" in text


def test_message_of_the_last_event_is_not_repeated():
    terminal = Terminal(80)
    terminal.live.event(Event("Normal", "Succeeded", "finished 10 steps"))
    terminal.live.event(Event("Warning", "UserError", "no such\nfile"))
    terminal.live.end(ended("no such\nfile"))
    terminal.live.end(ended("another"))
    terminal.out.flush()
    assert terminal.out.buffer.getvalue().decode().rpartition("\x1b[?25h")[2].splitlines() == [
        "UserError: no such file",
        "Failed (UserError) at step 3 of 10, in 1m01s",
        "Failed (UserError) at step 3 of 10, in 1m01s: another",
    ]


def test_numbers_within_names_are_not_highlighted():
    """rich would highlight llama-*3*-70b-*1*-*3*."""
    console = Console(file=io.StringIO(), force_terminal=True, width=120, color_system="truecolor")
    live = LiveReporter(JOB, None, console)
    live.event(Event("Warning", "OOMKilled", f"pod {NAME}-1-3 ended with exit 137"))
    live.note("0 of 3 nodes")
    live.record({"kind": "validation", "step": 50, "loss": 2.5})
    live.close()
    text = console.file.getvalue()
    for words in (f": pod {NAME}-1-3 ended with exit 137", "0 of 3 nodes", "step 50  validation loss 2.5000"):
        assert words in text


def test_phase_is_shown_once():
    terminal = Terminal(80)
    seen = JOB.model_copy(update={"status": JobStatus(phase="Starting", attempt=1)})
    for phase, words in (("starting", "Starting  "), ("loading", "Starting (loading)  ")):
        terminal.live.progress(seen, Progress(attempt=1, phase=phase, step=0, steps=10, updated=1))
        assert f"{NAME}  {words}" in terminal.lines()[0]


def test_only_the_last_step_is_100_percent():
    assert any(" 99%" in line for line in Terminal(80).training(99_999).lines())
    assert any("100%" in line for line in Terminal(80).training(100_000).lines())


@pytest.mark.parametrize(
    ("term", "tty", "as_json", "kind"),
    [
        ("xterm", True, False, LiveReporter), ("xterm", False, False, LineReporter),
        ("xterm", True, True, JsonReporter), ("dumb", True, False, LineReporter), (None, True, False, LineReporter),
    ],
)  # fmt: skip
def test_reporter_depends_on_the_terminal(monkeypatch, term, tty, as_json, kind):
    """A terminal that cannot move its cursor would only show events."""
    monkeypatch.setattr("sys.stdout", io.StringIO())
    monkeypatch.setattr("sys.stdout.isatty", lambda: tty)
    monkeypatch.delenv("TERM", raising=False)
    if term:
        monkeypatch.setenv("TERM", term)
    with reporter(JOB, None, as_json=as_json) as found:
        assert type(found) is kind


def test_flow_folds_only_parts_wider_than_a_line():
    from rich.text import Text

    assert flow([Text("one"), Text("two"), Text("three")], 8).plain == "one  two\nthree"
    assert flow([Text("longer than that"), Text("two")], 8).plain == "longer than that\ntwo"


def test_paths_below_the_current_folder_are_relative(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert nearby(tmp_path / "runs/a/logs") == Path("runs/a/logs")
    assert nearby(Path("/elsewhere")) == Path("/elsewhere")
