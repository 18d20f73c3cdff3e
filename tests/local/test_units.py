"""Small parts of a local run: paths, devices, threads, addresses, the saved job, the pod that decided the end."""

import asyncio
import json
import os
import signal
import socket
import threading
from pathlib import Path
from types import SimpleNamespace

import pytest

from hftitan_api.mesh import plan
from hftitan_api.models import CheckpointStatus, JobStatus
from hftitan_api.wire import ExitReport
from hftitan_operator import net
from hftitan_operator.core.state import PodView
from hftitan_operator.local import prepare as local_prepare
from hftitan_operator.local import store
from hftitan_operator.local.run import MetricsTail, decisive, failure_log, summary, tail_of

# --- adapting a job to the machine --------------------------------------------------------------------------


def test_paths_below_mapped_mounts_are_rewritten(make_job):
    job = make_job(
        model={"name": "/models/llama"},
        dataset={"path": "/data/corpus/a.jsonl"},
        pod={
            "volumes": [
                {"name": "data", "persistentVolumeClaim": {"claimName": "c"}},
                {"name": "deep", "persistentVolumeClaim": {"claimName": "d"}},
                {"name": "models", "persistentVolumeClaim": {"claimName": "m"}},
            ],
            "volumeMounts": [
                {"name": "data", "mountPath": "/data"},
                {"name": "deep", "mountPath": "/data/corpus", "subPath": "en"},
                {"name": "models", "mountPath": "/models/"},
            ],
        },
    )
    moved = local_prepare.localize(job, {"data": Path("/d"), "deep": Path("/e"), "models": Path("/m")}).spec
    assert (moved.model.name, moved.dataset.path) == ("/m/llama", "/e/en/a.jsonl")
    unmapped = local_prepare.localize(job, {}).spec
    assert (unmapped.model.name, unmapped.dataset.path) == ("/models/llama", "/data/corpus/a.jsonl")


def test_job_without_checkpoint_volume_gets_a_placeholder(make_job):
    assert local_prepare.localize(make_job(), {}).spec.checkpoint.volume == "work-folder"
    named = make_job(checkpoint={"volume": "theirs"})
    assert local_prepare.localize(named, {}).spec.checkpoint.volume == "theirs"


@pytest.mark.parametrize(
    ("chosen", "found"), [("0,2", ["0", "2"]), ("GPU-a, GPU-b", ["GPU-a", "GPU-b"]), ("", []), ("-1", [])]
)
def test_devices_come_from_cuda_visible_devices(chosen, found):
    assert local_prepare.devices({"CUDA_VISIBLE_DEVICES": chosen}) == found


def test_devices_are_counted_by_nvidia_smi(tmp_path, monkeypatch):
    tool = tmp_path / "nvidia-smi"
    tool.write_text("#!/bin/sh\necho 'GPU 0: A (UUID: x)'\necho '  MIG 1g'\necho 'GPU 1: A (UUID: y)'\n")
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    assert local_prepare.devices({}) == ["0", "1"]


@pytest.mark.parametrize(
    ("environ", "pod", "threads"),
    [
        ({"OMP_NUM_THREADS": "3"}, {}, 3),
        ({"OMP_NUM_THREADS": "3"}, {"env": [{"name": "OMP_NUM_THREADS", "value": "5"}]}, None),
        ({"OMP_NUM_THREADS": "3"}, {"resources": {"requests": {"cpu": "4"}}}, None),
        ({}, {}, max(1, len(os.sched_getaffinity(0)) // 2)),
    ],
)
def test_threads_per_rank(prepare, environ, pod, threads):
    assert prepare(environ=environ, pod=pod).machine.threads == threads


def test_stored_token_is_used_unless_hf_token_is_set(tmp_path):
    (tmp_path / "token").write_text("stored\n")
    assert local_prepare.with_token({"HF_HOME": str(tmp_path)})["HF_TOKEN"] == "stored"
    assert local_prepare.with_token({"HF_HOME": str(tmp_path), "HF_TOKEN": "mine"})["HF_TOKEN"] == "mine"
    assert "HF_TOKEN" not in local_prepare.with_token({"HF_HOME": str(tmp_path / "none")})


def test_default_port_in_use_is_replaced_with_a_note(make_job, monkeypatch, tmp_path):
    monkeypatch.setattr(local_prepare, "port_is_free", lambda address, port: port != 9400)
    job = local_prepare.localize(make_job(), {})
    prepared, problems = local_prepare.prepare(
        job, plan(job.spec), tmp_path, environ={"HOME": str(tmp_path)}, volumes={}
    )
    assert problems == []
    port = prepared.job.spec.monitoring.port
    assert port != 9400
    assert prepared.notes == (f"port 9400 is in use on this machine: /metrics and /progress are on port {port}",)


# --- loopback -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("gang", ["a", "b", "0f3c-1"])
def test_addresses_sort_by_pod_index_and_differ_between_gangs(gang):
    found = [net.loopback(gang, index) for index in range(100)]
    assert found == sorted(found)
    assert len(set(found)) == 100
    assert all(address.startswith("127.") and address != "127.0.0.1" for address in found)
    assert net.loopback(gang + "x", 0) != found[0]


def test_port_in_use_on_all_addresses_is_not_free():
    with socket.socket() as server:
        server.bind(("0.0.0.0", 0))
        server.listen()
        assert not net.port_is_free("127.9.9.9", server.getsockname()[1])
    assert net.port_is_free("127.9.9.9", net.free_port("127.9.9.9"))


PROGRESS = b'{"attempt":1,"phase":"training","step":7,"steps":9,"updated":1}'


@pytest.mark.parametrize(
    ("answer", "step"),
    [
        (b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\n" + PROGRESS, 7),
        (b"HTTP/1.1 404 Not Found\r\n\r\nno", None),
        (b"HTTP/1.1 200 OK\r\n\r\nno json", None),
        (b"HTTP/1.1 200 OK\r\n\r\n" + b"x" * 100_000, None),
        (b"", None),
        (None, None),
    ],
)
def test_fetch_progress_returns_none_for_a_bad_answer(answer, step):
    with socket.create_server(("127.0.0.1", 0)) as server:

        def serve():
            client, _ = server.accept()
            with client:
                client.recv(1000)
                if answer is None:
                    client.recv(1000)  # does not answer until the caller gives up
                else:
                    client.sendall(answer)

        thread = threading.Thread(target=serve)
        thread.start()
        found = asyncio.run(net.fetch_progress("127.0.0.1", server.getsockname()[1], timeout=0.5))
        thread.join(5)
    assert (found.step if found else None) == step


def test_fetch_progress_returns_none_without_a_server():
    assert asyncio.run(net.fetch_progress("127.0.0.1", net.free_port(), timeout=0.5)) is None


# --- the saved job ------------------------------------------------------------------------------------------


def test_new_folder_has_a_new_job(tmp_path):
    saved = store.load(tmp_path)
    assert (saved.generation, saved.status) == (0, JobStatus())
    assert saved.uid != store.load(tmp_path).uid


@pytest.mark.parametrize("phase", ["Running", "Succeeded", "Failed", "Restarting"])
def test_next_run_keeps_uid_and_attempt_as_a_suspended_job(tmp_path, phase):
    uid = store.load(tmp_path).uid
    checkpoint = CheckpointStatus(step=40)
    status = JobStatus(phase=phase, attempt=3, restarts=2, mesh="1x2", checkpoint=checkpoint, message="x")
    store.save(tmp_path, store.Saved(uid, 4, status))
    saved = store.load(tmp_path)
    assert (saved.uid, saved.generation) == (uid, 4)
    assert saved.status == JobStatus(phase="Suspended", attempt=3, checkpoint=checkpoint)


def test_stopped_job_keeps_its_counts(tmp_path):
    status = JobStatus(phase="Suspended", attempt=3, restarts=2, mesh="1x2", active_seconds=7)
    store.save(tmp_path, store.Saved(store.load(tmp_path).uid, 4, status))
    assert store.load(tmp_path).status == status.model_copy(update={"mesh": None})


@pytest.mark.parametrize("text", ["", "{}", '{"uid": "x", "generation": 1, "status": {}}', '{"uid": 1}', "[]"])
def test_damaged_status_is_refused(tmp_path, text):
    (tmp_path / "status.json").write_text(text)
    with pytest.raises(ValueError, match=r"status\.json is damaged .* move it away to start a new job in this folder"):
        store.load(tmp_path)


# --- metrics and logs ---------------------------------------------------------------------------------------


def test_metrics_tail_returns_complete_new_objects(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1}\n')
    tail = MetricsTail(path)
    assert list(tail.read()) == []
    with path.open("a") as file:
        file.write('{"step": 2}\nnonsense\n[3]\n{"step": ')
    assert list(tail.read()) == [{"step": 2}]
    with path.open("a") as file:
        file.write("3}\n")
    assert list(tail.read()) == [{"step": 3}]
    path.write_text('{"step": 9}\n')
    assert list(tail.read()) == [{"step": 9}]


def test_metrics_tail_of_a_missing_file_is_empty(tmp_path):
    tail = MetricsTail(tmp_path / "metrics.jsonl")
    assert list(tail.read()) == []
    (tmp_path / "metrics.jsonl").write_text(json.dumps({"step": 1}) + "\n")
    assert list(tail.read()) == [{"step": 1}]


def ended(index, code=1, reason=None, rank=0, deleting=False):
    report = ExitReport(reason=reason, retryable=reason != "UserError", rank=rank) if reason else None
    phase = "Succeeded" if code == 0 else "Failed"
    return PodView(f"p-{index}", "u", 1, index, phase=phase, exit_code=code, report=report, deleting=deleting)


@pytest.mark.parametrize(
    ("pods", "index"),
    [
        ([ended(0, reason="NetworkError"), ended(1, 137)], 1),
        ([ended(0, reason="NetworkError"), ended(1, reason="OutOfMemory")], 1),
        ([ended(0, 137, deleting=True), ended(1, reason="NetworkError")], 1),
        ([ended(0, reason="Preempted", deleting=True), ended(1, 1)], 1),
        ([ended(0, reason="InternalError"), ended(1, reason="UserError")], 1),
        ([ended(1, 0, reason="Completed"), ended(0, 0, reason="Completed")], 0),
    ],
)
def test_decisive_pod(make_job, pods, index):
    job = local_prepare.localize(make_job(), {})
    assert decisive(pods, plan(job.spec)).index == index


def test_failure_log_prefers_the_reporting_rank_then_a_traceback(prepare):
    machine = prepare().machine
    folder = machine.rank_logs("p-0")
    folder.mkdir(parents=True)
    machine.pod_log("p-0").write_text("agent\n")
    assert failure_log(machine, ended(0)) == machine.pod_log("p-0")
    (folder / "rank0.log").write_text("fine\n")
    (folder / "rank1.log").write_text("fine\nTraceback (most recent call last):\n  boom\n")
    assert failure_log(machine, ended(0)) == folder / "rank1.log"
    assert failure_log(machine, ended(0, reason="UserError", rank=0)) == folder / "rank0.log"


def test_tail_of_returns_the_last_lines(tmp_path):
    path = tmp_path / "log"
    path.write_bytes(b"".join(b"%d\n" % n for n in range(50_000)) + b"\xff last")
    assert tail_of(path, 2) == ["49999", "\ufffd last"]
    assert tail_of(tmp_path / "none") == []


def test_run_stopped_before_its_first_step_reports_the_saved_step(make_job):
    status = JobStatus(phase="Suspended", attempt=2, checkpoint=CheckpointStatus(step=4))
    cluster = SimpleNamespace(progress=None, ended=[], machine=None)
    job = local_prepare.localize(make_job(), {}).model_copy(update={"status": status})
    end = summary(job, cluster, signal.SIGINT, 1.0)
    assert (end.step, end.checkpoint_step, end.exit_code) == (4, 4, 130)
