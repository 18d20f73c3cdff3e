"""The three output formats of a run: JSON, lines, and the live block."""

import io
import json
import os
from pathlib import Path

import pytest
from rich.console import Console

from hftitan_api.models import HFTitanJob, JobStatus
from hftitan_api.wire import Progress
from hftitan_operator.cli.live import LiveReporter, spark
from hftitan_operator.cli.output import JsonReporter, LineReporter
from hftitan_operator.cli.text import duration, last_words, numbers, timestamp
from hftitan_operator.core.state import Event
from hftitan_operator.local.run import End

JOB = HFTitanJob.model_validate(
    {
        "apiVersion": "hftitan.io/v1alpha1",
        "kind": "HFTitanJob",
        "metadata": {"name": "tiny"},
        "spec": {"model": {"name": "m"}, "dataset": {"name": "d"}, "training": {"steps": 10}},
    }
)
STEP = {"kind": "step", "attempt": 1, "time": 1_800_000_000.25, "step": 3, "loss": 4.5, "tokensPerSecond": 1234.5}


def job_in(phase, **status):
    return JOB.model_copy(update={"status": JobStatus(phase=phase, **status)})


def end_as(phase, **changes):
    known = {
        "phase": phase, "exit_code": 0, "message": "why", "reason": None, "step": 3, "steps": 10, "attempt": 1,
        "restarts": 0, "seconds": 61.0, "checkpoint_step": None, "export_path": None, "log": None, "log_tail": (),
    }  # fmt: skip
    return End(**{**known, **changes})


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.9, "0s"), (59.9, "59s"), (61, "1m01s"), (7500, "2h05m"), (90_000, "1d01h")]
)
def test_duration(seconds, text):
    assert duration(seconds) == text


@pytest.mark.parametrize(
    ("end", "words"),
    [
        (end_as("Succeeded", export_path="/x"), "Succeeded: step 3 of 10 in 1m01s; the model is in /x"),
        (end_as("Failed", reason="UserError"), "Failed (UserError) at step 3 of 10, in 1m01s: why"),
        (
            end_as("Suspended", checkpoint_step=3),
            "Stopped at step 3 of 10, in 1m01s; checkpoint at step 3. To resume, run the same command again.",
        ),
        (
            end_as("Suspended"),
            "Stopped at step 3 of 10, in 1m01s; no checkpoint. To resume, run the same command again.",
        ),
    ],
)
def test_last_words(end, words):
    assert last_words(end) == words


def test_json_lines():
    out = io.StringIO()
    reporter = JsonReporter(out)
    reporter.note("n")
    reporter.event(Event("Warning", "Why", "because"))
    reporter.phase(job_in("Running", attempt=2))
    reporter.record(STEP)
    reporter.record({"kind": "checkpoint", "step": 3, "time": 1_800_000_000.0})
    reporter.progress(JOB, None)
    reporter.end(end_as("Failed", log=Path("/l"), log_tail=("a",), exit_code=1))
    lines = [json.loads(line) for line in out.getvalue().splitlines()]
    assert [line["type"] for line in lines] == ["note", "event", "phase", "step", "trainer", "end"]
    assert lines[1]["level"] == "Warning"
    assert (lines[2]["phase"], lines[2]["attempt"]) == ("Running", 2)
    assert lines[3] == {
        "type": "step", "time": "2027-01-15T08:00:00.250Z",
        "attempt": 1, "step": 3, "loss": 4.5, "tokensPerSecond": 1234.5,
    }  # fmt: skip
    assert (lines[4]["kind"], lines[4]["step"]) == ("checkpoint", 3)
    assert (lines[5]["log"], lines[5]["logTail"], lines[5]["exitCode"]) == ("/l", ["a"], 1)


@pytest.mark.parametrize("kind", [JsonReporter, LineReporter])
def test_closed_pipe_does_not_stop_the_run(kind):
    read, write = os.pipe()
    os.close(read)
    with os.fdopen(write, "w", buffering=1) as out:
        reporter = kind(out)
        reporter.note("one")
        reporter.note("two")
        reporter.end(end_as("Failed", log=Path("/l"), log_tail=("a",)))


def test_step_lines_are_throttled_except_the_last():
    out = io.StringIO()
    reporter = LineReporter(out)
    reporter.phase(job_in("Running"))
    for step in range(1, 6):
        reporter.record({**STEP, "step": step})
    reporter.event(Event("Normal", "Succeeded", "all done"))
    reporter.end(end_as("Succeeded"))
    lines = [line[9:] for line in out.getvalue().splitlines()]
    assert lines == [
        "step 1/10  loss 4.5000  1,234 tok/s",
        "step 5/10  loss 4.5000  1,234 tok/s",
        "Succeeded: step 3 of 10 in 1m01s",
    ]


def test_validation_has_its_own_line():
    out = io.StringIO()
    reporter = LineReporter(out)
    reporter.phase(job_in("Running"))
    reporter.record({**STEP, "step": 1})
    reporter.record({"kind": "validation", "step": 1, "loss": 2.5, "tokens": 10, "seconds": 1.0})
    reporter.record({"kind": "validation", "step": 1, "loss": None})
    lines = [line[9:] for line in out.getvalue().splitlines()]
    assert lines[1:] == ["step 1  validation loss 2.5000", "step 1  validation loss not finite"]


def test_event_has_one_line():
    out = io.StringIO()
    LineReporter(out).event(Event("Warning", "NetworkError", "the hub:\nno  answer\n"))
    assert out.getvalue()[9:] == "! NetworkError: the hub: no answer\n"


def test_failure_is_printed_once_with_its_log():
    out = io.StringIO()
    reporter = LineReporter(out)
    reporter.event(Event("Warning", "UserError", "no such dataset"))
    reporter.end(end_as("Failed", message="no such dataset", log=Path("/l/rank0.log"), log_tail=("Traceback", "x")))
    lines = out.getvalue().splitlines()
    assert [line[9:] for line in lines[:2]] == ["! UserError: no such dataset", "Failed at step 3 of 10, in 1m01s"]
    assert lines[2:4] == ["    Traceback", "    x"]
    assert lines[4].endswith("log: /l/rank0.log")


def test_numbers_omit_unknown_values():
    assert numbers({"step": 1}) == ""
    record = {"loss": 1.0, "gradNorm": 2.0, "lr": 1e-4, "tokensPerSecond": 10, "mfu": 0.5, "etaSeconds": 61}
    assert numbers(record) == "loss 1.0000  grad 2.000  lr 0.0001  10 tok/s  mfu 50.0%  eta 1m01s"


def test_timestamps():
    assert timestamp(0) == "1970-01-01T00:00:00.000Z"
    assert timestamp().endswith("Z")


@pytest.fixture
def live():
    console = Console(file=io.StringIO(), force_terminal=True, width=100, color_system=None)
    reporter = LiveReporter(JOB, Path("/w"), console)
    yield reporter
    reporter.close()


def shown(live):
    with live.console.capture() as capture:
        live.console.print(live.render())
    return capture.get()


def test_live_block(live):
    assert "logs in /w/logs" in shown(live)
    for step, loss in ((1, 5.0), (2, 4.0), (3, 3.0)):
        live.record({**STEP, "step": step, "loss": loss})
    live.progress(
        job_in("Running", attempt=2, restarts=1, mesh="1x2: dp2"),
        Progress(attempt=2, phase="checkpointing", step=3, steps=10, updated=1, tokens_per_second=1234, eta_seconds=61),
    )
    text = shown(live)
    for part in ("tiny  Running (checkpointing)", "1x2: dp2", "attempt 2, restarts 1", "step  3/10", " 30% eta 1m01s",
                 "loss 3.0000  1,234 tok/s", "\nloss █▅▁"):  # fmt: skip
        assert part in text, part


def test_progress_of_an_old_attempt_is_not_shown_for_the_new_one(live):
    old = Progress(attempt=1, phase="training", step=9, steps=10, updated=1, eta_seconds=61)
    live.progress(job_in("Restarting", attempt=2), old)
    text = shown(live)
    assert "step  0/10" in text
    assert "eta" not in text


def test_text_from_outside_is_not_markup(live):
    live.note("[red]x[/nonsense]")
    live.event(Event("Warning", "Bad", "[/] y"))
    live.end(end_as("Failed", log=Path("/l"), log_tail=("[/bold] z",)))
    text = live.console.file.getvalue()
    for part in ("[red]x[/nonsense]", "Bad: [/] y", "[/bold] z"):
        assert part in text


@pytest.mark.parametrize(
    ("values", "text"), [([], ""), ([1.0], ""), ([1.0, 1.0], "▁▁"), ([3.0, float("nan"), 1.0], "█▁")]
)
def test_spark(values, text):
    assert spark(values) == text
