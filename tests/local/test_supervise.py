"""The supervisor: exit codes, stop, kill, and no process left when the command or the parent ends."""

import os
import signal
import subprocess
import sys
import time

import pytest

from hftitan_operator.local import store
from hftitan_operator.local import supervise as local_supervise

# Like torchrun: a worker in its own session that ignores SIGTERM, and a grandchild that is orphaned immediately.
TREE = 'setsid sh -c "trap : TERM; while :; do sleep 5; done" & (setsid sleep 600 &) ; '


@pytest.fixture
def supervise(tmp_path):
    """Function: start a shell command under a supervisor; return it and a function that lists all its processes."""
    started = []

    def start(script):
        tag = f"{tmp_path.name}-{len(started)}"
        process = subprocess.Popen(
            [sys.executable, "-I", "-S", local_supervise.__file__, str(tmp_path / "log"), "sh", "-c", script],
            env={**os.environ, "TAG": tag},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            start_new_session=True,
        )
        started.append((process, tag))
        assert process.stdout.readline().startswith(b"pid ")
        return process, lambda: store.tagged("TAG", tag)

    yield start
    for process, tag in started:
        process.kill()
        process.wait()
        store.kill_tagged("TAG", tag)


@pytest.mark.parametrize(("script", "code"), [("exit 0", 0), ("exit 7", 7), ("kill -9 $$", 137), ("kill -15 $$", 143)])
def test_exit_code_is_that_of_the_command(supervise, script, code):
    process, _ = supervise(script)
    assert process.wait(10) == code


def test_remaining_processes_are_killed_when_the_command_exits(supervise):
    process, alive = supervise(TREE + "sleep 0.2; exit 3")
    assert process.wait(10) == 3
    assert alive() == []


def test_stop_lets_the_command_exit_by_itself(supervise, wait_for, tmp_path):
    process, alive = supervise("trap 'echo saved; exit 5' TERM; echo ready; sleep 600 & wait")
    wait_for((tmp_path / "log").read_text)
    process.stdin.write(b"stop 30\n")
    process.stdin.flush()
    assert process.wait(10) == 5
    assert (tmp_path / "log").read_text() == "ready\nsaved\n"
    assert alive() == []


def test_stop_sent_before_the_command_starts_is_not_lost(tmp_path):
    command = [sys.executable, "-I", "-S", local_supervise.__file__, str(tmp_path / "log"), "sleep", "60"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        process.stdin.write(b"stop 50\n")
        process.stdin.flush()
        assert process.wait(20) == 143


def test_stop_kills_the_tree_after_the_grace_period(supervise, wait_for, tmp_path):
    process, alive = supervise("trap '' TERM; " + TREE + "echo ready; while :; do sleep 1; done")
    wait_for((tmp_path / "log").read_text)
    process.stdin.write(b"stop 0.3\n")
    process.stdin.flush()
    started = time.monotonic()
    assert process.wait(10) == 137
    assert 0.25 < time.monotonic() - started < 5
    assert alive() == []


def test_second_stop_shortens_the_grace_period_and_sends_no_second_signal(supervise, wait_for, tmp_path):
    process, _ = supervise("trap 'echo term' TERM; echo ready; while :; do sleep 0.1; done")
    wait_for((tmp_path / "log").read_text)
    process.stdin.write(b"stop 600\n")
    process.stdin.flush()
    time.sleep(0.4)
    process.stdin.write(b"stop 0.3\n")
    process.stdin.flush()
    assert process.wait(10) == 137
    assert (tmp_path / "log").read_text() == "ready\nterm\n"


@pytest.mark.parametrize("end", ["kill", "close"])
def test_kill_command_or_closed_stdin_kills_the_tree(supervise, end):
    process, alive = supervise(TREE + "sleep 600")
    if end == "kill":
        process.stdin.write(b"kill\n")
        process.stdin.flush()
    else:
        process.stdin.close()
    assert process.wait(10) == 137
    assert alive() == []


def test_terminal_signals_do_not_reach_the_tree(supervise):
    process, alive = supervise("exec sleep 600")
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        process.send_signal(number)
    time.sleep(0.2)
    assert process.poll() is None
    assert len(alive()) == 2


def test_missing_command_exits_with_127(tmp_path):
    command = [sys.executable, "-I", "-S", local_supervise.__file__, str(tmp_path / "log"), "nonsuch-program"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.wait(10) == 127
    assert "cannot start nonsuch-program" in (tmp_path / "log").read_text()
