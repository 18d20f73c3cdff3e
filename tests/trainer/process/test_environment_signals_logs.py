"""Environment, signals and logs of a rank. No torch."""

from __future__ import annotations

import json
import logging
import subprocess
import sys
from pathlib import Path

import pytest

from hftitan_trainer.process import signals
from hftitan_trainer.process.environment import Environment, default_rendezvous
from hftitan_trainer.process.errors import UserError
from hftitan_trainer.telemetry import logs

DOCUMENT = {
    "jobName": "j", "jobNamespace": "n", "jobUid": "u",
    "mesh": {
        "nodes": 1, "ranksPerNode": 2, "dpReplicate": 1, "dpShard": 2, "cp": 1, "tp": 1, "pp": 1, "ep": 1,
        "device": "cpu",
    },
    "model": {"name": "a/b"}, "dataset": {"path": "/d"}, "training": {"steps": 1}, "optimizer": {}, "lrSchedule": {},
    "checkpoint": {}, "monitoring": {},
}  # fmt: skip


def environment(tmp_path: Path, **changes: str) -> Environment:
    (tmp_path / "spec.json").write_text(json.dumps(DOCUMENT))
    return Environment.read(
        {"HFTITAN_CONFIG": str(tmp_path / "spec.json"), "HFTITAN_OUTPUT": str(tmp_path / "out"), **changes}
    )


def test_the_environment_with_all_and_with_only_required_variables(tmp_path: Path) -> None:
    full = environment(
        tmp_path, HFTITAN_TERMINATION_LOG="/t", HFTITAN_ATTEMPT="3", HFTITAN_NODE_INDEX="1", HFTITAN_POD_IP="10.0.0.1",
        RANK="5", LOCAL_RANK="1", WORLD_SIZE="8", TORCHELASTIC_RESTART_COUNT="2",
    )  # fmt: skip
    assert (full.termination_log, full.attempt, full.node_index, full.pod_ip) == (Path("/t"), 3, 1, "10.0.0.1")
    assert (full.rank, full.local_rank, full.world_size, full.worker_restarts) == (5, 1, 8, 2)
    least = environment(tmp_path)
    assert (least.termination_log, least.attempt, least.rank, least.world_size) == (None, 1, 0, 1)
    with pytest.raises(UserError, match="HFTITAN_CONFIG: is not set; start the trainer with the operator or"):
        Environment.read({})


def test_the_spec_is_read_and_must_match_the_number_of_processes(tmp_path: Path) -> None:
    assert environment(tmp_path, WORLD_SIZE="2").spec().job_name == "j"
    with pytest.raises(UserError, match=r"spec\.mesh: 1 nodes x 2 ranks are 2 processes, but 1 were started"):
        environment(tmp_path).spec()
    env = environment(tmp_path, WORLD_SIZE="2")
    env.config.write_text(json.dumps({**DOCUMENT, "training": {"steps": 0}}))
    with pytest.raises(UserError, match=r"is not a valid TrainerSpec: training\.steps: Input should be greater"):
        env.spec()
    env.config.unlink()
    with pytest.raises(UserError, match="cannot be read: No such file"):
        env.spec()


def test_a_single_process_gets_a_rendezvous_and_torchruns_is_kept() -> None:
    env: dict[str, str] = {}
    default_rendezvous(env)
    assert {key: env[key] for key in ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR")} == {
        "RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1",
    }  # fmt: skip
    assert int(env["MASTER_PORT"]) > 1023
    given = {"RANK": "3"}
    default_rendezvous(given)
    assert given == {"RANK": "3"}


@pytest.mark.parametrize(
    ("children", "lost"),
    [
        ([("S", True), ("R", True)], False),
        ([("S", True), ("Z", True)], True),
        ([("S", True)], True),
        ([("S", True), ("S", False)], True),  # another process' child
    ],
)
def test_a_missing_sibling_is_detected(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, children: list[tuple[str, bool]], lost: bool
) -> None:
    monkeypatch.setattr("os.getppid", lambda: 77)
    for pid, (state, ours) in enumerate(children, start=100):
        (tmp_path / str(pid)).mkdir()
        (tmp_path / str(pid) / "stat").write_text(f"{pid} (a (b) c) {state} {77 if ours else 5} 1 1 0")
    (tmp_path / "100000").mkdir()  # exits between listing and reading
    (tmp_path / "self").mkdir()
    env = {"TORCHELASTIC_RUN_ID": "x", "LOCAL_WORLD_SIZE": "2"}
    assert signals.siblings_lost(env, tmp_path) is lost
    assert not signals.siblings_lost({"LOCAL_WORLD_SIZE": "2"}, tmp_path)
    assert not signals.siblings_lost(env, tmp_path / "no-proc")


def test_the_agent_is_stopped_only_if_it_exists(monkeypatch: pytest.MonkeyPatch) -> None:
    sent: list[tuple[int, int]] = []
    monkeypatch.setattr("os.getppid", lambda: 77)
    monkeypatch.setattr("os.kill", lambda pid, number: sent.append((pid, number)))
    signals.stop_agent({})
    assert sent == []
    signals.stop_agent({"TORCHELASTIC_RUN_ID": "x"})
    assert sent == [(77, 15)]


@pytest.mark.parametrize(
    ("script", "code", "output"),
    [
        # Outside the loop the process exits, although its main thread is blocked.
        ("kill(15); lock.acquire(); lock.acquire()", 143, "SIGTERM False\n"),
        # Inside the loop only the flag is set.
        ("stop.training(True); kill(15); time.sleep(1); print(stop(), stop.signal_name)", 0, "True SIGTERM\n"),
        # A loop that starts just after the signal sees the flag.
        ("kill(2); stop.training(True); time.sleep(1); print(stop(), stop.signal_name)", 0, "True SIGINT\n"),
        # A second Ctrl-C exits at once.
        ("stop.training(True); kill(2); time.sleep(.5); kill(2); time.sleep(9)", 130, ""),
    ],
)  # fmt: skip
def test_signals_inside_and_outside_the_loop(script: str, code: int, output: str) -> None:
    program = (
        "import os, threading, time\nfrom hftitan_trainer.process import signals\nlock = threading.Lock()\n"
        "def kill(number): os.kill(os.getpid(), number)\n"
        "stop = signals.StopFlag(lambda *words: print(*words, flush=True))\nstop.install()\n" + script
    )
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=30)
    assert (ended.returncode, ended.stdout) == (code, output), ended.stderr


@pytest.mark.parametrize(
    ("rank", "level", "seen"),
    [
        (0, "", ["ours info", "ours warning", "theirs error"]),
        (1, "", ["ours warning", "theirs error"]),
        (0, "debug", ["ours info", "ours warning", "theirs info", "theirs warning", "theirs error"]),
    ],
)
def test_messages_by_rank_and_level(rank: int, level: str, seen: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    root = logging.getLogger()
    handlers, before = root.handlers[:], root.level
    try:
        env = {"HFTITAN_LOG_LEVEL": level}
        logs.configure(rank, env)
        ours = logging.getLogger("hftitan_trainer.x")
        ours.info("ours info")
        ours.warning("ours warning")
        root.info("theirs info")
        root.warning("theirs warning")
        root.error("theirs error")
        lines = capsys.readouterr().out.splitlines()
        assert [" ".join(line.split()[-2:]) for line in lines] == seen
        assert f"[rank {rank}]" in lines[0]
        assert ("HF_HUB_DISABLE_PROGRESS_BARS" in env) == (level != "debug")
    finally:
        root.handlers[:] = handlers
        root.setLevel(before)


def test_secrets_are_not_logged(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "very-secret-value")
    root = logging.getLogger()
    handlers, before = root.handlers[:], root.level
    try:
        logs.configure(0, {})
        logging.getLogger("hftitan_trainer.x").warning("token %s", "very-secret-value")
        assert capsys.readouterr().out.endswith("token [redacted]\n")
    finally:
        root.handlers[:] = handlers
        root.setLevel(before)


def test_the_entry_point_does_not_import_torch() -> None:
    """Signal handlers and server must start at once: their imports are the first seconds of the start-up."""
    code = (
        "import sys; import hftitan_trainer.__main__;"
        "print([m for m in ('torch', 'transformers', 'datasets', 'numpy') if m in sys.modules])"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"
