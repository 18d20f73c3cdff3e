"""The work folder of a local run: its lock, its status.json, and processes left by a run that was killed."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import signal
import time
import uuid
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from hftitan_api.models import JobStatus

STATUS_FILE = "status.json"
LOCK_FILE = ".lock"


class Busy(RuntimeError):
    """Another run holds the work folder."""


class WorkdirLock:
    """Allows one run at a time in a work folder. The kernel releases the lock when the process ends."""

    def __init__(self, workdir: Path) -> None:
        self._path = workdir / LOCK_FILE
        self._file: IO[str] | None = None

    def acquire(self) -> None:
        """Take the lock. Raises `Busy`, which names the process that holds it."""
        file = open(self._path, "a+", encoding="utf-8")  # noqa: SIM115 - held until release
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            file.seek(0)
            holder = file.read().strip()
            file.close()
            if error.errno not in (errno.EAGAIN, errno.EACCES):
                raise
            pid = f"process {holder}" if holder else "another process"
            raise Busy(f"{self._path.parent} is in use by {pid}; stop that run or use another --workdir") from None
        file.truncate(0)
        file.write(f"{os.getpid()}\n")
        file.flush()
        self._file = file

    def release(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None


@dataclass(frozen=True, slots=True)
class Saved:
    """What a run keeps for the next run in the same folder: the job's identity and status."""

    uid: str
    generation: int
    status: JobStatus


def load(workdir: Path) -> Saved:
    """Return the saved job, prepared for the next run; a new job in an empty folder.

    To the core, the next run resumes a suspended job: with a new attempt that does not count against maxRestarts.
    Attempt numbers are never reused, because they name logs and rendezvous. If the job was stopped, its counts are
    kept. After any other end, including a crash, they start at zero. Raises ValueError for an invalid file.
    """
    path = workdir / STATUS_FILE
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
        status = JobStatus.model_validate(document["status"])
        uid, generation = str(uuid.UUID(document["uid"])), int(document["generation"])
    except FileNotFoundError:
        return Saved(str(uuid.uuid4()), 0, JobStatus())
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path} is damaged ({error}); move it away to start a new job in this folder") from error
    if status.phase == "Suspended":
        # On a cluster the mesh of a suspended job is immutable; a local run may resume with another one.
        status = status.model_copy(update={"mesh": None})
    elif status.attempt:
        status = JobStatus(phase="Suspended", attempt=status.attempt, checkpoint=status.checkpoint)
    else:
        status = JobStatus()
    return Saved(uid, generation, status)


def save(workdir: Path, saved: Saved) -> None:
    """Write status.json atomically, so that no reader sees part of it, even if the run is killed."""
    document = {"uid": saved.uid, "generation": saved.generation, "status": saved.status.to_dict()}
    temporary = workdir / f".{STATUS_FILE}.tmp"
    temporary.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    temporary.replace(workdir / STATUS_FILE)


def tagged(variable: str, value: str) -> list[int]:
    """Return the ids of processes whose environment has `variable=value` and is readable by this user."""
    needle = f"{variable}={value}".encode()
    found = []
    for entry in os.listdir("/proc"):
        if not entry.isdigit() or int(entry) == os.getpid():
            continue
        try:
            with open(f"/proc/{entry}/environ", "rb") as file:
                if needle in file.read().split(b"\0"):
                    found.append(int(entry))
        except OSError:
            continue
    return found


def kill_tagged(variable: str, value: str, patience: float = 10.0) -> int:
    """SIGKILL every process with the tag, until none is left. Return how many were killed.

    This is for processes whose supervisor was killed; a supervisor that exits leaves none behind.
    """
    killed: set[int] = set()
    deadline = time.monotonic() + patience
    while (alive := tagged(variable, value)) and time.monotonic() < deadline:
        for pid in alive:
            killed.add(pid)
            try:
                os.kill(pid, signal.SIGKILL)
            except (ProcessLookupError, PermissionError):
                continue
        time.sleep(0.01)
    return len(killed)
