"""The exit report: the cause is kept, in whatever order the ranks fail. No torch."""

from __future__ import annotations

import errno
import json
import multiprocessing
import time
from pathlib import Path
from typing import Any

import pytest

from hftitan_api.wire import TERMINATION_LOG_LIMIT, ExitReport, Progress
from hftitan_trainer.process.errors import NonFiniteLossError, StorageError, UserError
from hftitan_trainer.process.report import Reporter, classify, describe, encode, parse, redact

BLANK = ExitReport(reason="InternalError", retryable=True)


class OutOfMemoryError(RuntimeError):
    """Has the name of torch's."""


class DistNetworkError(RuntimeError):
    """Has the name of torch's."""


class CheckpointException(Exception):
    """Like DCP's: has the errors of the ranks in `failures`."""

    def __init__(self, failures: dict[int, Any]) -> None:
        super().__init__("CheckpointException ranks:dict_keys([1])")
        self.failures = failures


def caused(outer: Exception, inner: Exception) -> Exception:
    outer.__cause__ = inner
    return outer


@pytest.mark.parametrize(
    ("error", "step", "expected"),
    [
        (UserError("spec.mesh.tp", "no"), 0, ("UserError", False)),
        (caused(RuntimeError("wrapped"), UserError("spec.mesh.tp", "no")), 0, ("UserError", False)),
        (NonFiniteLossError(3, float("nan")), 2, ("NonFiniteLoss", False)),
        (RuntimeError("Loss is not finite (global_avg_loss=nan) at step 3"), 2, ("NonFiniteLoss", False)),
        (OutOfMemoryError("CUDA out of memory"), 0, ("OutOfMemory", False)),
        (OutOfMemoryError("CUDA out of memory"), 5, ("OutOfMemory", True)),
        (MemoryError(), 0, ("OutOfMemory", False)),
        (OSError(errno.ENOSPC, "No space left"), 0, ("StorageError", True)),
        (StorageError("x"), 0, ("StorageError", True)),
        (CheckpointException({1: (OSError(errno.EIO, "I/O"), None)}), 0, ("StorageError", True)),
        (RuntimeError("[gloo/transport/tcp/pair.cc:553] Connection closed by peer"), 0, ("NetworkError", True)),
        (DistNetworkError("The client socket has failed"), 0, ("NetworkError", True)),
        (RuntimeError("NCCL error in: ../ProcessGroupNCCL.cpp"), 0, ("NetworkError", True)),
        (ConnectionResetError(), 0, ("NetworkError", True)),
        (CheckpointException({1: (RuntimeError("Connection reset by peer gloo"), None)}), 0, ("NetworkError", True)),
        (ValueError("boom"), 0, ("InternalError", True)),
        (FileNotFoundError(errno.ENOENT, "x"), 0, ("InternalError", True)),
    ],
)  # fmt: skip
def test_errors_are_classified(error: Exception, step: int, expected: tuple[str, bool]) -> None:
    assert classify(error, step) == expected


def test_user_errors_are_described_by_field_others_by_type() -> None:
    assert describe(caused(RuntimeError("x"), UserError("spec.a", "b"))) == "spec.a: b"
    assert describe(KeyError("k")) == "KeyError: 'k'"
    assert describe(caused(RuntimeError("outer"), OSError(errno.ENOSPC, "full"))) == "OSError: [Errno 28] full"


def test_circular_causes_are_handled() -> None:
    first, second = ValueError("a"), ValueError("b")
    first.__cause__, second.__cause__ = second, first
    assert classify(first) == ("InternalError", True)


@pytest.mark.parametrize("character", ["x", '"', "\\", "é", "\n", "\x01", "😀", "\ud800"])
def test_a_report_fits_for_any_message(character: str) -> None:
    data = encode(BLANK.model_copy(update={"message": "begin" + character * 20_000 + "end"}))
    assert len(data) <= TERMINATION_LOG_LIMIT
    report = parse(data)
    assert report is not None
    assert report.message.startswith("begin")
    assert report.message.endswith("end")
    assert len(data) > TERMINATION_LOG_LIMIT // 3


def test_the_longest_report_of_node_0_fits() -> None:
    """With its progress, and with the longest path and revision, it is still JSON."""
    wide = dict.fromkeys(("loss", "grad_norm", "lr", "tokens_per_second", "mfu", "epoch"), -1.2345678901234568e-300)
    progress = Progress(
        attempt=2**31 - 1, phase="checkpointing", step=2**31 - 1, steps=2**31 - 1, updated=1_800_000_000.123456,
        step_seconds=1.2345678901234567e-300, eta_seconds=1.2345678901234567e-300, tokens_seen=2**53,
        worker_restarts=2**31 - 1, validation_step=2**31 - 1, validation_loss=-1.2345678901234567e-300,
        checkpoint_step=2**31 - 1, checkpoint_time=1_800_000_000.123456, resumed_from=2**31 - 1, **wide,
    )  # fmt: skip
    longest = {"export_path": "x" * 1024, "model_revision": "x" * 1024, "progress": progress, "message": "y" * 20_000}
    data = encode(BLANK.model_copy(update=longest))
    assert len(data) <= TERMINATION_LOG_LIMIT
    report = parse(data)
    assert report is not None
    assert report.progress == progress


def test_secrets_are_redacted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "s3cr3t-value")
    monkeypatch.setenv("WANDB_API_KEY", "anotherkey99")
    text = "401 for s3cr3t-value, anotherkey99, hf_abcdefghijklmnopqrstuvwxyz at https://me:pass@host/x"
    reporter = Reporter(tmp_path / "log")
    reporter.write(BLANK.model_copy(update={"message": text}))
    expected = "401 for [redacted], [redacted], [redacted] at https://[redacted]@host/x"
    assert json.loads((tmp_path / "log").read_text())["message"] == expected
    assert redact("short", {"TOKEN": "short"}) == "short"


@pytest.mark.parametrize(
    ("first", "second", "kept"),
    [
        ("NetworkError", "InternalError", "second"),
        ("NetworkError", "UserError", "second"),
        ("InternalError", "UserError", "second"),
        ("InternalError", "StorageError", "second"),
        ("UserError", "InternalError", "first"),
        ("InternalError", "NetworkError", "first"),
        ("InternalError", "InternalError", "first"),
        ("Preempted", "NetworkError", "first"),
        ("Preempted", "InternalError", "first"),
        ("NetworkError", "NetworkError", "first"),
        ("Completed", "InternalError", "first"),
    ],
)
def test_a_cause_replaces_its_consequences_and_the_first_of_equals_stays(
    tmp_path: Path, first: str, second: str, kept: str
) -> None:
    reporter = Reporter(tmp_path / "log")
    assert reporter.write(ExitReport(reason=first, retryable=True, message="first"))  # type: ignore[arg-type]
    written = reporter.write(ExitReport(reason=second, retryable=True, message="second"))  # type: ignore[arg-type]
    assert written == (kept == "second")
    there = reporter.read()
    assert there is not None
    assert there.message == kept


def test_a_shorter_report_replaces_a_longer_one_completely(tmp_path: Path) -> None:
    reporter = Reporter(tmp_path / "log")
    reporter.write(ExitReport(reason="NetworkError", retryable=True, message="x" * 2000))
    reporter.write(ExitReport(reason="UserError", retryable=False, message="y"))
    assert parse((tmp_path / "log").read_bytes()) == ExitReport(reason="UserError", retryable=False, message="y")


def test_a_restart_deletes_an_old_report_but_not_that_of_a_sibling(tmp_path: Path) -> None:
    reporter = Reporter(tmp_path / "log")
    reporter.clear_older(time.time())
    reporter.write(BLANK)
    written = (tmp_path / "log").stat().st_mtime
    reporter.clear_older(written - 0.1)
    assert reporter.read() == BLANK
    reporter.clear_older(written + 0.1)
    assert reporter.read() is None
    assert (tmp_path / "log").read_bytes() == b""
    Reporter(None).write(BLANK)  # without a termination log it does nothing


def die(path: Path, rank: int, delay: float, echo: bool) -> None:
    time.sleep(delay)
    error: Exception = RuntimeError("gloo: Connection closed by peer") if echo else ValueError("the cause")
    Reporter(path).write_failure(error, BLANK.model_copy(update={"rank": rank}))


def test_eight_ranks_fail_at_once_and_the_cause_is_kept(tmp_path: Path) -> None:
    """The rank with the cause writes last, after seven others have started to wait."""
    context = multiprocessing.get_context("fork")
    ranks = [context.Process(target=die, args=(tmp_path / "log", r, 0.3 if r == 5 else 0.0, r != 5)) for r in range(8)]
    for rank in ranks:
        rank.start()
    for rank in ranks:
        rank.join()
    report = Reporter(tmp_path / "log").read()
    assert report is not None
    assert (report.reason, report.rank, report.message) == ("InternalError", 5, "ValueError: the cause")


def test_a_network_error_is_reported_after_a_wait_and_at_once_when_the_pod_stops(tmp_path: Path) -> None:
    reporter = Reporter(tmp_path / "log")
    began = time.monotonic()
    reporter.write_failure(RuntimeError("gloo"), BLANK, wait=0.2)
    assert 0.2 <= time.monotonic() - began < 1.5
    (tmp_path / "log").unlink()
    began = time.monotonic()
    reporter.write_failure(RuntimeError("gloo"), BLANK, wait=60, over=lambda: True)
    assert time.monotonic() - began < 1
    there = reporter.read()
    assert there is not None
    assert there.reason == "NetworkError"
