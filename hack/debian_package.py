"""Unpacks programs of a Debian package without installing it, so that Debian starts no service."""

from __future__ import annotations

import fcntl
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path


def has_all(folder: Path, programs: Sequence[str]) -> bool:
    return all(os.access(folder / name, os.X_OK) for name in programs)


def given(variable: str, programs: Sequence[str]) -> Path | None:
    """Return the folder named by an environment variable, or None. SystemExit: a program is missing there."""
    folder = os.environ.get(variable)
    if folder and not has_all(Path(folder), programs):
        raise SystemExit(f"{variable}={folder}: {' or '.join(programs)} missing")
    return Path(folder) if folder else None


def unpacked(package: str, programs: Sequence[str], hint: str) -> Path:
    """Return the folder ~/.cache/hftitan/PACKAGE with the programs. The first call downloads them.

    `hint`: the alternative for the error message.
    """
    base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "hftitan"
    base.mkdir(parents=True, exist_ok=True)
    with open(base / f"{package}.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # another run may be unpacking the same package
        if not has_all(base / package, programs):
            _unpack(base, package, programs, hint)
    return base / package


def _unpack(base: Path, package: str, programs: Sequence[str], hint: str) -> None:
    print(f"downloading Debian's package {package}", file=sys.stderr, flush=True)
    with tempfile.TemporaryDirectory(prefix="making-", dir=base) as scratch:
        if not _download(package, scratch):
            subprocess.run(["apt-get", "update", "-qq"], check=True, stdout=sys.stderr)
            if not _download(package, scratch):
                raise SystemExit(f"package {package} not found; {hint}")
        [archive] = Path(scratch).glob(f"{package}_*.deb")
        subprocess.run(["dpkg-deb", "-x", archive, f"{scratch}/root"], check=True, stdout=sys.stderr)
        result = Path(scratch) / "result"
        result.mkdir()
        for name in programs:
            shutil.move(f"{scratch}/root/usr/bin/{name}", result / name)
        shutil.rmtree(base / package, ignore_errors=True)
        result.rename(base / package)


def _download(package: str, folder: str) -> bool:
    words = ["apt-get", "download", "-qq", "-oAPT::Sandbox::User=root", package]
    return subprocess.run(words, cwd=folder, stdout=sys.stderr).returncode == 0
