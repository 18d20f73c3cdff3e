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
"""Of the caller's environment these would confuse torchrun: a run may itself be started from inside a torchrun."""


def inherited(environ: Mapping[str, str]) -> dict[str, str]:
    """What a pod takes over from the caller's environment."""
    return {k: v for k, v in environ.items() if k not in FOREIGN_NAMES and not k.startswith(FOREIGN_ENV)}


_REFERENCE = re.compile(r"\$\$|\$\(([A-Za-z_][-A-Za-z0-9_.]*)\)")


def expand(text: str, values: Mapping[str, str]) -> str:
    """`$(NAME)` as Kubernetes expands it: unknown names stay as they are, `$$` is a dollar sign."""

    def replace(match: re.Match[str]) -> str:
        if match[0] == "$$":
            return "$"
        return values.get(match[1], match[0])

    return _REFERENCE.sub(replace, text)


def container_environment(
    entries: Sequence[Mapping[str, Any]], where: str, manifest: Manifest, machine: Machine, place: Place
) -> dict[str, str]:
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
                    f"{where}[{i}]", f"{name} comes from {reference['name']!r} in a cluster; here, set {name}"
                )
        else:
            raise Refused(f"{where}[{i}].valueFrom.{next(iter(source))}", "cannot be honoured by `hftitan run`")
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
    raise Refused(f"{where}.valueFrom.fieldRef.fieldPath", f"{path} is not known to `hftitan run`")


def relocate(value: str, mounts: Mapping[str, Path], log_path: str, log: Path) -> str:
    """A path inside the container -> the path on this machine; the longest mount wins."""
    if value == log_path:
        return str(log)
    for mount in sorted(mounts, key=len, reverse=True):
        if value == mount:
            return str(mounts[mount])
        if value.startswith(mount + "/"):
            return str(mounts[mount] / value[len(mount) + 1 :])
    return value
