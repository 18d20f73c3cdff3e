"""The environment of a container as Kubernetes would build it, with this machine's values."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from hftitan_operator.core.state import Manifest
from hftitan_operator.local.machine import Machine, Place, Refused

FOREIGN_ENV = ("PET_", "TORCHELASTIC_", "HFTITAN_", "MASTER_", "GROUP_", "ROLE_")
FOREIGN_NAMES = frozenset({"RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "TORCH_ELASTIC_SHUTDOWN_TIMEOUT"})
"""Variables of the caller that would confuse torchrun. A run may itself be started by a torchrun process."""


def inherited(environ: Mapping[str, str]) -> dict[str, str]:
    """Return the part of the caller's environment that pods inherit."""
    return {k: v for k, v in environ.items() if k not in FOREIGN_NAMES and not k.startswith(FOREIGN_ENV)}


_REFERENCE = re.compile(r"\$\$|\$\(([A-Za-z_][-A-Za-z0-9_.]*)\)")


def expand(text: str, values: Mapping[str, str]) -> str:
    """Expand `$(NAME)` as Kubernetes does: unknown names stay as they are, `$$` becomes a dollar sign."""

    def replace(match: re.Match[str]) -> str:
        if match[0] == "$$":
            return "$"
        return values.get(match[1], match[0])

    return _REFERENCE.sub(replace, text)


def container_environment(
    entries: Sequence[Mapping[str, Any]], where: str, manifest: Manifest, machine: Machine, place: Place
) -> dict[str, str]:
    """Return the variables that `entries` set. Raises `Refused` for a secret that the caller has not set."""
    values: dict[str, str] = {}
    for i, entry in enumerate(entries):
        name = entry["name"]
        source = entry.get("valueFrom")
        if not source:
            values[name] = expand(entry.get("value", ""), values)
        elif "fieldRef" in source:
            values[name] = _field(source["fieldRef"]["fieldPath"], f"{where}[{i}]", manifest, place)
        elif "secretKeyRef" in source or "configMapKeyRef" in source:
            reference = source.get("secretKeyRef") or source["configMapKeyRef"]
            if name in machine.environ:
                values[name] = machine.environ[name]
            elif not reference.get("optional"):
                raise Refused(
                    f"{where}[{i}]",
                    f"{name} comes from {reference['name']!r} on a cluster; for a local run, set {name} in the "
                    "environment",
                )
        else:
            raise Refused(f"{where}[{i}].valueFrom.{next(iter(source))}", "is not supported by `hftitan run`")
    return values


def _field(path: str, where: str, manifest: Manifest, place: Place) -> str:
    metadata, spec = manifest["metadata"], manifest["spec"]
    known: dict[str, Callable[[], str]] = {
        "metadata.name": lambda: metadata["name"],
        "metadata.namespace": lambda: metadata.get("namespace", "default"),
        "metadata.uid": lambda: place.uid,
        "spec.nodeName": lambda: "localhost",
        "spec.hostname": lambda: spec.get("hostname", metadata["name"]),
        "status.podIP": lambda: place.address,
        "status.hostIP": lambda: "127.0.0.1",
    }
    if path in known:
        return known[path]()
    match = re.fullmatch(r"metadata\.(labels|annotations)\['([^']+)'\]", path)
    if match:
        return str(metadata.get(match[1], {}).get(match[2], ""))
    raise Refused(f"{where}.valueFrom.fieldRef.fieldPath", f"{path} is not supported by `hftitan run`")


def relocate(value: str, mounts: Mapping[str, Path], log_path: str, log: Path) -> str:
    """Translate a path in the container to a path on this machine. The longest mount path wins."""
    if value == log_path:
        return str(log)
    for mount in sorted(mounts, key=len, reverse=True):
        if value == mount:
            return str(mounts[mount])
        if value.startswith(mount + "/"):
            return str(mounts[mount] / value[len(mount) + 1 :])
    return value
