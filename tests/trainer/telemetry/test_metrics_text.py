"""The content of /metrics, /progress and metrics.jsonl. No torch."""

from __future__ import annotations

import json
import logging
import socket
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import replace
from http.server import ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from hftitan_api import metric_names as names
from hftitan_api.wire import Progress, TrainerSpec
from hftitan_trainer.process.environment import Environment
from hftitan_trainer.telemetry import serve as serve_module
from hftitan_trainer.telemetry.journal import Journal
from hftitan_trainer.telemetry.observer import DataSeen, StepReport
from hftitan_trainer.telemetry.run_observer import RunObserver, duration, step_line
from hftitan_trainer.telemetry.serve import Scrapes, bind_address, serve

SPEC = TrainerSpec.model_validate(
    {
        "jobName": "j",
        "jobNamespace": "n",
        "jobUid": "u",
        "mesh": {
            "nodes": 2, "ranksPerNode": 2, "dpReplicate": 1, "dpShard": 2, "cp": 1, "tp": 1, "pp": 2, "ep": 1,
            "device": "cpu",
        },
        "model": {"name": "a/b"},
        "dataset": {"path": "/d"},
        "training": {"steps": 10},
        "optimizer": {},
        "lrSchedule": {},
        "checkpoint": {},
        "monitoring": {},
    }
)  # fmt: skip
REPORT = StepReport(
    step=3, steps=10, loss=2.5, max_loss=2.75, grad_norm=1.5, lr=1e-4, tokens_per_second=400.0, tokens_seen=1200,
    step_seconds=2.0, data_seconds=0.5,
)  # fmt: skip


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def env(tmp_path: Path) -> Environment:
    return Environment(
        config=tmp_path / "c", output=tmp_path, termination_log=None, attempt=2, node_index=0, pod_ip=None, rank=0,
        local_rank=0, world_size=4, worker_restarts=1,
    )  # fmt: skip


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def observer(env: Environment, clock: Clock) -> RunObserver:
    return RunObserver(SPEC, env, journal=Journal(env.output / "metrics.jsonl", 2), launched=0.5, clock=clock)


@pytest.fixture
def server(observer: RunObserver) -> Iterator[ThreadingHTTPServer]:
    server = serve(observer, "127.0.0.1", 0, progress=True)
    yield server
    server.shutdown()
    server.server_close()


def get(server: ThreadingHTTPServer, path: str) -> str:
    with urllib.request.urlopen(f"http://127.0.0.1:{server.server_port}{path}", timeout=10) as answer:
        return str(answer.read().decode())


def samples(text: str) -> dict[str, float]:
    """Return the value by name and own labels."""
    found = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            own = {k: v for k, v in sample.labels.items() if k not in names.COMMON_LABELS}
            found[sample.name + (str(own) if own else "")] = sample.value
    return found


def test_the_table_follows_prometheus_naming() -> None:
    assert len({metric.name for metric in names.ALL}) == len(names.ALL)
    for metric in names.ALL:
        assert metric.name.startswith(names.PREFIX)
        assert metric.name.endswith("_total") == (metric.type == "counter")
        assert bool(metric.buckets) == (metric.type == "histogram")
        assert list(metric.buckets) == sorted(metric.buckets)
        assert metric.help.endswith(".")
        assert not metric.name.endswith(("_ms", "_milliseconds", "_percent", "_kb", "_mb", "_gib"))


def test_a_scrape_has_exactly_the_metrics_of_the_table(observer: RunObserver, server: ThreadingHTTPServer) -> None:
    observer.resumed(2)
    observer.phase("training")
    observer.step(replace(REPORT, mfu=0.4, memory_bytes=5, data=DataSeen(1.5, 30, 2, 3, 4)))
    observer.validated(3, 2.5, 100, 0.5)
    observer.saved(3, 1.5)
    observer.complete(3)
    table = {metric.name.removesuffix("_total"): metric for metric in names.TRAINER}
    seen = list(text_string_to_metric_families(get(server, "/metrics")))
    assert {family.name for family in seen} == set(table)
    for family in seen:
        metric = table[family.name]
        assert (family.type, family.documentation) == (metric.type, metric.help)
        for sample in family.samples:
            assert set(sample.labels) - {"le"} == {*names.COMMON_LABELS, *metric.labels}
            assert [sample.labels[label] for label in names.COMMON_LABELS] == ["n", "j", "0"]


def test_a_scrape_has_the_values_of_a_step(observer: RunObserver, server: ThreadingHTTPServer, clock: Clock) -> None:
    observer.phase("training")
    clock.now = 1010.0
    observer.step(REPORT)
    found = samples(get(server, "/metrics"))
    assert found["hftitan_loss"] == 2.5
    assert found["hftitan_tokens_total"] == 1200
    assert found["hftitan_device_tokens_per_second"] == 100
    assert found["hftitan_data_wait_seconds_total"] == 0.5
    assert found["hftitan_last_progress_timestamp_seconds"] == 1010.0
    assert found["hftitan_step_duration_seconds_sum"] == 2.0
    assert found["hftitan_step_duration_seconds_bucket{'le': '1.0'}"] == 0
    assert found["hftitan_step_duration_seconds_bucket{'le': '2.0'}"] == 1
    assert found["hftitan_step_duration_seconds_bucket{'le': '+Inf'}"] == 1
    assert found["hftitan_trainer_phase{'phase': 'training'}"] == 1
    assert found["hftitan_trainer_phase{'phase': 'loading'}"] == 0
    assert found["hftitan_startup_duration_seconds{'stage': 'start'}"] == 0.5
    assert found["hftitan_startup_duration_seconds{'stage': 'first_step'}"] == 10.0
    # Unknown values are absent, not zero.
    assert "hftitan_mfu_ratio" not in found
    assert "hftitan_memory_peak_bytes" not in found
    assert "hftitan_checkpoint_step" not in found


def test_progress_before_and_after_a_step(observer: RunObserver, server: ThreadingHTTPServer, clock: Clock) -> None:
    assert Progress.model_validate_json(get(server, "/progress")) == Progress(
        attempt=2, phase="starting", steps=10, updated=1000.0, worker_restarts=1
    )
    observer.fetched("abc")
    observer.resumed(2)
    observer.complete(2)
    observer.phase("training")
    clock.now = 1007.0
    observer.step(REPORT)
    observer.exported(Path("/e"))
    assert Progress.model_validate_json(get(server, "/progress?x=1")) == Progress(
        attempt=2, phase="training", step=3, steps=10, loss=2.5, grad_norm=1.5, lr=1e-4, tokens_per_second=400.0,
        step_seconds=2.0, eta_seconds=14.0, tokens_seen=1200, updated=1007.0, worker_restarts=1, checkpoint_step=2,
        checkpoint_time=1000.0, export_path="/e", model_revision="abc", resumed_from=2,
    )  # fmt: skip


def test_the_eta_ignores_the_slow_first_step(observer: RunObserver) -> None:
    observer.step(replace(REPORT, step=1, step_seconds=100.0))
    assert observer.progress().eta_seconds == 900.0
    observer.step(replace(REPORT, step=2, step_seconds=1.0))
    assert observer.progress().eta_seconds == 8.0
    observer.step(replace(REPORT, step=3, step_seconds=2.0))
    assert observer.progress().eta_seconds == pytest.approx(7.7)
    observer.phase("done")
    assert observer.progress().eta_seconds == 0.0


def test_step_seconds_are_the_mean_of_all_steps_but_the_first(observer: RunObserver) -> None:
    """Goodput is computed from it; with the newest step alone it would jump."""
    seen = []
    for seconds in (100.0, 1.0, 2.0, 6.0):
        observer.step(replace(REPORT, step_seconds=seconds))
        seen.append(observer.progress().step_seconds)
    assert seen == [100.0, 1.0, 1.5, 3.0]


def test_a_validation_appears_in_the_log_progress_and_metrics(
    observer: RunObserver, server: ThreadingHTTPServer, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level("INFO"):
        observer.validated(3, 2.5, 100, 0.51)
    assert "validation at step 3: loss 2.50000 over 100 tokens, 0.5 s" in caplog.text
    progress = Progress.model_validate_json(get(server, "/progress"))
    assert (progress.validation_step, progress.validation_loss) == (3, 2.5)
    assert 'hftitan_validation_loss{job_name="j",' in get(server, "/metrics")


def test_consumed_data_appears_in_journal_metrics_and_progress(
    observer: RunObserver, server: ThreadingHTTPServer, env: Environment
) -> None:
    observer.step(replace(REPORT, data=DataSeen(1.5, 30, 2, 3, 0)))
    line = read(env.output / "metrics.jsonl")[0]
    assert (line["epoch"], line["documents"], line["documentsTruncated"], line["documentsTooLong"]) == (1.5, 30, 2, 3)
    assert "documentsEmpty" not in line
    text = get(server, "/metrics")
    for words in ("hftitan_epoch{", "hftitan_documents_total{", "hftitan_documents_truncated_total{", 'reason="empty"'):
        assert words in text
    assert Progress.model_validate_json(get(server, "/progress")).epoch == 1.5


def test_a_nan_loss_is_null_in_json(observer: RunObserver, server: ThreadingHTTPServer) -> None:
    observer.step(replace(REPORT, loss=float("nan")))
    assert json.loads(get(server, "/progress"))["loss"] is None


def test_only_node_0_serves_progress(observer: RunObserver) -> None:
    server = serve(observer, "127.0.0.1", 0, progress=False)
    try:
        assert get(server, "/healthz") == "ok\n"
        for path in ("/progress", "/nothing"):
            with pytest.raises(urllib.error.HTTPError, match="404"):
                get(server, path)
    finally:
        server.shutdown()
        server.server_close()


def test_a_port_in_use_is_a_warning_and_a_free_one_is_used(
    observer: RunObserver, caplog: pytest.LogCaptureFixture
) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with caplog.at_level(logging.WARNING):
            server = serve(observer, "127.0.0.1", port, progress=True)
    try:
        assert server.server_port != port
        assert f"spec.monitoring.port: 127.0.0.1:{port} cannot be used" in caplog.text
        assert get(server, "/healthz") == "ok\n"
    finally:
        server.shutdown()
        server.server_close()


def test_an_in_place_restart_uses_the_same_port(observer: RunObserver) -> None:
    first = serve(observer, "127.0.0.1", 0, progress=True)
    get(first, "/healthz")  # the server closes first, so the connection still occupies the port
    first.shutdown()
    first.server_close()
    second = serve(observer, "127.0.0.1", first.server_port, progress=True)
    try:
        assert second.server_port == first.server_port
    finally:
        second.shutdown()
        second.server_close()


@pytest.mark.parametrize(
    ("pod_ip", "address"),
    [(None, "127.0.0.1"), ("127.4.0.2", "127.4.0.2"), ("10.1.2.3", "0.0.0.0"), ("fd00::5", "::"), ("::1", "::1")],
)
def test_the_address_to_listen_on(pod_ip: str | None, address: str) -> None:
    assert bind_address(pod_ip) == address


def read(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_the_journal_has_steps_start_up_checkpoints_and_the_end(observer: RunObserver, env: Environment) -> None:
    observer.step(replace(REPORT, grad_norm=float("inf")))
    observer.saved(3, 0.25)
    observer.complete(3)
    observer.ended("Preempted", "SIGTERM")
    lines = read(env.output / "metrics.jsonl")
    assert [line["kind"] for line in lines] == ["step", "startup", "checkpoint", "end"]
    assert all(line["attempt"] == 2 and line["time"] > 0 for line in lines)
    step = lines[0]
    assert (step["loss"], step["lossMax"], step["gradNorm"], step["deviceTokensPerSecond"]) == (2.5, 2.75, None, 100.0)
    assert "mfu" not in step
    assert lines[1]["seconds"] == {"start": 0.5, "first_step": 0.0}
    assert (lines[3]["reason"], lines[3]["step"]) == ("Preempted", 3)


@pytest.mark.parametrize("torn", ["", '{"kind":"st', '{"kind":"step","loss":' + "1" * 9000])
def test_an_incomplete_last_line_is_removed_and_writing_continues(tmp_path: Path, torn: str) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"kind":"old"}\n' + torn)
    Journal(path, 2).write("new", value=1)
    assert [line["kind"] for line in read(path)] == ["old", "new"]


def test_a_journal_that_cannot_be_written_logs_a_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "file").write_text("")
    with caplog.at_level(logging.WARNING):
        journal = Journal(tmp_path / "file" / "metrics.jsonl", 1)
        journal.write("step", step=1)
    assert f"stopped writing {tmp_path}/file/metrics.jsonl: " in caplog.text


def test_a_full_disk_logs_one_warning_and_does_not_raise(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        journal = Journal(Path("/dev/full"), 1)
        journal.write("step", step=1)
        journal.write("step", step=2)
    assert caplog.text.count("No space left on device") == 1


def test_the_log_line_of_a_step() -> None:
    report = replace(REPORT, mfu=0.413, memory_bytes=3 * 2**30)
    assert step_line(report, 4330.0) == (
        "step 3/10  loss 2.50000  grad norm 1.5000  lr 0.0001  400 tok/s  2.00 s  data 0.50 s  mfu 41.3%  3.0 GiB"
        "  eta 1h12m"
    )
    assert step_line(replace(REPORT, data_seconds=0.0), None).endswith("400 tok/s  2.00 s")


@pytest.mark.parametrize(("seconds", "text"), [(0.4, "0s"), (59.6, "1m00s"), (185, "3m05s"), (3600, "1h00m")])
def test_durations_as_text(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def test_the_process_waits_for_the_last_of_regular_scrapes(
    observer: RunObserver, monkeypatch: pytest.MonkeyPatch
) -> None:
    scrapes, now = Scrapes(), [0.0]
    monkeypatch.setattr(serve_module, "time", SimpleNamespace(monotonic=lambda: now[0]))
    server = serve(observer, "127.0.0.1", 0, progress=True, scrapes=scrapes)

    def scrape() -> None:
        """A scrape counts after its answer has been sent."""
        seen = scrapes._count
        get(server, "/metrics")
        with scrapes._came:
            assert scrapes._came.wait_for(lambda: scrapes._count > seen, 10)

    try:
        scrapes.wait_for_one_more()  # no scrapes: it returns
        scrape()
        scrapes.wait_for_one_more()  # one scrape is not regular
        now[0] = 30.0
        scrape()
        ending = threading.Thread(target=scrapes.wait_for_one_more)
        ending.start()
        get(server, "/progress")
        ending.join(0.2)
        assert ending.is_alive(), "the scrape is due in 30 seconds"
        scrape()
        ending.join(10)
        assert not ending.is_alive()
    finally:
        server.shutdown()
        server.server_close()


def test_the_process_does_not_wait_for_an_overdue_scrape() -> None:
    scrapes = Scrapes()
    scrapes.note()
    scrapes.note()
    scrapes.wait_for_one_more()
