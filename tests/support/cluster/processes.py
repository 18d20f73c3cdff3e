"""Helpers for programs that tests start: ports, a signing key, a memory folder, and an end together with the tests."""

from __future__ import annotations

import base64
import ctypes
import os
import secrets
import shutil
import signal
import socket
import tempfile
from pathlib import Path

PR_SET_PDEATHSIG = 1
SHM_PREFIX = "hftitan-etcd-"


def die_with_parent() -> None:
    """Run in the child: get SIGKILL when the starting thread ends, so that a killed test run leaves no process."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)


def alive(pid: int) -> bool:
    """Whether a process exists and is not a zombie."""
    try:
        return Path("/proc", str(pid), "stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def free_ports(count: int) -> list[int]:
    probes = [socket.socket() for _ in range(count)]
    for probe in probes:
        probe.bind(("127.0.0.1", 0))
    ports = [probe.getsockname()[1] for probe in probes]
    for probe in probes:
        probe.close()
    return ports


def signing_key() -> str:
    """Return a new P-256 key in PEM (RFC 5915). Any number works, because the reader computes the public key."""
    number = secrets.token_bytes(31).rjust(32, b"\x01")
    der = bytes.fromhex("30310201010420") + number + bytes.fromhex("a00a06082a8648ce3d030107")
    return f"-----BEGIN EC PRIVATE KEY-----\n{base64.encodebytes(der).decode()}-----END EC PRIVATE KEY-----\n"


def memory_folder(otherwise: Path) -> Path:
    """Return a folder in memory for etcd, which syncs at every write. Removes the folders of killed test runs."""
    shm = Path("/dev/shm")
    if not os.access(shm, os.W_OK):
        return Path(tempfile.mkdtemp(prefix="etcd-", dir=otherwise))
    for folder in shm.glob(f"{SHM_PREFIX}*"):
        owner = folder.name.removeprefix(SHM_PREFIX).split("-")[0]
        if not Path("/proc", owner).exists():
            shutil.rmtree(folder, ignore_errors=True)
    return Path(tempfile.mkdtemp(prefix=f"{SHM_PREFIX}{os.getpid()}-", dir=shm))
