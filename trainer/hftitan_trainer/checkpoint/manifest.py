"""Defines a complete checkpoint: its folder has complete.json, and every file listed there has its full size.

DCP writes .metadata last. But after a file system lost data, or a folder was partly deleted or copied, .metadata can
exist while files are missing. complete.json is written after the save, atomically, and deleted first. No torch.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

FILE_NAME = "complete.json"
FORMAT = 1
_STEP = re.compile(r"step-(\d+)")


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A folder step-N as found on disk."""

    step: int
    path: Path
    problem: str | None
    """Why it cannot be loaded; None if it is complete."""
    info: Mapping[str, Any]
    """What `seal` recorded; empty without a readable manifest."""


def scan(folder: Path) -> list[Checkpoint]:
    """Return all checkpoints of a folder, newest step first."""
    try:
        entries = list(folder.iterdir())
    except FileNotFoundError:
        return []
    found = []
    for entry in entries:
        match = _STEP.fullmatch(entry.name)
        if match and entry.is_dir():
            problem, info = examine(entry)
            found.append(Checkpoint(int(match[1]), entry, problem, info))
    return sorted(found, key=lambda checkpoint: -checkpoint.step)


def examine(path: Path) -> tuple[str | None, dict[str, Any]]:
    """Return (what is wrong with the checkpoint or None, its manifest)."""
    try:
        info = json.loads((path / FILE_NAME).read_bytes())
        files = dict(info["files"])
    except FileNotFoundError:
        return f"it has no {FILE_NAME}: the save did not finish", {}
    except (OSError, ValueError, KeyError, TypeError) as error:
        return f"its {FILE_NAME} cannot be read: {error}", {}
    if info.get("format") != FORMAT:
        return f"its {FILE_NAME} has format {info.get('format')!r}, not {FORMAT}", info
    for name, size in files.items():
        try:
            there = (path / name).stat().st_size
        except OSError:
            return f"its file {name} is missing", info
        if there != size:
            return f"its file {name} has {there} of {size} bytes", info
    return None, info


def seal(path: Path, extents: Mapping[str, int], **info: Any) -> None:
    """Declare the checkpoint at `path` complete.

    `extents` has the files that the save produced, with the least size of each in bytes. Raises OSError;
    FileNotFoundError if a file is missing or too short.
    """
    for name, least in extents.items():
        size = (path / name).stat().st_size
        if size < least:
            raise FileNotFoundError(f"{path / name} has {size} bytes, {least} were written")
    files = {
        str(file.relative_to(path)): file.stat().st_size
        for file in sorted(path.rglob("*"))
        if file.is_file() and file.name != FILE_NAME
    }
    temporary = path / f".{FILE_NAME}.tmp"
    with temporary.open("w") as file:
        json.dump({"format": FORMAT, **info, "files": files}, file)
        file.flush()
        os.fsync(file.fileno())
    temporary.rename(path / FILE_NAME)
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def remove(path: Path) -> None:
    """Delete a checkpoint. It is incomplete from the first moment on. Missing files are not an error."""
    with contextlib.suppress(FileNotFoundError, IsADirectoryError):  # a folder is no manifest
        (path / FILE_NAME).unlink()
    shutil.rmtree(path, ignore_errors=True)


def prune(folder: Path, keep: int) -> list[Path]:
    """Delete all but the `keep` newest complete checkpoints, and incomplete ones older than the newest complete one.

    Return what was deleted. A newer incomplete checkpoint may be a save in progress.
    """
    found = scan(folder)
    complete = [checkpoint for checkpoint in found if checkpoint.problem is None]
    if not complete:
        return []
    kept = {checkpoint.step for checkpoint in complete[: max(1, keep)]}
    gone = [c.path for c in found if c.step not in kept and c.step < complete[0].step]
    for path in gone:
        remove(path)
    return gone
