"""Where the scripts of this folder keep the programs that they download or build."""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path


class Unavailable(Exception):
    """This method cannot provide the programs."""


def say(text: str) -> None:
    print(f"{Path(sys.argv[0]).name}: {text}", file=sys.stderr, flush=True)


def missing(folder: Path, programs: Sequence[str]) -> list[str]:
    return [name for name in programs if not os.access(folder / name, os.X_OK)]


def given(variable: str, programs: Sequence[str]) -> Path | None:
    """Return the folder named by an environment variable, or None. Unavailable: a program is missing there."""
    folder = os.environ.get(variable)
    if folder and (lacking := missing(Path(folder), programs)):
        raise Unavailable(f"{variable}={folder}: {', '.join(lacking)} missing")
    return Path(folder) if folder else None


def cache() -> Path:
    folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "hftitan"
    folder.mkdir(parents=True, exist_ok=True)
    return folder


@contextlib.contextmanager
def locked(name: str) -> Iterator[None]:
    """Hold a lock of the cache, and remove what killed runs with this lock left there."""
    with open(cache() / f"{name}.lock", "w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say(f"waiting for another run that provides {name}")
            fcntl.flock(lock, fcntl.LOCK_EX)
        for left in cache().glob(f"making-{name}-*"):
            shutil.rmtree(left)
        yield


@contextlib.contextmanager
def made(name: str, folder: Path) -> Iterator[tuple[Path, Path]]:
    """Yield a work folder and a result folder. The result replaces `folder` at the end, unless there was an error."""
    with tempfile.TemporaryDirectory(prefix=f"making-{name}-", dir=cache()) as scratch:
        work, result = Path(scratch) / "work", Path(scratch) / "result"
        work.mkdir()
        result.mkdir()
        yield work, result
        shutil.rmtree(folder, ignore_errors=True)
        folder.parent.mkdir(exist_ok=True)
        result.rename(folder)


def command(*words: str, cwd: Path | None = None, env: dict[str, str] | None = None) -> None:
    """Run a command with its output on stderr. Unavailable: it fails."""
    environ = {**(env or os.environ), "DEBIAN_FRONTEND": "noninteractive", "LC_ALL": "C"}
    done = subprocess.run(words, cwd=cwd, env=environ, stdin=subprocess.DEVNULL, stdout=sys.stderr)
    if done.returncode:
        raise Unavailable(f"`{' '.join(words)[:200]}` failed with exit code {done.returncode}")
