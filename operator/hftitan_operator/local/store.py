"""The work folder of a local run: its lock, its status.json, and leftover processes of a run that died."""

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
    """At most one run in a work folder. The kernel drops the lock with the process, however that ends."""

    def __init__(self, workdir: Path) -> None:
        self._path = workdir / LOCK_FILE
        self._file: IO[str] | None = None

    def acquire(self) -> None:
        """Raises `Busy`, naming the process that holds the folder."""
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
            raise Busy(f"{self._path.parent} is in use by {pid}; stop that run or give another --workdir") from None
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
    """What outlives a run: who the job is, and how far it came."""

    uid: str
    generation: int
    status: JobStatus


def load(workdir: Path) -> Saved:
    """The saved job, ready for its next life; a new one in an empty folder.

    To the core every next life is a suspended job that goes on: with a new attempt (numbers are never used twice,
    since they name logs and rendezvous) that costs no restart. What was counted is kept when the job was stopped;
    after any other end, also one that nobody could write down, it starts anew. Raises ValueError for a file that is
    not ours.
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
        # The mesh of a stopped job is fixed in a cluster; here its next life may have another.
        status = status.model_copy(update={"mesh": None})
    elif status.attempt:
        status = JobStatus(phase="Suspended", attempt=status.attempt, checkpoint=status.checkpoint)
    else:
        status = JobStatus()
    return Saved(uid, generation, status)


def save(workdir: Path, saved: Saved) -> None:
    """Write status.json in one piece: a reader, or a run that is killed, never sees half of it."""
    document = {"uid": saved.uid, "generation": saved.generation, "status": saved.status.to_dict()}
    temporary = workdir / f".{STATUS_FILE}.tmp"
    temporary.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    temporary.replace(workdir / STATUS_FILE)


def tagged(variable: str, value: str) -> list[int]:
    """Process ids of this user whose environment holds `variable=value`."""
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
    """SIGKILL whatever carries the tag, until nothing does; how many there were.

    The supervisors leave nothing behind; this is for the case that they themselves were killed.
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
