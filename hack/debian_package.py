"""Unpacks programs of a Debian package without installing it, so that Debian starts no service."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from programs import Unavailable, cache, command, locked, made, missing, say


def unpacked(package: str, programs: Sequence[str], hint: str) -> Path:
    """Return the folder ~/.cache/hftitan/PACKAGE with the programs. The first call downloads them.

    `hint`: the alternative for the error message.
    """
    with locked(package):
        if missing(cache() / package, programs):
            say(f"downloading Debian's package {package}")
            with made(package, cache() / package) as (work, result):
                _unpack(package, programs, hint, work, result)
    return cache() / package


def _unpack(package: str, programs: Sequence[str], hint: str, work: Path, result: Path) -> None:
    if not _download(package, work):
        command("apt-get", "update", "-qq")
        if not _download(package, work):
            raise Unavailable(f"package {package} not found; {hint}")
    [archive] = work.glob(f"{package}_*.deb")
    command("dpkg-deb", "-x", str(archive), str(work / "root"))
    for name in programs:
        program = next((work / "root/usr").glob(f"*bin/{name}"))
        shutil.copy(program, result / name)


def _download(package: str, folder: Path) -> bool:
    words = ["apt-get", "download", "-qq", "-oAPT::Sandbox::User=root", package]
    return subprocess.run(words, cwd=folder, stdout=sys.stderr).returncode == 0
