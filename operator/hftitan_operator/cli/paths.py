"""Warns about paths of a job that are missing on this machine."""

from __future__ import annotations

import os
from collections.abc import Iterator

from hftitan_api.models import HFTitanJob, JobSpec
from hftitan_operator.core.rendering.podcheck import CACHE_DIR, OUTPUT_DIR


def warnings(job: HFTitanJob) -> list[str]:
    """Return one warning for each local path of the model and the data that does not exist here.

    These are not errors, because the pods may have other files. Paths below a volume that the job mounts are skipped.
    """
    mounts = _mounts(job.spec)
    return [
        f"{field}: {path} does not exist on this machine; pods may still have it, through their image or a volume in "
        "spec.pod.volumeMounts"
        for field, path in _paths(job.spec)
        if not any(_below(path, mount) for mount in mounts) and _missing(path)
    ]


def _paths(spec: JobSpec) -> Iterator[tuple[str, str]]:
    if spec.model.name.startswith("/"):
        yield "spec.model.name", spec.model.name
    if spec.dataset.path is not None:
        yield "spec.dataset.path", spec.dataset.path
    if spec.validation is not None and spec.validation.dataset.path is not None:
        yield "spec.validation.dataset.path", spec.validation.dataset.path


def _mounts(spec: JobSpec) -> list[str]:
    found = [mount.mount_path for mount in spec.pod.volume_mounts]
    if spec.checkpoint.volume is not None:
        found.append(OUTPUT_DIR)
    if spec.pod.cache_volume is not None:
        found.append(CACHE_DIR)
    return found


def _below(path: str, mount: str) -> bool:
    root = os.path.normpath(mount).rstrip("/")
    return f"{os.path.normpath(path)}/".startswith(f"{root}/")


def _missing(path: str) -> bool:
    try:
        os.stat(path)
    except (FileNotFoundError, NotADirectoryError):
        return True
    except OSError:
        return False  # for example permission denied: the path may exist
    return False
