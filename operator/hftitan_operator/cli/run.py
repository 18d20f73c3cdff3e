"""Prepares a run from the arguments of `hftitan run`."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from hftitan_api import mesh
from hftitan_operator.cli.job_file import BadInput, JobFile, accept, lines, parse
from hftitan_operator.local.prepare import Prepared, localize, prepare


def prepare_run(
    source: str, settings: Sequence[str], volumes: Sequence[str], workdir: Path | None
) -> tuple[JobFile, Prepared]:
    """Adapt the job file to this machine. Raises BadInput with every reason why it cannot run here."""
    loaded = parse(source, settings)
    if loaded.job is None:
        raise BadInput(lines(source, loaded.problems))
    folders = volume_folders(volumes)
    # Localized before the checks: the work folder replaces the checkpoint volume, and mapped volumes change paths.
    file = accept(source, localize(loaded.job, folders))
    name = file.job.metadata.name
    prepared, problems = prepare(
        file.job,
        mesh.plan(file.job.spec, file.config),
        (workdir or Path("runs", name)).absolute(),
        environ=os.environ,
        volumes=folders,
    )
    if prepared is None:
        raise BadInput(lines(source, problems))
    return file, prepared


def volume_folders(volumes: Sequence[str]) -> dict[str, Path]:
    """Return the absolute folder of each volume from arguments such as `data=./corpus`. Raises BadInput."""
    found: dict[str, Path] = {}
    for volume in volumes:
        name, equals, folder = volume.partition("=")
        if not (name and equals and folder):
            raise BadInput([f"--volume {volume}: use NAME=FOLDER"])
        found[name] = Path(folder).expanduser().absolute()
    return found
