"""`hftitan run` as a process, with the fake trainer: exit codes, restarts, signals, and no leftover processes."""

import json
import os
import signal
import socket
from pathlib import Path

import pytest

from hftitan_operator import net

SLOW = {"FAKE_STEP": "0.2"}


def objects(process):
    """Wait for a `-o json` run; return its output lines and its exit code."""
    out, err = process.communicate(timeout=60)
    assert "Traceback" not in err
    return [json.loads(line) for line in out.splitlines()], process.returncode


def of(lines, kind):
    return [line for line in lines if line["type"] == kind]


def metrics(workdir):
    path = workdir / "metrics.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def steps_done(workdir):
    return max((row["step"] for row in metrics(workdir)), default=0)


def both_train(workdir, step):
    """Whether node 0 has finished the step and node 1, which may be slower, has started its worker."""
    return steps_done(workdir) == step and (workdir / "env-1-1.json").exists()


def pid_of(workdir, pod):
    return int((workdir / ".pods" / pod / "pid").read_text())


def test_successful_job_reports_steps_and_leaves_no_process(hftitan, tmp_path, pids_of):
    run = tmp_path / "run"
    lines, code = objects(hftitan("-o", "json", env=SLOW))
    assert code == 0
    assert [line["phase"] for line in of(lines, "phase")] == ["Pending", "Starting", "Running", "Succeeded"]
    assert [(line["step"], line["loss"]) for line in of(lines, "step")] == [(n, 5.0 - n / 10) for n in range(1, 6)]
    end = lines[-1]
    assert end["type"] == "end"
    assert (end["exitCode"], end["reason"], end["step"], end["steps"]) == (0, "Completed", 5, 5)
    assert (end["attempt"], end["restarts"], end["checkpointStep"]) == (1, 0, 5)
    assert end["exportPath"] == str(run / "export")
    assert all(line["time"].endswith("Z") for line in lines)
    assert pids_of(run) == []
    assert json.loads((run / "status.json").read_text())["status"]["phase"] == "Succeeded"
    assert (run / "logs" / "tiny-1-0.log").read_text().startswith("agent ")
    # Each pod has its own address, both use the rendezvous at the first one's, and node 0's port is closed again.
    env = [json.loads((run / f"env-1-{i}.json").read_text()) for i in (0, 1)]
    assert env[0]["HFTITAN_POD_IP"] != env[1]["HFTITAN_POD_IP"]
    assert env[0]["PET_RDZV_ENDPOINT"] == env[1]["PET_RDZV_ENDPOINT"]
    assert env[0]["PET_RDZV_ENDPOINT"].startswith(env[0]["HFTITAN_POD_IP"] + ":")
    assert net.port_is_free(env[0]["HFTITAN_POD_IP"], 9400)


def test_user_error_fails_the_job_without_restart_and_prints_the_log(hftitan, tmp_path, pids_of):
    process = hftitan(fake="user:1:2")
    out, _ = process.communicate(timeout=60)
    assert process.returncode == 1
    assert "Failed (UserError) at step 1 of 5" in out
    assert "    UserError: no such dataset" in out
    assert f"log: {tmp_path / 'run' / 'logs' / 'tiny-1-0' / 'rank0.log'}" in out
    assert "attempt 2" not in out
    assert pids_of(tmp_path / "run") == []


def test_crash_restarts_the_gang_from_the_checkpoint(hftitan, tmp_path):
    lines, code = objects(hftitan("-o", "json", fake="crash:1:5"))
    assert code == 0
    assert lines[-1]["attempt"] == 2
    assert lines[-1]["restarts"] == 1
    rows = metrics(tmp_path / "run")
    assert [(row["attempt"], row["step"]) for row in rows] == [(1, 1), (1, 2), (1, 3), (1, 4), (2, 5)]


@pytest.mark.parametrize("scheduling", [{"gang": "kueue", "queue": "q"}, {"gang": "kubernetes", "topologyKey": "rack"}])
def test_job_with_a_gang_scheduler_runs_locally_and_restarts(hftitan, job_document, scheduling):
    """The same file works on a laptop and on a cluster: admission and placement have no effect on one machine."""
    lines, code = objects(hftitan("-o", "json", fake="crash:1:5", job=job_document(scheduling=scheduling)))
    assert (code, lines[-1]["attempt"], lines[-1]["phase"]) == (0, 2, "Succeeded")


def test_exhausted_restarts_exit_with_1_and_print_the_traceback(hftitan, job_document):
    job = job_document(runPolicy={"maxRestarts": 0})
    lines, code = objects(hftitan("-o", "json", fake="crash:1:3", job=job))
    assert code == 1
    assert lines[-1]["phase"] == "Failed"
    assert lines[-1]["log"].endswith("logs/tiny-1-0/rank0.log")
    assert lines[-1]["logTail"] == ["Traceback (most recent call last):", "Boom: the fake one"]


@pytest.mark.parametrize("pod", [0, 1])
def test_killed_pod_starts_a_second_attempt(hftitan, tmp_path, wait_for, pids_of, pod):
    run = tmp_path / "run"
    process = hftitan("-o", "json", fake="hang:1:4")
    wait_for(lambda: steps_done(run) == 4)
    os.kill(pid_of(run, f"tiny-1-{pod}"), signal.SIGKILL)
    lines, code = objects(process)
    assert code == 0
    assert (lines[-1]["attempt"], lines[-1]["restarts"]) == (2, 1)
    # The new gang starts after every process of the old one has ended, and resumes from the checkpoint.
    restarted = next(row for row in metrics(run) if row["attempt"] == 2)
    assert restarted["step"] == 5
    assert pids_of(run) == []


def test_killed_supervisor_takes_its_process_tree_down(hftitan, tmp_path, wait_for, pids_of):
    run = tmp_path / "run"
    process = hftitan("-o", "json", fake="hang:1:4")
    wait_for(lambda: steps_done(run) == 4)
    agent = pid_of(run, "tiny-1-1")
    supervisor = int(Path(f"/proc/{agent}/stat").read_text().rpartition(")")[2].split()[1])
    os.kill(supervisor, signal.SIGKILL)
    lines, code = objects(process)
    assert code == 0
    assert lines[-1]["attempt"] == 2
    assert pids_of(run) == []


@pytest.mark.parametrize(("number", "expected"), [(signal.SIGTERM, 143), (signal.SIGINT, 130), (signal.SIGHUP, 129)])
def test_signal_saves_a_checkpoint_and_the_next_run_resumes(hftitan, tmp_path, wait_for, pids_of, number, expected):
    run = tmp_path / "run"
    process = hftitan("-o", "json", fake="hang:1:3")
    wait_for(lambda: both_train(run, 3))
    process.send_signal(number)
    lines, code = objects(process)
    assert code == expected
    end = lines[-1]
    assert (end["phase"], end["reason"]) == ("Suspended", "Preempted")
    assert end["checkpointStep"] == end["step"] == 3
    assert all(line["reason"] != "Suspended" for line in of(lines, "event")), "the user did not suspend the job"
    assert json.loads((run / "status.json").read_text())["status"]["checkpoint"]["step"] == 3
    assert pids_of(run) == []

    again, code = objects(hftitan("-o", "json"))
    assert code == 0
    assert (again[-1]["attempt"], again[-1]["restarts"]) == (2, 0)
    assert [line["step"] for line in of(again, "step")] == [4, 5]
    first, second = (json.loads((run / f"env-{n}-0.json").read_text())["PET_RDZV_ID"] for n in (1, 2))
    assert first.removesuffix("-1") == second.removesuffix("-2")


def test_second_signal_kills_the_run(hftitan, tmp_path, wait_for, pids_of):
    run = tmp_path / "run"
    process = hftitan(fake="stubborn:1:0 hang:1:1")
    wait_for(lambda: steps_done(run) == 1)
    process.send_signal(signal.SIGINT)
    wait_for(lambda: json.loads((run / "status.json").read_text())["status"]["phase"] == "Suspended")
    assert pids_of(run)
    process.send_signal(signal.SIGINT)
    out, _ = process.communicate(timeout=20)
    assert process.returncode == 130
    assert "SIGINT again: killing" in out
    assert pids_of(run) == []


def test_killed_run_leaves_no_process_behind(hftitan, tmp_path, wait_for, pids_of):
    run = tmp_path / "run"
    process = hftitan(fake="hang:1:2")
    wait_for(lambda: both_train(run, 2))
    assert len(pids_of(run)) >= 6  # two supervisors, two agents, two workers
    process.kill()
    wait_for(lambda: not pids_of(run), timeout=5)
    # The lock is released as well, and the next run has a new attempt number.
    lines, code = objects(hftitan("-o", "json"))
    assert code == 0
    assert lines[-1]["attempt"] == 2


def test_second_run_in_a_busy_work_folder_is_refused(hftitan, tmp_path, wait_for):
    run = tmp_path / "run"
    first = hftitan(fake="hang:1:1")
    wait_for(lambda: steps_done(run) == 1)
    second = hftitan()
    _, err = second.communicate(timeout=30)
    assert second.returncode == 2
    assert f"{run} is in use by process {first.pid}; stop that run or use another --workdir" in err
    first.send_signal(signal.SIGTERM)
    first.communicate(timeout=30)
    assert first.returncode == 143


def test_parallel_runs_have_different_rendezvous(hftitan, tmp_path):
    first, second = hftitan("-o", "json", workdir="a"), hftitan("-o", "json", workdir="b")
    assert objects(first)[1] == objects(second)[1] == 0
    ends = {json.loads((tmp_path / w / "env-1-0.json").read_text())["PET_RDZV_ENDPOINT"] for w in "ab"}
    assert len(ends) == 2


def test_port_in_use_that_the_job_sets_is_an_error(hftitan, job_document):
    with socket.socket() as taken:
        taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        taken.bind(("0.0.0.0", 0))
        taken.listen()
        port = taken.getsockname()[1]
        process = hftitan(job=job_document(monitoring={"port": port}))
        _, err = process.communicate(timeout=30)
    assert process.returncode == 2
    assert f"job.yaml: spec.monitoring.port: {port} is in use on this machine by a server on all addresses" in err


def test_deadline_fails_a_hanging_job(hftitan, job_document, tmp_path, pids_of):
    job = job_document(runPolicy={"activeDeadlineSeconds": 2})
    lines, code = objects(hftitan("-o", "json", fake="hang:1:2", job=job))
    assert code == 1
    assert "spec.runPolicy.activeDeadlineSeconds" in lines[-1]["message"]
    assert pids_of(tmp_path / "run") == []


def test_clean_pod_policy_none_leaves_no_process(hftitan, job_document, tmp_path, pids_of):
    job = job_document(runPolicy={"activeDeadlineSeconds": 2, "cleanPodPolicy": "None"})
    process = hftitan(fake="hang:1:2", job=job)
    process.communicate(timeout=60)
    assert process.returncode == 1
    assert pids_of(tmp_path / "run") == []


def test_ttl_zero_keeps_the_work_folder(hftitan, job_document, tmp_path):
    process = hftitan(job=job_document(runPolicy={"ttlSecondsAfterFinished": 0}))
    out, _ = process.communicate(timeout=60)
    assert process.returncode == 0
    assert "Succeeded: step 5 of 5" in out
    assert (tmp_path / "run" / "export").is_dir()
